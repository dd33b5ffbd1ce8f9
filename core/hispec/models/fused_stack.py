"""The Llama family as a layer stack of our own: packed weights, few calls, nothing allocated that can be kept.

The mathematics is that of the `transformers` layers; tests hold the two equal. Nothing here depends on a token's value
or waits for a device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.models.cache import KVCache
from hispec.models.config import FAMILIES, ModelConfig
from hispec.models.fused_weights import FusedWeights, Layer, right_factor
from hispec.models.rotary import rotary_tables
from hispec.models.stack import ReducedHead

WIDEST = 16
"""Rows of the widest span that keeps its buffers; a prompt's are given back."""

CHUNK = 512
"""Rows of a prompt that are run at once: enough to keep a processor busy, and their buffers stay small."""


def why_not_fused(config: ModelConfig) -> str | None:
    """What keeps a supported model from the fused stack, None where nothing does."""
    if config.family not in FAMILIES:
        return f"it is a {config.family!r} model"
    if config.quantized:
        return "its weights are quantized"
    if config.activation != "silu":
        return f"its activation is {config.activation!r}"
    return None


class FusedStack:
    """A model of the Llama family; see `LayerStack` for the protocol.

    Args:
        config: its shape.
        weights: filled.
        name: how users know it.
    """

    kind = "fused"

    def __init__(self, config: ModelConfig, weights: FusedWeights, name: str) -> None:
        self.name = name
        self.num_layers = config.num_layers
        self.vocab_size = config.vocab_size
        self.context = config.context
        self.device, self.dtype = weights.norm.device, weights.norm.dtype
        self.config = config
        self.lease: object = None
        shapes = [(config.num_kv_heads, config.head_size)] * self.num_layers
        self.cache = KVCache(shapes, self.dtype, [self.device] * self.num_layers)
        self._weights = weights
        self._group = config.num_heads // config.num_kv_heads
        self._buffers: dict[int, Buffers] = {}
        self._tabulated = 0
        """Positions that the tables have, fewer than the cache where memory ran out between the two."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """The weights by their names in a checkpoint, as views."""
        return self._weights.parts

    def reserve(self, positions: int) -> None:
        """See `LayerStack.reserve`; also tabulates the rotary embeddings and the masks."""
        self.cache.grow(positions)
        if self._tabulated != self.cache.positions:
            with torch.inference_mode(False):
                self._tabulate(self.cache.positions)

    def _tabulate(self, places: int) -> None:
        """Make the tables of so many positions; where memory runs out, those in use stay as they are, together."""
        cos, sin = rotary_tables(self.config, places, self.dtype, self.device)
        masks = _causal_bias(WIDEST, places, 2 * places, self._group, self.dtype, self.device)
        self._cos, self._sin, self._masks, self._tabulated = cos, sin, masks, places

    def embed(self, token_ids: list[int]) -> Tensor:
        """See `LayerStack.embed`."""
        return F.embedding(torch.tensor(token_ids, device=self.device), self._weights.embedding)

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int) -> Tensor:
        """See `LayerStack.run`."""
        rows = hidden.shape[0]
        if rows > CHUNK:
            starts = range(0, rows, CHUNK)
            return torch.cat(
                [self.run(hidden[at : at + CHUNK], start_layer, end_layer, position + at) for at in starts]
            )
        place = Place(
            self._cos.narrow(0, position, rows),
            self._sin.narrow(0, position, rows),
            self._mask(rows, position),
            position,
            position + rows,
            grouped=rows <= WIDEST,
        )
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        self._run_layers(hidden, self._buffers_for(rows), place, start_layer, end_layer)
        return hidden

    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """See `LayerStack.head`."""
        normed = self._buffers_for(hidden.shape[0]).norm(hidden, self._weights.norm)
        return torch.mm(normed, self._weights.head if reduced is None else reduced.weight)

    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """See `LayerStack.reduce_head`."""
        ids = ids.to(self.device)
        with torch.inference_mode(False):
            weight = right_factor(self.config.hidden_size, len(ids), self.dtype, self.device)
            return ReducedHead(ids, torch.index_select(self._weights.head, 1, ids, out=weight))

    def _run_layers(self, hidden: Tensor, buffers: "Buffers", place: "Place", start_layer: int, end_layer: int) -> None:
        """Run `hidden` [n, hidden] through layers, in place."""
        for layer, cache in zip(
            self._weights.layers[start_layer:end_layer], self.cache.layers[start_layer:end_layer], strict=True
        ):
            self._attention(layer, hidden, buffers, place, cache)
            self._mlp(layer, hidden, buffers)

    def _attention(self, layer: Layer, hidden: Tensor, buffers: "Buffers", place: "Place", cache: Tensor) -> None:
        """Add a layer's attention to `hidden` [n, hidden], and its keys and values to `cache`."""
        rows = hidden.shape[0]
        _multiply(buffers.norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias, buffers.qkv)
        rotated = buffers.queries_keys
        if layer.qk_norm is not None:
            for heads, weight in zip(buffers.queries_and_keys, layer.qk_norm, strict=True):
                heads.copy_(F.rms_norm(heads, heads.shape[-1:], weight, self.config.norm_eps))
        torch.cat(buffers.halves_swapped, -1, out=buffers.swapped)
        rotated.mul_(place.cos).addcmul_(buffers.swapped, place.sin)
        if isinstance(place.rows, int):
            cache.narrow(3, place.rows, rows).copy_(buffers.keys_values)
        else:
            cache.index_copy_(3, place.rows, buffers.keys_values)
        keys, values = cache.narrow(3, 0, place.end).unbind()
        mask = place.mask
        if place.grouped:
            attended = F.scaled_dot_product_attention(buffers.grouped_queries(), keys, values, attn_mask=mask)
            hidden.addmm_(buffers.ungroup(attended), layer.output)
        else:
            attended = F.scaled_dot_product_attention(
                buffers.queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )
            hidden.addmm_(attended[0].transpose(0, 1).reshape(rows, -1), layer.output)
        if layer.output_bias is not None:
            hidden.add_(layer.output_bias)

    def _mlp(self, layer: Layer, hidden: Tensor, buffers: "Buffers") -> None:
        """Add a layer's MLP to `hidden` [n, hidden]."""
        _multiply(buffers.norm(hidden, layer.mlp_norm), layer.gate_up, layer.gate_up_bias, buffers.gate_up)
        hidden.addmm_(F.silu(buffers.gate, inplace=True).mul_(buffers.up), layer.down)
        if layer.down_bias is not None:
            hidden.add_(layer.down_bias)

    def _mask(self, rows: int, position: int) -> Tensor | None:
        """What is added to the scores: for few rows of grouped queries, [n * group, position + n], else [n, ...].

        None where one row sees everything, and at the start of a text, where a wide span is causal as it is.
        """
        if rows == 1 or (rows > WIDEST and position == 0):
            return None
        if rows > WIDEST:
            return _causal_bias(rows, position, position + rows, 1, self.dtype, self.device)
        return self._masks[: rows * self._group].narrow(1, self._tabulated - position, position + rows)

    def _buffers_for(self, rows: int) -> "Buffers":
        buffers = self._buffers.get(rows)
        if buffers is None:
            with torch.inference_mode(False):
                buffers = Buffers(self.config, rows, self.dtype, self.device)
            if rows <= WIDEST:
                self._buffers[rows] = buffers
        return buffers


@dataclass(slots=True)
class Place:
    """Where the rows of a span lie in the text, and what they see of it.

    Attributes:
        cos, sin: of their rotary embeddings, [n, 1, head size] each.
        mask: added to their scores; see `FusedStack._mask`.
        rows: the first one's position, or where only the device knows it, all of theirs, [n].
        end: how many positions of the cache they look at; beyond what they see, the mask hides them.
        grouped: whether query heads that read the same keys are taken as rows, as the mask must have them.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    rows: int | Tensor
    end: int
    grouped: bool


class Buffers:
    """What the layers of a span of `rows` rows compute into, and every view of it that they need.

    Views cost as much as small computations; these are made once.
    """

    def __init__(self, config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_size
        self._rows, self._kv_heads, self._group, self._size = rows, kv_heads, heads // kv_heads, size
        self.qkv = empty(rows, (heads + 2 * kv_heads) * size)
        by_head = self.qkv.view(rows, -1, size)
        self.queries_keys = by_head[:, : heads + kv_heads]
        self.queries_and_keys = self.queries_keys.split_with_sizes([heads, kv_heads], 1)
        first, second = self.queries_keys.chunk(2, -1)
        self.halves_swapped = second, first
        self.swapped = empty(rows, heads + kv_heads, size)
        self.keys_values = by_head[:, heads:].view(rows, 2, kv_heads, size).permute(1, 2, 0, 3)[:, None]
        self.queries = by_head[:, :heads].transpose(0, 1)[None]
        self._by_group = by_head[:, :heads].view(rows, kv_heads, self._group, size).transpose(0, 1)
        self.gate_up = empty(rows, 2 * config.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        self._eps = config.norm_eps
        self._normed = empty(rows, config.hidden_size)
        self._plain = device.type == "cpu" and dtype == torch.float32
        if self._plain:
            self._squares = torch.empty_like(self._normed)
            self._mean = torch.full((config.hidden_size,), 1 / config.hidden_size, dtype=dtype)
            self._epsilons = torch.full((rows,), self._eps, dtype=dtype)
            self._scale = empty(rows)
            self._scale_column = self._scale[:, None]

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of [n, hidden]; the result is overwritten by the next."""
        if not self._plain:
            return F.rms_norm(hidden, weight.shape, weight, self._eps)
        # On a CPU `F.rms_norm` is a chain of small calls, none of which keeps its memory: this takes half the time.
        torch.mul(hidden, hidden, out=self._squares)
        torch.addmv(self._epsilons, self._squares, self._mean, out=self._scale).rsqrt_()
        return torch.mul(hidden, self._scale_column, out=self._normed).mul_(weight)

    def grouped_queries(self) -> Tensor:
        """Queries with all that read the same keys as rows of one head, row by row: [1, kv heads, n * group, size]."""
        return self._by_group.reshape(1, self._kv_heads, self._rows * self._group, self._size)

    def ungroup(self, attended: Tensor) -> Tensor:
        """The same of what they attended to -> [n, heads * size]."""
        by_row = attended.view(self._kv_heads, self._rows, self._group, self._size).transpose(0, 1)
        return by_row.reshape(self._rows, -1)


def _multiply(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> Any:
    if bias is None:
        return torch.mm(rows, matrix, out=out)
    return torch.addmm(bias, rows, matrix, out=out)


def _causal_bias(rows: int, position: int, width: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where row i, at position + i, may look, -inf beyond; [rows * group, width], each row `group` times.

    Columns c.. of it are the same for rows at position - c.., which makes one table serve every position.
    """
    bias = torch.full((rows, width), -torch.inf, dtype=dtype, device=device).triu_(position + 1)
    return bias.repeat_interleave(group, 0)
