"""A model of the Llama family on several devices: a fused stack for the layers of each device, one after the other.

The first has the embedding and the head, so that what reads shallow exits stays there. Every stage records its own spans;
between two stages go a few rows of hidden states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hispec.models.cache import KVCache
from hispec.models.fused_stack import FusedStack
from hispec.models.rows import RowCounts, Width
from hispec.models.stack import ArgmaxHead, ReducedHead, write_stepwise
from hispec.settings import Quantization


class StagedStack:
    """Several fused stacks as one; see `LayerStack` for the protocol.

    Args:
        stages: stacks that have run nothing yet, in the order of their layers; the first has the embedding and the
            head.
        origin: the model that the stack was made from; see `FusedStack`.

    Attributes:
        stages: the fused stacks.
        origin: None for a stack with a KV cache of its own.
    """

    kind = "fused"

    def __init__(self, stages: Sequence[FusedStack], origin: "StagedStack | None" = None) -> None:
        first = stages[0]
        self.stages, self.origin = list(stages), origin
        self.name, self.config = first.name, first.config
        self.vocab_size, self.context = first.vocab_size, first.context
        self.device, self.dtype = first.device, first.dtype
        self.num_layers = self.stages[-1].num_layers
        self.narrow = min(stage.narrow for stage in stages)
        self.rows = RowCounts()
        self._copies: dict[Quantization, StagedStack] = {}
        if origin is None:
            shapes = [(self.config.num_kv_heads, self.config.head_size)] * self.num_layers
            self.cache = KVCache(shapes, self.dtype, self.devices)
            for stage in stages:
                stage.join(first, self.cache)
        else:
            self.cache = origin.cache

    @property
    def devices(self) -> list[torch.device]:
        """Return where each layer is."""
        return [stage.device for stage in self.stages for _ in range(stage.first, stage.num_layers)]

    @property
    def quantization(self) -> Quantization | None:
        """Return the format of the matrices; None for plain numbers."""
        return self.stages[0].quantization

    @property
    def quantized_bytes(self) -> int:
        """Return bytes of the quantized matrices; 0 where none are."""
        return sum(stage.quantized_bytes for stage in self.stages)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Return the weights by their names in a checkpoint: views, or copies of packed ones."""
        return {name: part for stage in self.stages for name, part in stage.parts.items()}

    def quantized(self, quantization: Quantization, layers: int | None = None) -> "StagedStack":
        """Return a stack that reads quantized copies of the first layers' weights, and shares the cache.

        See `LayerStack.quantized`. Every device has its own part of the copy.
        """
        layers = self.num_layers if layers is None else layers
        known = self._copies.get(quantization)
        if known is None or known.num_layers < layers:
            copies = [stage.quantized(quantization, layers) for stage in self.stages if stage.first < layers]
            known = self._copies[quantization] = StagedStack(copies, self)
        return known

    def prepare(self, width: Width) -> None:
        """Make a loaded model ready to run, with passes of some width.

        See `LayerStack.prepare`. The row counts are tried on the first device; all are assumed to be alike.
        """
        if self.origin is None:
            first, *others = self.stages
            first.prepare(width)
            self.rows = first.rows
            for stage in others:
                stage.prepare_as(first)

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens; see `LayerStack.reserve`."""
        for stage in self.stages if self.origin is None else self.origin.stages:
            stage.reserve(positions)

    def clear(self) -> None:
        """Zero the KV cache, which may contain NaN; see `LayerStack.clear`."""
        self.cache.clear()

    def embed(self, token_ids: list[int]) -> Tensor:
        """Return token ids -> hidden states [n, hidden]; see `LayerStack.embed`."""
        return self.stages[0].embed(token_ids)

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int, *, prompt: bool = False) -> Tensor:
        """Run rows [n, hidden] at `position`; see `LayerStack.run`."""
        for stage in self.stages:
            first, last = max(start_layer, stage.first), min(end_layer, stage.num_layers)
            if first < last:
                hidden = stage.run(hidden.to(stage.device), first, last, position, prompt=prompt)
        return hidden

    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Return the logits of the final norm and the LM head; see `LayerStack.head`."""
        return self.stages[0].head(hidden.to(self.device), reduced)

    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """Return a head of the token ids `ids` only, ascending [vocab]; see `LayerStack.reduce_head`."""
        return self.stages[0].reduce_head(ids)

    def write_run(
        self, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a token through layers 0..end_layer-1, then the token read from it, and so on.

        See `LayerStack.write_run`. It is one call if the first stage has all these layers.
        """
        first = self.stages[0]
        if end_layer <= first.num_layers:
            return first.write_run(token, end_layer, position, count, read)
        return write_stepwise(self, token, end_layer, position, count, read)
