"""Mistral: every layer has a sliding window. Its GGUF files call themselves Llama."""

from hispec.models.families.base import Family

MISTRAL = Family("mistral", kv_heads=8, window="all")
