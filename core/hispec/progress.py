"""How far what takes long is while a model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Doing = Literal["downloading", "reading", "quantizing"]


@dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        doing: downloading files, reading weights, or reading and quantizing them.
        what: the files or the model, as users know them.
        size: bytes in all.
        done: bytes of them that are through.
    """

    doing: Doing
    what: str
    size: int
    done: int = 0


Watch = Callable[[Progress], None]
"""Who is told."""


def unwatched(_: Progress) -> None:
    """Do nothing: nobody wants to know."""
