"""The n-gram drafters that a profile can name, a file each: `draft: {ngram: {max: 4, tokens: 8, drafter: NAME}}`.

The standard one is `NgramDrafter` itself, under the name `cache`. A module in this folder with a subclass of it is another
drafter, by the name of the module.
"""

from importlib import import_module
from pkgutil import iter_modules

from hispec.decoding.drafters import NgramDrafter

STANDARD = "cache"


def drafter_names() -> list[str]:
    """Return the names of all n-gram drafters, the standard one first."""
    return [STANDARD, *(found.name for found in iter_modules(__path__))]


def drafter_of(name: str) -> type[NgramDrafter]:
    """Return a drafter by its name.

    Raises:
        KeyError: there is none of that name.
    """
    if name == STANDARD:
        return NgramDrafter
    if name not in drafter_names():
        raise KeyError(name)
    module = import_module(f"{__name__}.{name}")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, NgramDrafter) and kind.__module__ == module.__name__
    )
