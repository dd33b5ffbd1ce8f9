"""Qwen2 and Qwen2.5: queries, keys and values have a bias."""

from hispec.models.families.base import Family

QWEN2 = Family("qwen2", attention_bias="qkv", kv_heads=32, window="switched", gguf=True)
