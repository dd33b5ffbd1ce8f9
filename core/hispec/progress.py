"""The progress of loading a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Doing = Literal["downloading", "reading", "quantizing"]


@dataclass(frozen=True)
class Progress:
    """The progress of one piece of work.

    Attributes:
        doing: downloading files, reading weights, or reading and quantizing them.
        what: the files or the model, as users know them.
        size: bytes in all.
        done: the bytes of them that are done.
    """

    doing: Doing
    what: str
    size: int
    done: int = 0


Watch = Callable[[Progress], None]
"""The type of a callback that receives progress."""


def unwatched(_: Progress) -> None:
    """Ignore the progress."""
