"""The headers of GGUF files, parsed without torch.

Files of the llama.cpp project hold a model whole: its shape, its tokenizer and its weights, mostly in blocks of few bits
with a scale each. Headers are parsed here, because the reader of the `gguf` package takes seconds for the hundred
thousand tokens of a vocabulary, and because a broken file should be refused at once. See docs/gguf.md.
"""

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hispec.counts import counted
from hispec.errors import UnavailableError, UsageError
from hispec.extras import require

if TYPE_CHECKING:
    pass

ENDING = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""The ending of the names of files that `llama-gguf-split` makes."""
AGAIN = "download it again, or choose another file"
NUMBERS = dict(enumerate("BbHhIif?")) | dict(zip((10, 11, 12), "Qqd", strict=True))
"""Types of values of one size, as `struct` calls them."""
TEXT, ARRAY = 8, 9
LONGEST = 1024
"""The largest number array that is kept; of longer ones, and of arrays of texts, only the length is."""
PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
"""Types of tensors of plain numbers, by their names in safetensors."""
CODES = {2: 2, 3: 4, 12: 16}
"""Types of blocks that are 4-bit codes with a scale and a zero point for each `GROUP` of them: Q4_0, Q4_1 and Q4_K. Where
in the bytes of a block the codes begin; they reach to its end."""
FLOAT32 = "F32"
"""The dtype that blocks are dequantized to."""


class CutShortError(Exception):
    """A file that ends before its header does."""


class Held(NamedTuple):
    """A tensor of the file: its type, its shape, and its position in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        metadata: the metadata by key; long arrays are replaced by their lengths.
        tensors: the tensors by their names in the file.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Held]

    @property
    def architecture(self) -> str:
        """Return the architecture, by its name in llama.cpp."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def end(self) -> int:
        """Return bytes that the file must have."""
        return max((held.start + held.size for held in self.tensors.values()), default=0)

    @property
    def kinds(self) -> dict[str, int]:
        """Return how many tensors there are of each type, by its name, the most frequent first."""
        from gguf import GGMLQuantizationType

        names = [GGMLQuantizationType(held.kind).name for held in self.tensors.values()]
        return {name: names.count(name) for name in sorted(set(names), key=lambda one: (-names.count(one), one))}

    @property
    def in_blocks(self) -> bool:
        """Return whether any tensor is held in blocks of few bits."""
        return any(held.kind not in PLAIN for held in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Return the dtype of the tensors, by its name in safetensors: that of the matrices, float32 for blocks."""
        kinds = {PLAIN.get(held.kind, FLOAT32) for held in self.tensors.values() if len(held.shape) > 1}
        return FLOAT32 if self.in_blocks else next((kind for kind in ("BF16", "F16") if kind in kinds), FLOAT32)


def check_file(path: Path, name: str) -> None:
    """Raise if a file does not exist, or is one part of several.

    Args:
        path: the file.
        name: the model, as the user named it.

    Raises:
        UsageError: the file is not usable; the message says why.
    """
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob(f"*{ENDING}"))
        hint = f"choose one of these: {listed(near)}" if near else "check the path"
        raise UsageError(f"there is no GGUF file {name}", hint)
    check_undivided(path.name, name)


def check_undivided(file: str, name: str) -> None:
    """Refuse one file of several that hold a model together; arguments and errors as `check_file`."""
    if (part := PART.search(file)) is not None:
        whole = file[: part.start()] + ENDING
        raise UsageError(
            f"{name} is one of {int(part[2])} files that hold a model together, and only whole ones are read",
            f"join them: llama-gguf-split --merge {file[: part.start()]}-00001-of-{part[2]}{ENDING} {whole}",
        )


def check_single(folder: Path, name: str) -> None:
    """Refuse a folder with several GGUF files and no other weights; arguments and errors as `check_file`."""
    files = sorted(path.name for path in folder.glob(f"*{ENDING}"))
    if len(files) > 1 and not any(folder.glob("*.safetensors")):
        check_undivided(files[0], name)
        raise UsageError(
            f"{name} holds {counted(len(files), 'GGUF file')}: {listed(files)}", f"name one: {folder / files[0]}"
        )


def read_header(path: Path, name: str) -> Header:
    """Return the header of a file; it is parsed again only after the file has changed.

    Args:
        path: the file, or as much of it as holds its header.
        name: the model, as the user named it.

    Raises:
        UnavailableError: no GGUF file, a damaged one, or tensors of an unknown type.
    """
    require("gguf", f"the GGUF file {name}")
    found = path.stat()
    return _read_header(path, name, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=16)
def _read_header(path: Path, name: str, *_: int) -> Header:
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise UnavailableError(f"{name} is not a GGUF file: it is empty", AGAIN)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return parse_header(data, name)
            except CutShortError:
                raise UnavailableError(f"the GGUF file {name} is cut short: its header has no end", AGAIN) from None


def check_whole(path: Path, header: Header, name: str) -> None:
    """Refuse a file that ends before its tensors do; arguments and errors as `read_header`."""
    size = path.stat().st_size
    if size < header.end:
        raise UnavailableError(
            f"the GGUF file {name} is cut short: it has {size:,} bytes, and its header requires {header.end:,}", AGAIN
        )


def parse_header(data: Any, name: str) -> Header:
    """Return the header at the beginning of a file.

    Args:
        data: bytes, or what can be sliced as they can.
        name: the model, as the user named it.

    Raises:
        CutShortError: the data end before the header does.
        UnavailableError: the file is not a GGUF file, or has tensors of an unknown type.
        UsageError: one of several files that hold a model together.
    """
    if data[:4] != MAGIC:
        raise UnavailableError(f"{name} is not a GGUF file: it does not begin with {MAGIC.decode()}", AGAIN)
    cursor = _Cursor(data)
    cursor.at = len(MAGIC)
    version, tensors, entries = cursor.numbers("IQQ")
    if version not in VERSIONS:
        raise UnavailableError(
            f"{name} has version {version} of the GGUF format, and versions 2 and 3 are read",
            "convert the model again with a current llama.cpp",
        )
    try:
        metadata = {cursor.text(): cursor.value() for _ in range(entries)}
        table = [(cursor.text(), *cursor.place()) for _ in range(tensors)]
    except (UnicodeDecodeError, ValueError) as error:
        raise UnavailableError(f"the GGUF file {name} is damaged: {error}", AGAIN) from None
    if (parts := metadata.get("split.count", 0)) > 1:
        raise UsageError(
            f"{name} is one of {parts} files that hold a model together, and only whole ones are read",
            "join them: llama-gguf-split --merge FIRST WHOLE",
        )
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    held = {
        tensor: Held(kind, shape, start + offset, _bytes_of(kind, shape, tensor, name))
        for tensor, shape, kind, offset in table
    }
    return Header(metadata, held)


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: Any) -> None:
        self._data, self.at = data, 0

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        """Read numbers of some types, as `struct` calls them."""
        layout = struct.Struct(f"<{kinds}")
        begin = self._skip(layout.size)
        return layout.unpack_from(self._data, begin)

    def text(self) -> str:
        (length,) = self.numbers("Q")
        begin = self._skip(length)
        return str(self._data[begin : self.at], "utf-8")

    def value(self) -> Any:
        """Read a value with its type before it."""
        (kind,) = self.numbers("I")
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.numbers(_number(kind))[0]
        of, count = self.numbers("IQ")
        if of == TEXT:
            for _ in range(count):
                self._skip(self.numbers("Q")[0])
            return count
        if count <= LONGEST:
            return list(self.numbers(_number(of) * count))
        self._skip(count * struct.calcsize(f"<{_number(of)}"))
        return count

    def place(self) -> tuple[tuple[int, ...], int, int]:
        """Read a tensor's shape, its type, and its offset in the data section."""
        (dimensions,) = self.numbers("I")
        if dimensions > 8:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        shape = self.numbers("Q" * dimensions)
        return shape[::-1], *self.numbers("IQ")

    def _skip(self, size: int) -> int:
        begin, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise CutShortError
        return begin


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"a value is of the unknown type {kind}")
    return NUMBERS[kind]


def _bytes_of(kind: int, shape: tuple[int, ...], tensor: str, name: str) -> int:
    """Return the bytes of a tensor in the file."""
    size = block_of(kind)
    if size is None:
        raise UnavailableError(
            f"{name} holds {tensor} as type {kind}, which this version of gguf cannot read",
            "choose a file in another format, or update: pip install -U gguf",
        )
    numbers, taken = size
    if not shape or shape[-1] % numbers:
        raise UnavailableError(
            f"the GGUF file {name} is damaged: {tensor} does not have a whole number of blocks", AGAIN
        )
    return prod(shape) // numbers * taken


@lru_cache
def block_of(kind: int) -> tuple[int, int] | None:
    """Return the numbers and the bytes of a block, None for a type that cannot be dequantized."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        known = GGMLQuantizationType(kind)
        numbers, taken = GGML_QUANT_SIZES[known]
        if kind not in PLAIN:
            dequantize(np.zeros((1, taken), np.uint8), known)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return numbers, taken


def listed(names: list[str], max_shown: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - max_shown} more" if len(names) > max_shown else ""
    return ", ".join(names[:max_shown]) + more
