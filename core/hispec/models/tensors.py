"""The tensors of a checkpoint: names, dtypes and shapes from the headers of its safetensors files, values one by one.

A checkpoint in another format has a class of its own with these methods, made by `Checkpoint.tensors`, as `GgufTensors`;
what is built of the tensors never asks which file they come from. Nothing here imports torch before a value is read.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hispec.models.dtypes import STORED

if TYPE_CHECKING:
    from torch import Tensor

    from hispec.models.sharding import Shard

ROWS = 4096
"""The number of values that are read at a time when two tables are compared."""


class Stored(NamedTuple):
    """One tensor: its dtype as safetensors calls it (`BF16`, `U8`), its shape, and its file, None where it is not here."""

    dtype: str
    shape: tuple[int, ...]
    file: Path | None

    @property
    def numbers(self) -> int:
        """Return how many numbers it holds."""
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """Return bits of each number."""
        digits = re.search(r"\d+", self.dtype)
        return int(digits[0]) if digits else 8


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint in safetensors, by name."""

    stored: dict[str, Stored]

    source = "safetensors"
    """The format of its files."""

    @property
    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self.stored.keys()

    @property
    def files(self) -> set[Path]:
        """Return the files of the tensors that are on this machine."""
        return {one.file for one in self.stored.values() if one.file is not None}

    @property
    def download(self) -> int:
        """Return bytes of the tensors that are not on this machine yet."""
        return sum(one.numbers * one.bits // 8 for one in self.stored.values() if one.file is None)

    @property
    def dtype(self) -> str | None:
        """Return the dtype of the first tensor of plain numbers, which `transformers` computes with; None without any."""
        return next((STORED[one.dtype] for one in self.stored.values() if one.dtype in STORED), None)

    def read(self, names: Iterable[str], shard: "Shard | None" = None) -> "Iterator[tuple[str, Tensor]]":
        """Yield some tensors, or a rank's parts of them; each is valid only until the next. Their files stay mapped
        while it runs.

        Pages of a mapped file that have been read count as this process's memory, so callers should request few tensors
        together.
        """
        from safetensors import safe_open

        with ExitStack() as opened:
            known: dict[Path | None, Any] = {}
            for name in names:
                path = self.stored[name].file
                if path not in known:
                    known[path] = opened.enter_context(safe_open(path, framework="pt"))
                if shard is None:
                    yield name, known[path].get_tensor(name)
                else:
                    yield name, shard.cut(name, self.stored[name].shape, known[path].get_slice(name))

    def first(self, name: str) -> "Tensor":
        """Return the first row of a matrix, or a whole vector."""
        from safetensors import safe_open

        with safe_open(self.stored[name].file, framework="pt") as file:
            part = file.get_slice(name)
            first: Tensor = part[:1] if len(part.get_shape()) > 1 else part[:]
            return first

    def size(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file."""
        return self.stored[name].numbers * self.stored[name].bits // 8

    @property
    def on_grid(self) -> frozenset[str]:
        """Return the names of tensors that 4-bit weights can hold with the codes that they have in their file; see
        `grid`.
        """
        return frozenset()

    @property
    def kinds_on_grid(self) -> list[str]:
        """Return the names that the format has for the types of these tensors."""
        return []

    def grid(self, name: str) -> "tuple[Tensor, Tensor, Tensor]":
        """Return one of the tensors of `on_grid` as the arguments of `Int4Linear`.

        Returns:
            Codes, uint8 [out, in]; scales and zero points, float32 [out, groups].
        """
        raise NotImplementedError

    def are_equal(self, one: str, other: str) -> bool:
        """Return whether two tensors have the same shape and values; both are read, some rows at a time."""
        from safetensors import safe_open

        if self.stored[one].shape != self.stored[other].shape:
            return False
        first, second = (safe_open(self.stored[name].file, framework="pt") for name in (one, other))
        with first as its_file, second as other_file:
            its, others = its_file.get_slice(one), other_file.get_slice(other)
            starts = range(0, self.stored[one].shape[0], ROWS)
            return all(bool((its[at : at + ROWS] == others[at : at + ROWS]).all()) for at in starts)


def read_headers(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file; the library compares its header with its length.

    Raises:
        SafetensorError: a damaged file.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return {name: Stored(part.get_dtype(), tuple(part.get_shape()), path) for name, part in parts.items()}
