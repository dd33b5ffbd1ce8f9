"""The families of Llama-like models that the fused stack runs, a file each. The modules of `transformers` run many more."""

from hispec.discovery import modules_in
from hispec.models.families.base import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in modules_in(__name__)
    for family in vars(module).values()
    if isinstance(family, Family)
}
"""The families of all modules in this folder, by `model_type`."""
