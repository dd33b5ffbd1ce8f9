"""The Llama family as a layer stack of our own: packed weights, few calls, nothing allocated that can be kept.

The mathematics is that of the `transformers` layers; tests hold the two equal. Nothing here depends on a token's value
or waits for a device.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.limits import WIDEST
from hispec.machine import give_back_memory
from hispec.models.cache import KVCache
from hispec.models.config import ModelConfig
from hispec.models.fused_weights import FusedWeights, Layer
from hispec.models.linear import Linear
from hispec.models.passes import Buffers, PassPlace, Window, causal_bias, without_cudnn
from hispec.models.rotary import rotary_tables
from hispec.models.rows import (
    BUCKET,
    CANDIDATES,
    RowCounts,
    Width,
    choose_rows,
    in_passes,
    pad_rows,
    prompt_rows,
)
from hispec.models.stack import ArgmaxHead, ReducedHead, name_of_copy, write_stepwise
from hispec.settings import Quantization


class Shared:
    """The KV cache of a model with what belongs to its positions, shared by all stacks of the model.

    Args:
        config: the model's shape.
        dtype: the dtype of keys and values.
        device: the device of keys and values.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        shapes = [(config.num_kv_heads, config.head_size)] * config.num_layers
        self.cache = KVCache(shapes, dtype, [device] * config.num_layers)
        self.cos = self.sin = self.masks = torch.empty(0)
        self.columns = torch.empty(0, dtype=torch.long)
        """Numbers of the masks' columns; see `GraphedStack`."""
        self.tabulated = 0
        """Positions that the tables have, fewer than the cache where memory ran out between the two."""
        self.recorded: dict[Hashable, Callable[[], None] | None] = {}
        """The graphs that write to the cache, of all stacks; see `GraphedStack`."""


class FusedStack:
    """A model of the Llama family; see `LayerStack` for the protocol.

    Args:
        config: the model's shape; with ranks, the shape of this rank's part.
        weights: filled.
        name: the name that users know the model by.
        origin: the stack of the model's full weights, whose KV cache and tables this one shares: it reads
            and writes the other's keys and values. Its passes have as many rows as there are tokens.

    Attributes:
        origin: None for a stack with a KV cache of its own.
        first: number of its first layer: 0, but for the later stages of a `StagedStack`.
    """

    kind = "fused"

    def __init__(
        self, config: ModelConfig, weights: FusedWeights, name: str, origin: "FusedStack | None" = None
    ) -> None:
        self.name, self.origin = name, origin
        self.first = weights.span.start
        self.num_layers = self.first + len(weights.layers)
        self.vocab_size = config.vocab_size
        self.context = config.context
        self.device, self.dtype = weights.device, weights.dtype
        self.config = config
        self._shared: Shared = Shared(config, self.dtype, self.device) if origin is None else origin._shared
        self._weights, self._shard = weights, weights.shard
        self._group = config.num_heads // config.num_kv_heads
        self._suits_cuda = self.device.type == "cuda"
        """Whether attention is called in the way that its kernels on CUDA support: those that take masks need them
        aligned, and cannot share key/value heads. Otherwise torch falls back to several kernels.
        """
        self._buffers: dict[int, Buffers] = {}
        self._copies: dict[Quantization, FusedStack] = {}
        self.rows = RowCounts()
        self.narrow = weights.narrow

    @property
    def cache(self) -> KVCache:
        """Return the KV cache, which may be another stack's too."""
        return self._shared.cache

    @cache.setter
    def cache(self, cache: KVCache) -> None:
        self._shared.cache = cache

    @property
    def quantization(self) -> Quantization | None:
        """Return the format of the matrices; None for plain numbers."""
        return self._weights.quantization

    @property
    def quantized_bytes(self) -> int:
        """Return bytes of the quantized matrices; 0 where none are."""
        return self._weights.nbytes

    def quantized(self, quantization: Quantization, layers: int | None = None) -> "FusedStack":
        """Return a stack that reads quantized copies of the first layers' weights, and shares the cache.

        See `LayerStack.quantized`. The copy shares embedding, norms, biases and all tables.

        Its matrices are made one after the other. One is multiplied by its full weights where a pass has so many rows
        that they are faster. Its head is the whole model's, or a copy of that in 8 bits; see `heads_in_8_bits`.
        """
        layers = self.num_layers if layers is None else layers
        known = self._copies.get(quantization)
        if known is None or known.num_layers < layers:
            self._weights.pack()  # else packing would later leave the copies with full weights of their own
            weights = self._weights.quantized(quantization, layers)
            known = self._copies[quantization] = self._beside(weights, name_of_copy(self.name, quantization))
            give_back_memory()  # each matrix was held in full while it was quantized
        return known

    def _beside(self, weights: FusedWeights, name: str) -> "FusedStack":
        return FusedStack(self.config, weights, name, self)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Return the weights by their names in a checkpoint: views, or copies of packed ones."""
        return self._weights.dense()

    def prepare(self, width: Width) -> None:
        """Make a loaded model ready to run, with passes of some width.

        See `LayerStack.prepare`. Weights are packed for the processor, too.

        Only the target's stack needs this: other stacks need not give the same bits at every width.
        """
        if self.origin is not None:
            return
        self._weights.pack()
        self._shared.tabulated = 0
        self.rows = choose_rows(self, width, self._weights.row_counts(CANDIDATES), prompt_rows(self.device))

    def join(self, before: "FusedStack", cache: KVCache) -> None:
        """Become a stage of a model that others have the first layers of.

        Args:
            before: the first stage, which may be this one; its graphs are kept with those of the others, so that all
                are dropped together.
            cache: the cache of the whole model.
        """
        self._shared.cache, self._shared.recorded = cache, before._shared.recorded

    def prepare_as(self, before: "FusedStack") -> None:
        """Make ready to run with the row counts of the first stage; see `LayerStack.prepare`."""
        self._weights.pack()
        self._shared.tabulated = 0
        self.rows = before.rows

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens.

        See `LayerStack.reserve`. Also tabulates the rotary embeddings, of padding too, and the masks.
        """
        if self.origin is not None:
            self.origin.reserve(positions)
            return
        self.cache.grow(positions)
        if self._shared.tabulated != self.cache.positions:
            with torch.inference_mode(False):
                self._tabulate(self.cache.positions)

    def _tabulate(self, places: int) -> None:
        """Make the tables for a number of positions; if memory runs out, the old tables stay in use together."""
        cos, sin = rotary_tables(self.config, places + self.rows.padding, self.dtype, self.device)
        masks = causal_bias(WIDEST, places, 2 * places + BUCKET, self._group, self.dtype, self.device)
        shared = self._shared
        shared.cos, shared.sin, shared.masks, shared.tabulated = cos, sin, masks, places

    def clear(self) -> None:
        """Zero the KV cache, which may contain NaN; see `LayerStack.clear`."""
        self.cache.clear()

    def embed(self, token_ids: list[int]) -> Tensor:
        """Return token ids -> hidden states [n, hidden]; see `LayerStack.embed`."""
        return F.embedding(torch.tensor(token_ids, device=self.device), self._weights.embedding)

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int, *, prompt: bool = False) -> Tensor:
        """Run rows [n, hidden] at `position`; see `LayerStack.run`."""
        done, at = [], 0
        for rows, padded in self.rows.passes(len(hidden), position, prompt=prompt):
            done.append(self._pass(hidden[at : at + rows], padded, start_layer, end_layer, position + at))
            at += rows
        return done[0] if len(done) == 1 else torch.cat(done)

    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Return the logits of the final norm and the LM head; see `LayerStack.head`."""
        if reduced is not None:  # never the target's: no padding is owed
            return reduced.linear(self._buffers_for(len(hidden)).norm(hidden, self._weights.norm))
        return in_passes(self.rows, self._whole_head, hidden)

    def _whole_head(self, hidden: Tensor) -> Tensor:
        logits = self._weights.head(self._buffers_for(len(hidden)).norm(hidden, self._weights.norm))
        return self._shard.gather(logits) if self._shard and self._weights.shares_head else logits

    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """Return a head of the token ids `ids` only, ascending [vocab]; see `LayerStack.reduce_head`."""
        ids = ids.to(self.device)
        with torch.inference_mode(False):
            return ReducedHead(ids, self._weights.reduced_head(ids))

    def _pass(self, hidden: Tensor, padded: int, start_layer: int, end_layer: int, position: int) -> Tensor:
        """Run rows [n, hidden] through layers in one pass of `padded` rows."""
        rows = len(hidden)
        place = PassPlace(
            self._shared.cos.narrow(0, position, padded),
            self._shared.sin.narrow(0, position, padded),
            position,
            rows,
            self._windows(rows, padded, position),
            self._is_grouped(padded, position),
        )
        hidden = pad_rows(hidden, padded) if padded > rows else hidden.clone(memory_format=torch.contiguous_format)
        self._run_layers(hidden, self._buffers_for(padded), place, start_layer, end_layer)
        return hidden[:rows]

    def _windows(self, rows: int, padded: int, position: int) -> tuple[Window, ...]:
        """Return the windows that rows at `position`.. attend to: one, or two if they reach into the next bucket."""
        first, last = self.rows.length(position + 1), self.rows.length(position + rows)
        if self.rows.free or first == last:
            return (Window(0, rows, last, self._mask(padded, position, last)),)
        inside = first - position
        return (
            Window(0, inside, first, self._mask(padded, position, first)),
            Window(inside, rows, last, self._mask(padded, position, last)),
        )

    def write_run(
        self, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a token through layers 0..end_layer-1, then the token read from it, and so on.

        See `LayerStack.write_run`.
        """
        return write_stepwise(self, token, end_layer, position, count, read)

    def _run_layers(self, hidden: Tensor, buffers: Buffers, place: PassPlace, start_layer: int, end_layer: int) -> None:
        """Run `hidden` [n, hidden] through layers, in place."""
        with without_cudnn(self.device):
            layers = self._weights.layers[start_layer - self.first : end_layer - self.first]
            for layer, cache in zip(layers, self.cache.layers[start_layer:end_layer], strict=True):
                self._attention(layer, hidden, buffers, place, cache)
                self._mlp(layer, hidden, buffers)

    def _attention(self, layer: Layer, hidden: Tensor, buffers: Buffers, place: PassPlace, cache: Tensor) -> None:
        """Add a layer's attention to `hidden` [n, hidden], and its keys and values to `cache`."""
        layer.qkv(buffers.norm(hidden, layer.attention_norm), buffers.qkv)
        rotated = buffers.queries_keys
        if layer.qk_norm is not None:
            for heads, weight in zip(buffers.queries_and_keys, layer.qk_norm, strict=True):
                heads.copy_(F.rms_norm(heads, heads.shape[-1:], weight, self.config.norm_eps))
        torch.cat(buffers.halves_swapped, -1, out=buffers.swapped)
        rotated.mul_(place.cos).addcmul_(buffers.swapped, place.sin)
        if isinstance(place.position, int):
            cache.narrow(3, place.position, place.rows).copy_(buffers.keys_values.narrow(3, 0, place.rows))
        else:
            cache.index_copy_(3, place.position, buffers.keys_values)
        if place.grouped:
            self._add(layer.output, hidden, self._attend(buffers, cache, place.windows))
        else:
            ((_, _, length, mask),) = place.windows
            keys, values = cache.narrow(3, 0, length).unbind()
            attended = F.scaled_dot_product_attention(
                buffers.queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )
            self._add(layer.output, hidden, attended[0].transpose(0, 1).reshape(len(hidden), -1))

    def _attend(self, buffers: Buffers, cache: Tensor, windows: tuple[Window, ...]) -> Tensor:
        """Return the attention output of the queries in the buffers, [n, heads * size]."""
        attended = []
        for window in windows:
            keys, values = cache.narrow(3, 0, window.length).unbind()
            found = F.scaled_dot_product_attention(buffers.grouped_queries(), keys, values, attn_mask=window.mask)
            attended.append(buffers.ungroup(found))
        if len(windows) == 1:
            return attended[0]
        inside = windows[0].stop
        attended[1][:inside] = attended[0][:inside]
        return attended[1]

    def _mlp(self, layer: Layer, hidden: Tensor, buffers: Buffers) -> None:
        """Add a layer's MLP to `hidden` [n, hidden]."""
        layer.gate_up(buffers.norm(hidden, layer.mlp_norm), buffers.gate_up)
        self._add(layer.down, hidden, F.silu(buffers.gate, inplace=True).mul_(buffers.up))

    def _add(self, linear: Linear, hidden: Tensor, rows: Tensor) -> None:
        """Add a product [n, hidden] to `hidden`, in place: the sum of those of all ranks, where they share the matrix."""
        if self._shard is None:
            linear.add_to(hidden, rows)
        else:
            hidden.add_(self._shard.sum(linear(rows)))

    def _is_grouped(self, rows: int, position: int) -> bool:
        """Return whether query heads that share a key head are computed as rows of one head, see `PassPlace`.

        The start of a text is not grouped if it is wide enough to keep a device busy: it needs no mask, and without
        one, kernels on CUDA that support shared heads can run it in half precision. Later chunks of a prompt do
        need one.
        """
        if rows <= WIDEST or not self.rows.free:
            return True
        return self._suits_cuda and (position > 0 or self.dtype == torch.float32)

    def _mask(self, rows: int, position: int, length: int) -> Tensor | None:
        """Return the mask that is added to the scores: for grouped queries [n * group, length], else [n, length].

        None where one row sees everything, and at the start of a text, where a wide pass is causal as it is.
        """
        grouped = self._is_grouped(rows, position)
        if (self.rows.free and rows == 1) or not (grouped or position):
            return None
        if rows > WIDEST:
            group = self._group if grouped else 1
            return causal_bias(rows, position, length, group, self.dtype, self.device)
        mask = self._shared.masks[: rows * self._group].narrow(1, self._shared.tabulated - position, length)
        return mask.clone(memory_format=torch.contiguous_format) if self._suits_cuda else mask

    def _buffers_for(self, rows: int) -> Buffers:
        buffers = self._buffers.get(rows)
        if buffers is None:
            with torch.inference_mode(False):
                buffers = Buffers(self.config, rows, self.dtype, self.device)
            if rows <= WIDEST:
                self._buffers[rows] = buffers
        return buffers
