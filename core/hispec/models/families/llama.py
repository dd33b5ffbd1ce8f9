"""Llama 2 and 3, CodeLlama, SmolLM2, and other models of their architecture."""

from hispec.models.families.base import Family

LLAMA = Family(
    "llama", attention_bias="configured", mlp_bias=True, whole_heads=True, window="layers", gguf=True, turned=True
)
