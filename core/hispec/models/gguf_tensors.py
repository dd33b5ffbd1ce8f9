"""The tensors of a GGUF file, dequantized when they are read, as `transformers` does it: by the `gguf` package."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hispec.models.dtypes import GROUP, STORED
from hispec.models.gguf import CODES, FLOAT32, PLAIN, Header, Held, block_of
from hispec.models.gguf_names import ARCHITECTURES, FACTORS, name_in_checkpoint, turned_rows
from hispec.models.tensors import Stored, Tensors

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from hispec.models.sharding import Shard

CHUNK = 1 << 20
"""The number of values that are dequantized together."""
PARTNERS = re.compile(r"\.(self_attn\.[qkv]|mlp\.(?:gate|up))_proj\.")
"""Parts of the names of matrices that the fused stack joins with others."""


@dataclass(frozen=True)
class GgufTensors(Tensors):
    """The tensors of a GGUF file, by the names that a checkpoint has for them, as if it held plain numbers."""

    header: Header = field(kw_only=True)

    source = "gguf"

    @classmethod
    def of(cls, header: Header, path: Path | None) -> "GgufTensors":
        """Return the tensors of a file.

        Args:
            header: the header of the file.
            path: the file, None where it is not on this machine.
        """
        known = header.architecture in ARCHITECTURES
        stored = {
            name_in_checkpoint(name) if known else name: Stored(PLAIN.get(held.kind, FLOAT32), held.shape, path)
            for name, held in header.tensors.items()
            if name != FACTORS
        }
        return cls(stored, header=header)

    @cached_property
    def _own_names(self) -> dict[str, str]:
        """Return the names in the file, by those in a checkpoint."""
        known = self.header.architecture in ARCHITECTURES
        return {name_in_checkpoint(name) if known else name: name for name in self.header.tensors}

    @property
    def download(self) -> int:
        """Return bytes of the tensors that are not on this machine yet; see `Tensors`."""
        return self.header.end if None in {one.file for one in self.stored.values()} else 0

    @property
    def dtype(self) -> str:
        """Return the dtype of the first tensor of plain numbers, which `transformers` computes with.

        See `Tensors`. It is the dtype of the matrices, and float32 for blocks.
        """
        return STORED[self.header.dtype]

    def read(self, names: Iterable[str], shard: "Shard | None" = None) -> "Iterator[tuple[str, Tensor]]":
        """Yield some tensors, or a rank's parts of them; each is valid only until the next.

        See `Tensors`. Blocks are dequantized to float32.
        """
        import torch

        for name in names:
            own, path = self._own_names[name], self.stored[name].file
            assert path is not None
            numbers = numbers_of(path, self.header.tensors[own])
            if (heads := turned_rows(self.header, own)) is not None:
                numbers = as_halves(numbers, heads)
            whole = torch.from_numpy(numbers)
            yield name, whole if shard is None else shard.cut(name, self.stored[name].shape, whole)

    def first(self, name: str) -> "Tensor":
        """Return the first row of a matrix, or a whole vector; see `Tensors`."""
        ((_, tensor),) = self.read([name])
        return tensor[:1] if tensor.dim() > 1 else tensor

    def size(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file; see `Tensors`."""
        return self.header.tensors[self._own_names[name]].size

    @cached_property
    def on_grid(self) -> frozenset[str]:
        """Return the names of tensors that 4-bit weights can hold with the codes that they have in their file.

        See `Tensors`. Matrices in types of `CODES`, where those that are multiplied with them as one are too.
        """
        fits: dict[str, list[bool]] = {}
        matrices = [name for name, one in self.stored.items() if len(one.shape) == 2 and ".layers." in name]
        for name in matrices:
            fits.setdefault(_as_one(name), []).append(self.header.tensors[self._own_names[name]].kind in CODES)
        return frozenset(name for name in matrices if all(fits[_as_one(name)]))

    @property
    def kinds_on_grid(self) -> list[str]:
        """Return the names that the format has for the types of these tensors; see `Tensors`."""
        from gguf import GGMLQuantizationType

        kinds = {self.header.tensors[self._own_names[name]].kind for name in self.on_grid}
        return sorted(GGMLQuantizationType(kind).name for kind in kinds)

    def grid(self, name: str) -> "tuple[Tensor, Tensor, Tensor]":
        """Return one of the tensors of `on_grid` as the arguments of `Int4Linear`.

        See `Tensors`. The package knows where each type has its scales and its codes: weights are dequantized once as
        they are, and once         each with all codes the lowest and the highest, which gives the grid.
        """
        import numpy as np
        import torch

        own, path = self._own_names[name], self.stored[name].file
        assert path is not None
        held, heads = self.header.tensors[own], turned_rows(self.header, own)
        parts = []
        for blocks in _blocks(path, held):
            low, high = (_with_codes(blocks, held.kind, value) for value in (0, 255))
            weights, lowest, highest = (_dequantize(each, held).reshape(-1, GROUP) for each in (blocks, low, high))
            scales = (highest[:, :1] - lowest[:, :1]) / 15
            codes = np.rint((weights - lowest) / np.where(scales == 0, 1, scales)).astype(np.uint8)
            of_row = len(blocks), -1
            parts.append((codes.reshape(of_row), scales.reshape(of_row), (lowest[:, :1] + 8 * scales).reshape(of_row)))
        codes, scales, zeros = (np.concatenate(each) for each in zip(*parts, strict=True))
        found = (codes, scales, zeros) if heads is None else (as_halves(each, heads) for each in (codes, scales, zeros))
        first, second, third = map(torch.from_numpy, found)
        return first, second, third

    def are_equal(self, one: str, other: str) -> bool:
        """Return whether two tensors have the same shape and values; see `Tensors`."""
        first, second = (self.header.tensors[self._own_names[name]] for name in (one, other))
        path = self.stored[one].file
        if first.shape != second.shape or path is None:
            return False
        pairs = zip(_pieces(path, first), _pieces(path, second), strict=True)
        return all(bool((its == others).all()) for its, others in pairs)


def as_halves(rows: "ndarray[Any, Any]", heads: int) -> "ndarray[Any, Any]":
    """Return rows whose heads llama.cpp has turned as a checkpoint has them: each head's two halves one after the other."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def numbers_of(path: Path, held: Held) -> "ndarray[Any, Any]":
    """Return a tensor's numbers, float32; a copy."""
    import numpy as np

    return np.concatenate([*_pieces(path, held)]).reshape(held.shape)


def _pieces(path: Path, held: Held) -> "Iterator[ndarray[Any, Any]]":
    """Yield a tensor's numbers some rows at a time, float32 [rows, columns]."""
    for blocks in _blocks(path, held):
        yield _dequantize(blocks, held)


def _blocks(path: Path, held: Held) -> "Iterator[ndarray[Any, Any]]":
    """Yield a tensor's bytes some rows at a time, uint8 [rows, bytes]; copies."""
    import numpy as np

    rows = prod(held.shape[:-1])
    data = np.memmap(path, np.uint8, "r", held.start, (rows, held.size // rows))
    step = max(1, CHUNK // held.shape[-1])
    for at in range(0, rows, step):
        yield np.array(data[at : at + step])


def _dequantize(blocks: "ndarray[Any, Any]", held: Held) -> "ndarray[Any, Any]":
    """Return the numbers of some rows of blocks, float32 [rows, columns]."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    found: ndarray[Any, Any] = dequantize(blocks, GGMLQuantizationType(held.kind)).astype(np.float32, copy=False)
    return found


def _with_codes(blocks: "ndarray[Any, Any]", kind: int, value: int) -> "ndarray[Any, Any]":
    """Return a copy of some rows of blocks with all bytes of codes the same."""
    found = blocks.reshape(len(blocks), -1, (block_of(kind) or (0, 0))[1]).copy()
    found[..., CODES[kind] :] = value
    return found.reshape(blocks.shape)


def _as_one(name: str) -> str:
    """Return a key that is equal for the names of matrices that are multiplied as one."""
    return PARTNERS.sub(lambda part: f".{part[1].rpartition('.')[0]}.", name)
