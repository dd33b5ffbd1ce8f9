"""Weights packed for few large multiplications, filled tensor by tensor so that no second copy ever exists."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from hispec.limits import WIDEST
from hispec.models.config import ModelConfig
from hispec.models.dtypes import heads_in_8_bits
from hispec.models.kernels import Agree, limit_rows, quantize
from hispec.models.linear import Linear, PackedLinear, packing, right_factor
from hispec.models.quantized import Int4Linear, QuantizedLinear
from hispec.models.sharding import Shard
from hispec.models.tensors import Tensors
from hispec.settings import Quantization

MATRICES = ("qkv", "output", "gate_up", "down")
"""Fields of a layer."""


@dataclass(slots=True)
class Layer:
    """One decoder layer; the norms of heads may be lacking."""

    attention_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    """[query heads + key heads, head size]"""
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear

    def convert(self, make: Callable[[Linear], Linear]) -> None:
        """Convert the matrices one after the other, so that there is never a second copy of more than one."""
        for name in MATRICES:
            setattr(self, name, make(getattr(self, name)))

    def converted(self, make: Callable[[Linear], Linear]) -> "Layer":
        """Return the layer with other matrices, made from its own, and the same vectors."""
        made = replace(self)
        made.convert(make)
        return made


class FusedWeights:
    """All weights of a model of the Llama family, allocated but not filled.

    Args:
        config: the model's shape; with ranks, the shape of this rank's part.
        dtype: the dtype of all weights that are not quantized.
        device: the device of the weights.
        quantization: format of the matrices, which are then allocated and quantized layer by layer while `fill` reads
            them; the embedding and all vectors are never quantized.
        span: numbers of the layers that are held; by default of all. Who holds the first one has the embedding, the last
            norm and the head, too.
        shard: the part of every matrix that is held; None for the whole.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization | None = None,
        span: range | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.span, self.shard = range(config.num_layers) if span is None else span, shard
        vocabulary = range(config.vocab_size)
        self.token_ids = vocabulary if shard is None else shard.token_ids(config.vocab_size)
        """The token ids whose logits the head computes."""
        self.shares_head = self.token_ids != vocabulary
        self._config, self._dtype = config, dtype
        self._device = device if quantization is None else torch.device("meta")
        self.quantization: Quantization | None = quantization
        self._packing = None if quantization is not None else packing(dtype, device, config.largest_matrix)
        self.parts: dict[str, Tensor] = {}
        """The destination of each tensor, by its name in a checkpoint: views of the packed ones, in the tensor's
        shape.
        """
        self.layers = [self._layer(index) for index in self.span]
        if self._has_tables:
            self._allocate_tables()
        self.names = frozenset(self.parts)
        """The names of a checkpoint's tensors that are used."""
        self._device = device

    @property
    def _has_tables(self) -> bool:
        return self.span.start == 0

    @property
    def _agree(self) -> Agree | None:
        """Return the function that makes ranks choose the same kernels, see `quantize`."""
        return None if self.shard is None else self.shard.agree

    def _allocate_tables(self) -> None:
        """Allocate the last norm, the head and the embedding."""
        config, hidden = self._config, self._config.hidden_size
        self.norm = self._vector({"model.norm.weight": hidden})
        if config.tied:
            tied = self._matrix(hidden, {"model.embed_tokens.weight": config.vocab_size})
            self.head = Linear(tied[:, self.token_ids.start : self.token_ids.stop])
            self.embedding = tied.t()
        else:
            self.head = Linear(self._matrix(hidden, {"lm_head.weight": len(self.token_ids)}))
            self.embedding = torch.empty(config.vocab_size, hidden, dtype=self._dtype, device=self._device)
            self.parts["model.embed_tokens.weight"] = self.embedding

    @property
    def packed(self) -> bool:
        """Return whether the matrices are packed."""
        return isinstance(self._outermost, PackedLinear)

    @property
    def _outermost(self) -> Linear:
        """Return the head, or a matrix of the first layer where there is none."""
        return self.head if self._has_tables else self.layers[0].qkv

    def row_counts(self, candidates: Sequence[int]) -> Sequence[int]:
        """Return the row counts that may compute a row in the same way, of some ascending ones."""
        matrix = self._outermost  # where a file's layers keep their 4 bits, the head alone is packed
        return matrix.row_counts(candidates) if isinstance(matrix, PackedLinear) else candidates

    def pack(self) -> None:
        """Pack the matrices where that is faster; `parts` then keeps those that are not packed.

        A tied head is packed as a copy; the embedding stays.
        """
        if self._packing is not None and not self.packed:
            with ThreadPoolExecutor(self._packing.packers()) as threads:
                self._convert(self._packing, threads.map)

    def quantize(self, quantization: Quantization) -> None:
        """Quantize filled weights that are not packed, in place; `parts` then keeps those that are not quantized.

        A tied head is quantized as a copy; the embedding stays.
        """
        self.quantization, self._packing = quantization, None
        self._convert(partial(quantize, quantization=quantization))

    def quantized(self, quantization: Quantization, layers: int | None = None) -> "FusedWeights":
        """Return the weights with quantized copies of the matrices, which are made one after the other.

        Embedding, norms and biases are shared, and so are the full matrices, for passes so wide that they are the
        faster. The head is the same one, or a copy in 8 bits; see `heads_in_8_bits`.

        Args:
            quantization: format of the copies.
            layers: the number of the model's first layers that are copied; by default all.
        """
        make = partial(quantize, beside=True, agree=self._agree)
        made = copy(self)
        made.quantization, made._packing = quantization, None
        own = self.layers if layers is None else self.layers[: layers - self.span.start]
        made.layers = [layer.converted(partial(make, quantization=quantization)) for layer in own]
        matrices = [[getattr(layer, name) for name in MATRICES] for layer in made.layers]
        limit_rows(matrices, self._config.layer_shapes, self.dtype, self.device, self._agree)
        if self._has_tables and heads_in_8_bits(self.device.type):
            made.head = make(self.head, "int8")
        made.parts = self._unconverted()
        return made

    def reduced_head(self, ids: Tensor) -> Linear:
        """Return a copy of the head's rows of some token ids [n], held in the same way; whole on every rank."""
        if self.shard is None or not self.shares_head:
            return self.head.select(ids)
        own = (ids >= self.token_ids.start) & (ids < self.token_ids.stop)
        dense = self.head.dense()
        matrix = right_factor(len(dense), len(ids), dense.dtype, dense.device).zero_()
        matrix[:, own] = dense[:, ids[own] - self.token_ids.start]
        linear = Linear(self.shard.sum(matrix.t().contiguous()).t())
        if isinstance(self.head, QuantizedLinear):
            return quantize(linear, self.head.quantization, agree=self._agree)
        return type(self.head)(linear) if isinstance(self.head, PackedLinear) else linear

    @property
    def nbytes(self) -> int:
        """Return bytes of the quantized matrices; 0 where none are."""
        return sum(matrix.nbytes for matrix in self._quantized())

    @property
    def narrow(self) -> int:
        """Return the most rows that all quantized matrices multiply themselves, at most `WIDEST`."""
        return min((matrix.narrow for matrix in self._quantized() if matrix.wide is not None), default=WIDEST)

    def _quantized(self) -> list[QuantizedLinear]:
        matrices = [getattr(layer, name) for layer in self.layers for name in MATRICES]
        matrices += [self.head] if self._has_tables else []
        return [matrix for matrix in matrices if isinstance(matrix, QuantizedLinear)]

    def _convert(self, make: Callable[[Linear], Linear], mapped: Callable[..., Iterable[None]] = map) -> None:
        self.parts = self._unconverted()
        list(mapped(lambda layer: layer.convert(make), self.layers))
        if self._has_tables:
            self.head = make(self.head)

    def _unconverted(self) -> dict[str, Tensor]:
        """Return the `parts` that are left when matrices are packed or quantized."""
        embedding = "model.embed_tokens.weight"
        return {name: part for name, part in self.parts.items() if part.dim() == 1 or name == embedding}

    def dense(self) -> dict[str, Tensor]:
        """Return the weights by their names in a checkpoint: views, or copies of packed ones."""
        found = dict(self.parts)
        for index, layer in zip(self.span, self.layers, strict=False):  # copies may have fewer
            for matrix, rows in zip(
                (layer.qkv, layer.output, layer.gate_up, layer.down), self._rows(index), strict=True
            ):
                found.update(zip(rows, matrix.dense().t().split_with_sizes(list(rows.values())), strict=True))
        if self._has_tables and not self._config.tied:
            found["lm_head.weight"] = self.head.dense().t()
        return found

    def fill(self, tensors: Tensors, read: Callable[[int], None] = lambda _: None) -> list[str]:
        """Read a checkpoint. A file is mapped for one layer at a time, since pages that were read would pile up in
        memory.

        Args:
            tensors: the tensors of the checkpoint.
            read: called after each tensor with its size in the file, in bytes.

        Returns:
            As `misfits`; if any, nothing is read.
        """
        wrong = self.misfits(tensors)
        if not wrong and self.quantization is not None:
            self._fill_quantized(self.quantization, tensors, read)
        for names in self._groups() if not wrong and self.quantization is None else ():
            self._fill_parts(names, tensors, read)
        return wrong

    def _fill_quantized(self, quantization: Quantization, tensors: Tensors, read: Callable[[int], None]) -> None:
        """Read a checkpoint and quantize it as `fill` does: one layer is held in full at a time.

        Matrices that their file holds in 4 bits keep the codes that they have there, and then all others stay as they are;
        parts of them are quantized again.
        """
        kept = quantization == "int4" and bool(tensors.on_grid) and self.shard is None
        make = self._packed_if_faster if kept else partial(quantize, quantization=quantization, agree=self._agree)
        plain: dict[str, Tensor] = {}
        for place, names in enumerate(list(self._groups())[: len(self.layers)]):
            self.parts, index = {}, self.span[place]
            layer = self.layers[place] = self._layer(index)
            self._fill_parts(names, tensors, read)
            self.parts = self._unconverted()
            for name, rows in zip(MATRICES, self._rows(index), strict=True):
                linear: Linear = getattr(layer, name)
                on_grid = kept and tensors.on_grid.issuperset(rows)
                setattr(layer, name, _from_grid(linear, rows, tensors) if on_grid else make(linear))
            plain |= self.parts
        self.parts = {}
        if not self._has_tables:
            self.parts = plain
            return
        self._allocate_tables()
        for names in list(self._groups()):
            self._fill_parts(names, tensors, read)
        self.parts = plain | self._unconverted()
        self.head = make(self.head)

    def _packed_if_faster(self, linear: Linear) -> Linear:
        """Return a matrix as it would be in weights that are not quantized."""
        pack = packing(self._dtype, self._device, self._config.largest_matrix)
        return linear if pack is None else pack(linear)

    def _fill_parts(self, names: list[str], tensors: Tensors, read: Callable[[int], None]) -> None:
        for name, tensor in tensors.read(names, self.shard):
            self.parts[name].copy_(tensor)
            read(tensors.size(name))

    def misfits(self, tensors: Tensors) -> list[str]:
        """Return the names of tensors that are missing in a checkpoint or misshapen; only its headers are read."""
        shapes = {name: stored.shape for name, stored in tensors.stored.items()}
        if self.shard is not None:
            shapes = {name: self.shard.shape(name, whole) for name, whole in shapes.items()}
        return sorted(name for name, part in self.parts.items() if shapes.get(name) != tuple(part.shape))

    def _groups(self) -> Iterator[list[str]]:
        """Return the names of `parts`, layer by layer, with the large tables one by one."""
        for _, names in groupby(self.parts, key=lambda name: name.split(".")[:3]):
            yield list(names)

    def _layer(self, index: int) -> Layer:
        config, prefix = self._config, f"model.layers.{index}."
        hidden, inner = config.hidden_size, config.intermediate_size
        qkv, output, gate_up, down = self._rows(index)
        return Layer(
            attention_norm=self._vector({prefix + "input_layernorm.weight": hidden}),
            qkv=self._linear(hidden, qkv, config.qkv_bias),
            qk_norm=self._head_norms(prefix + "self_attn.") if config.qk_norm else None,
            output=self._linear(config.num_heads * config.head_size, output, config.output_bias),
            mlp_norm=self._vector({prefix + "post_attention_layernorm.weight": hidden}),
            gate_up=self._linear(hidden, gate_up, config.mlp_bias),
            down=self._linear(inner, down, config.mlp_bias),
        )

    def _rows(self, index: int) -> tuple[dict[str, int], ...]:
        """Return the parts of a layer's four matrices: names of weights in a checkpoint, and their rows."""
        config, prefix = self._config, f"model.layers.{index}."
        queries, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        attention = prefix + "self_attn."
        return (
            {f"{attention}{part}_proj.weight": rows for part, rows in (("q", queries), ("k", keys), ("v", keys))},
            {attention + "o_proj.weight": config.hidden_size},
            {f"{prefix}mlp.{part}_proj.weight": config.intermediate_size for part in ("gate", "up")},
            {prefix + "mlp.down_proj.weight": config.hidden_size},
        )

    def _linear(self, columns: int, rows: dict[str, int], biased: bool) -> Linear:
        biases = {name.removesuffix("weight") + "bias": count for name, count in rows.items()}
        return Linear(self._matrix(columns, rows), self._vector(biases) if biased else None)

    def _matrix(self, columns: int, rows: dict[str, int]) -> Tensor:
        """Return some [rows, columns] matrices of the checkpoint side by side, as one [columns, all rows]."""
        matrix = right_factor(columns, sum(rows.values()), self._dtype, self._device, packed=self._packing is not None)
        self._split(matrix.t(), rows)
        return matrix

    def _vector(self, lengths: dict[str, int]) -> Tensor:
        vector = torch.empty(sum(lengths.values()), dtype=self._dtype, device=self._device)
        self._split(vector, lengths)
        return vector

    def _head_norms(self, attention: str) -> Tensor:
        """Return the norm of query heads and that of key heads, repeated for each of them."""
        config = self._config
        norms = torch.empty(2, config.head_size, dtype=self._dtype, device=self._device)
        self.parts[attention + "q_norm.weight"], self.parts[attention + "k_norm.weight"] = norms
        return norms

    def _split(self, packed: Tensor, lengths: dict[str, int]) -> None:
        self.parts.update(zip(lengths, packed.split_with_sizes(list(lengths.values())), strict=True))


def _from_grid(linear: Linear, names: Iterable[str], tensors: Tensors) -> Int4Linear:
    """Return a matrix with the codes and the grid that its parts have in their file."""
    parts = zip(*(tensors.grid(name) for name in names), strict=True)
    codes, scales, zeros = (torch.cat(part).to(linear.matrix.device) for part in parts)
    return Int4Linear(codes, scales, zeros, linear.bias)
