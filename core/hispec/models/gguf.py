"""GGUF files: what their headers say, and their tensors, dequantized when they are read.

Files of the llama.cpp project hold a model whole: its shape, its tokenizer and its weights, mostly in blocks of few bits
with a scale each. Headers are parsed here, because the reader of the `gguf` package takes seconds for the hundred
thousand words of a vocabulary, and because what is wrong with a file is to be told before torch is imported. Blocks are
dequantized by that package, as `transformers` does it. See docs/gguf.md.
"""

import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hispec.counts import counted
from hispec.errors import UnavailableError, UsageError
from hispec.extras import require
from hispec.models.dtypes import GROUP, STORED
from hispec.models.families import FAMILIES
from hispec.models.tensors import Stored, Tensors

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

ENDING = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How `llama-gguf-split` ends the names of the files that it divides one into."""
AGAIN = "download it again, or choose another file"

NUMBERS = dict(enumerate("BbHhIif?")) | dict(zip((10, 11, 12), "Qqd", strict=True))
"""Types of values of one size, as `struct` calls them."""
TEXT, ARRAY = 8, 9
LONGEST = 1024
"""Numbers of an array that is kept; of longer ones, and of arrays of texts, only the length is."""
ARCHITECTURES = tuple(name for name, family in FAMILIES.items() if family.gguf)
"""Those that are read here, of which Llama's is Mistral's too; for others `transformers` is asked."""
PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
"""Types of tensors that hold numbers as they are, as safetensors calls them."""
CODES = {2: 2, 3: 4, 12: 16}
"""Types of blocks that are 4-bit codes with a scale and a zero point for each `GROUP` of them: Q4_0, Q4_1 and Q4_K. Where
in the bytes of a block the codes begin; they reach to its end."""
CHUNK = 1 << 20
"""Numbers that are dequantized at once."""
PARTNERS = re.compile(r"\.(self_attn\.[qkv]|mlp\.(?:gate|up))_proj\.")
"""What is in the names of matrices that the fused stack multiplies as one with others."""
FLOAT32 = "F32"
"""What blocks are dequantized to."""

TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of tensors in GGUF files and in checkpoints of the Llama family, without `blk.N.` and `model.layers.N.`."""
FACTORS = "rope_freqs.weight"
"""By what the rotary frequencies of Llama 3.1 and its successors are divided: computed anew from the configuration."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What the rotary embeddings of all of them have in common."""


class CutShortError(Exception):
    """A file that ends before its header does."""


class Held(NamedTuple):
    """One tensor as the file has it: its type, its shape, and where it lies in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        metadata: by key; long arrays are their lengths.
        tensors: by their names in the file.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Held]

    @property
    def architecture(self) -> str:
        """Return what llama.cpp calls the kind of model."""
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
        """Return what the tensors are read as, as safetensors calls it: that of the matrices, float32 for blocks."""
        kinds = {PLAIN.get(held.kind, FLOAT32) for held in self.tensors.values() if len(held.shape) > 1}
        return FLOAT32 if self.in_blocks else next((kind for kind in ("BF16", "F16") if kind in kinds), FLOAT32)


def check_file(path: Path, name: str) -> None:
    """Refuse a file that is not there or one part of several.

    Args:
        path: the file.
        name: the model, as the user named it.

    Raises:
        UsageError: naming what is wrong with it.
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
    """Return what a file says of itself; it is parsed again only once it has changed.

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
            raise UnavailableError(f"{name} is no GGUF file: it is empty", AGAIN)
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
            f"the GGUF file {name} is cut short: it has {size:,} bytes, and its header speaks of {header.end:,}", AGAIN
        )


def parse_header(data: Any, name: str) -> Header:
    """Return what the beginning of a file says.

    Args:
        data: bytes, or what can be sliced as they can.
        name: the model, as the user named it.

    Raises:
        CutShortError: the header goes on beyond the data.
        UnavailableError: this is no GGUF file, or it has tensors of an unknown type.
        UsageError: one of several files that hold a model together.
    """
    if data[:4] != MAGIC:
        raise UnavailableError(f"{name} is no GGUF file: it does not begin with {MAGIC.decode()}", AGAIN)
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
        """Read a tensor's shape, its type, and where it begins in the part that holds them all."""
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
    size = _block(kind)
    if size is None:
        raise UnavailableError(
            f"{name} holds {tensor} as type {kind}, which this version of gguf cannot read",
            "choose a file in another format, or update: pip install -U gguf",
        )
    numbers, taken = size
    if not shape or shape[-1] % numbers:
        raise UnavailableError(f"the GGUF file {name} is damaged: {tensor} is no whole number of blocks", AGAIN)
    return prod(shape) // numbers * taken


@lru_cache
def _block(kind: int) -> tuple[int, int] | None:
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


# What a header means


def values_of(header: Header, path: Path, name: str) -> dict[str, Any]:
    """Return what `config.json` would say of the model.

    Outside of `ARCHITECTURES` it is the architecture alone: `transformers` must read the rest.

    Args:
        header: of the file.
        path: the file, or as much of it as `needed` tells.
        name: the model, as the user named it.

    Raises:
        UnavailableError: the header lacks a size, or has one that is none.
        UsageError: experts, or rotary embeddings that a GGUF file does not describe well enough.
    """
    family = header.architecture
    form = {"model_type": family, "gguf": "blocks" if header.in_blocks else "plain"}
    if not header.in_blocks:
        form["dtype"] = STORED[header.dtype]
    if family not in ARCHITECTURES:
        return form
    say = header.metadata.get

    def must(key: str) -> Any:
        value = say(f"{family}.{key}")
        if value is None:
            raise UnavailableError(f"the GGUF file {name} does not say {family}.{key}", AGAIN)
        if not isinstance(value, int | float) or value <= 0:
            raise UnavailableError(f"the GGUF file {name} says that {family}.{key} is {str(value)[:60]}", AGAIN)
        return value

    if say(f"{family}.expert_count"):
        raise UsageError(f"{name} is a mixture of experts, which is not read from GGUF", "choose another model")
    if "token_embd.weight" not in header.tensors:
        raise UnavailableError(f"the weights of {name} are incomplete: token_embd.weight is missing", AGAIN)
    heads, hidden = must("attention.head_count"), must("embedding_length")
    size = say(f"{family}.attention.key_length") or say(f"{family}.rope.dimension_count")
    biased = "blk.0.attn_q.bias" in header.tensors
    ends = (say(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return form | {
        "num_hidden_layers": must("block_count"),
        "hidden_size": hidden,
        "intermediate_size": must("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": must("attention.head_count_kv")
        if f"{family}.attention.head_count_kv" in header.metadata
        else heads,
        "head_dim": size or FAMILIES[family].head_size or hidden // heads,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": must("context_length"),
        "rms_norm_eps": must("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rotary(header, path, name),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **({"use_sliding_window": False} if FAMILIES[family].window == "switched" else {}),
        **({"mlp_bias": False} if FAMILIES[family].mlp_bias else {}),
        **({"attention_bias": biased} if FAMILIES[family].attention_bias == "configured" else {}),
        "bos_token_id": say("tokenizer.ggml.bos_token_id"),
        "eos_token_id": sorted({end for end in ends if end is not None}) or None,
        "pad_token_id": say("tokenizer.ggml.padding_token_id"),
    }


def needed(data: bytearray, name: str) -> int:
    """Return how many bytes of a file `values_of` looks at: at least twice as many as there are where that is not known.

    Args:
        data: the beginning of a file.
        name: the model, as the user named it.

    Raises:
        UnavailableError, UsageError: as `parse_header`.
    """
    try:
        header = parse_header(data, name)
    except CutShortError:
        return 2 * len(data)
    return header.tensors[FACTORS].start + header.tensors[FACTORS].size if FACTORS in header.tensors else 0


def _rotary(header: Header, path: Path, name: str) -> dict[str, Any]:
    """Return the parameters of the rotary embedding.

    Those of Llama 3.1 and its successors are held as the factors that they come to, the largest of which tells them all.
    """
    family, say = header.architecture, header.metadata.get
    theta = {"rope_theta": say(f"{family}.rope.freq_base", 10000.0)}
    scaling = say(f"{family}.rope.scaling.type", "none")
    if scaling == "linear":
        return {"rope_type": "linear", "factor": say(f"{family}.rope.scaling.factor", 1.0), **theta}
    if scaling != "none":
        raise UsageError(
            f"{name} has {scaling!r} rotary embeddings, which are not read from GGUF", "choose the model in safetensors"
        )
    if FACTORS not in header.tensors:
        return {"rope_type": "default", **theta}
    factors = _numbers(path, header.tensors[FACTORS])
    return {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3, **theta}


def turned_rows(header: Header, tensor: str) -> int | None:
    """Return the heads whose rows llama.cpp has turned in a tensor, None where the rows are as in any checkpoint.

    It puts the two halves of each head of Llama models side by side, for rotary embeddings that turn neighbours.
    """
    part = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", tensor)
    family = header.architecture
    if part is None or family not in FAMILIES or not FAMILIES[family].turned:
        return None
    heads = header.metadata[f"{family}.attention.head_count"]
    return int(heads if part[1] == "q" else header.metadata.get(f"{family}.attention.head_count_kv", heads))


def name_in_checkpoint(tensor: str) -> str:
    """Return what checkpoints of the Llama family call a tensor; an unknown one keeps its name."""
    stem, _, kind = tensor.rpartition(".")
    if stem in TABLES:
        return f"{TABLES[stem]}.{kind}"
    if (layer := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)) and layer[2] in PARTS:
        return f"model.layers.{layer[1]}.{PARTS[layer[2]]}.{kind}"
    return tensor


@dataclass(frozen=True)
class GgufTensors(Tensors):
    """The tensors of a GGUF file, by the names that a checkpoint has for them, as if it held plain numbers."""

    header: Header = field(kw_only=True)

    source = "gguf"

    @classmethod
    def of(cls, header: Header, path: Path | None) -> "GgufTensors":
        """Return the tensors of a file.

        Args:
            header: of the file.
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

        See `Tensors`. That of the matrices, float32 for blocks.
        """
        return STORED[self.header.dtype]

    def read(self, names: Iterable[str]) -> "Iterator[tuple[str, Tensor]]":
        """Yield some tensors, each valid only until the next; see `Tensors`. Blocks are dequantized to float32."""
        import torch

        for name in names:
            own, path = self._own_names[name], self.stored[name].file
            assert path is not None
            numbers = _numbers(path, self.header.tensors[own])
            if (heads := turned_rows(self.header, own)) is not None:
                numbers = as_halves(numbers, heads)
            yield name, torch.from_numpy(numbers)

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
        """Return what the format calls the types of these; see `Tensors`."""
        from gguf import GGMLQuantizationType

        kinds = {self.header.tensors[self._own_names[name]].kind for name in self.on_grid}
        return sorted(GGMLQuantizationType(kind).name for kind in kinds)

    def grid(self, name: str) -> "tuple[Tensor, Tensor, Tensor]":
        """Return one of `on_grid` as what `Int4Linear` is made of.

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


def _numbers(path: Path, held: Held) -> "ndarray[Any, Any]":
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
    found = blocks.reshape(len(blocks), -1, (_block(kind) or (0, 0))[1]).copy()
    found[..., CODES[kind] :] = value
    return found.reshape(blocks.shape)


def _as_one(name: str) -> str:
    """Return what is the same for the names of matrices that are multiplied as one."""
    return PARTNERS.sub(lambda part: f".{part[1].rpartition('.')[0]}.", name)


def listed(names: list[str], max_shown: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - max_shown} more" if len(names) > max_shown else ""
    return ", ".join(names[:max_shown]) + more
