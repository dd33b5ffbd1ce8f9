"""Tensor parallelism of the fused stack: every rank holds some heads and some of the MLP of each layer.

A rank's shard is a smaller model of the same hidden size. So its weights are packed, quantized and run as those of a whole
model, but for two sums over all ranks in each layer, after the attention and after the MLP; and logits, of which each rank
computes those of some token ids, are gathered. Embedding and norms are whole on every rank.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed

from hispec.limits import WIDEST_PASS
from hispec.models.config import ModelConfig

BY_OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Maps of which a rank has some outputs."""
BY_INPUTS = ("o_proj", "down_proj")
"""Matrices of which a rank has some inputs: their contribution to the hidden states is the sum over all ranks."""
HEAD = "lm_head"


@dataclass(frozen=True)
class Shard:
    """The part of a model that one of several ranks holds; all ranks must make the same calls of `sum`, `gather` and
    `agree`.

    Attributes:
        rank: the number of this process.
        count: the number of ranks; it divides the model's key/value heads and the inner size of its MLP.
    """

    rank: int
    count: int

    def config(self, config: ModelConfig) -> ModelConfig:
        """Return the shape of the part."""
        return replace(
            config,
            num_heads=config.num_heads // self.count,
            num_kv_heads=config.num_kv_heads // self.count,
            intermediate_size=config.intermediate_size // self.count,
        )

    def divides(self, config: ModelConfig) -> bool:
        """Return whether the ranks can share a model evenly."""
        return config.num_kv_heads % self.count == config.intermediate_size % self.count == 0

    def token_ids(self, vocab_size: int) -> range:
        """Return the token ids whose logits this rank computes: all where their number cannot be divided."""
        if vocab_size % self.count:
            return range(vocab_size)
        own = vocab_size // self.count
        return range(self.rank * own, (self.rank + 1) * own)

    def shape(self, name: str, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the part of a tensor of a checkpoint.

        Args:
            name: the name of the tensor.
            whole: its shape.
        """
        ranges = self._ranges(name, whole)
        return whole if ranges is None else tuple(map(len, ranges))

    def cut(self, name: str, whole: tuple[int, ...], stored: Any) -> Tensor:
        """Return the part of a tensor of a checkpoint.

        Args:
            name: the name of the tensor.
            whole: its shape.
            stored: the tensor, or its slice in safetensors, of which only the part is read.
        """
        ranges = self._ranges(name, whole)
        part: Tensor = stored[:] if ranges is None else stored[tuple(slice(own.start, own.stop) for own in ranges)]
        if self.rank and len(whole) == 1 and _map_of(name) in BY_INPUTS:
            return torch.zeros_like(part)  # a bias is added once, by the first rank
        return part

    def _ranges(self, name: str, whole: tuple[int, ...]) -> list[range] | None:
        """Return the range of each dimension that this rank holds; None for the whole tensor."""
        ranges, kind = [range(size) for size in whole], _map_of(name)
        if kind == HEAD:
            ranges[0] = self.token_ids(whole[0])
            return ranges
        dimension = 0 if kind in BY_OUTPUTS else 1
        if kind not in BY_OUTPUTS + BY_INPUTS or dimension >= len(whole):
            return None
        own = whole[dimension] // self.count
        ranges[dimension] = range(self.rank * own, (self.rank + 1) * own)
        return ranges

    def sum(self, product: Tensor) -> Tensor:
        """Return the sum of rows [n, hidden] over all ranks, the same bits on each; `product` is given up.

        A reduction of NCCL or gloo divides the numbers among the ranks, and adds each part in another order: a row would
        depend on its place in a pass. So all ranks add those of a pass in the order of the ranks, which also takes one
        exchange instead of two. Only chunks of a prompt, which are always cut alike, are large enough for the reduction.
        """
        if len(product) > WIDEST_PASS:
            distributed.all_reduce(product)
            return product
        return self._gathered(product).sum(0)

    def gather(self, logits: Tensor) -> Tensor:
        """Return the logits of all token ids, [n, vocab], from those of each rank's part of the vocabulary."""
        return self._gathered(logits).transpose(0, 1).reshape(len(logits), -1)

    def agree(self, value: Any) -> Any:
        """Return the value that the first rank passed, for example measured times."""
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def _gathered(self, own: Tensor) -> Tensor:
        """Return the tensors that all ranks passed, [ranks, ...]."""
        parts = own.new_empty(self.count * len(own), *own.shape[1:])
        # torch 2.13 gave it a new name, and warns of the old one.
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
        gather(parts, own.contiguous())
        return parts.view(self.count, *own.shape)


def _map_of(name: str) -> str:
    """Return which linear map, or else which module, a tensor of a checkpoint belongs to."""
    return name.split(".")[-2] if "." in name else name
