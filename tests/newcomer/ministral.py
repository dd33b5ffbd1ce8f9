"""A new family: Ministral, whose layers are Mistral's. Lives in core/hispec/models/families."""

from hispec.models.families.base import Family

MINISTRAL = Family("ministral", kv_heads=8, window="all")
