"""Qwen3, the dense models: queries and keys are normalised, and heads have a size of their own."""

from hispec.models.families.base import Family

QWEN3 = Family(
    "qwen3", attention_bias="configured", qk_norm=True, kv_heads=32, head_size=128, window="switched", gguf=True
)
