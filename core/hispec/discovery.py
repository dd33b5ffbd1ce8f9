"""Finds the definitions in the modules of a folder, so that a new dataset, family or drafter takes one new file
only.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules_in(package: str) -> Iterator[ModuleType]:
    """Import the modules of a package one by one, in the order of their names.

    Args:
        package: its full name; it may be in the middle of being imported itself.
    """
    for found in iter_modules(sys.modules[package].__path__):
        yield import_module(f"{package}.{found.name}")
