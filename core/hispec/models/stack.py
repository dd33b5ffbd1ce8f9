"""What decoding asks of a model: embed tokens, run a span of its layers, read the vocabulary from a hidden state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ReducedHead:
    """The rows of a model's head that belong to some words; made by `LayerStack.reduce_head`.

    Attributes:
        ids: of these words, ascending, [words].
        weight: a copy of their rows, laid out as their stack wants it.
    """

    ids: Tensor
    weight: Tensor


Reader = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Reads hidden states [n, hidden]: the logits of the likeliest words [n], and these words [n]; of no host's knowledge."""

WriteRun = Callable[[Tensor, int, int, int, Reader], tuple[Tensor, Tensor, Tensor]]
"""What a stack may offer beside its protocol, as `write_run`; see `hispec.models.graphs.GraphedStack.write_run`."""


class LayerStack(Protocol):
    """A decoder-only model that can be run in spans of layers, one sequence at a time.

    It owns one KV cache. The rows of a span at positions p..p+n-1 overwrite what the cache held there and see
    positions 0..p+n-1, so rewinding is nothing but running a span again at an earlier position.

    Attributes:
        kind: which implementation it is.
        name: the model, as users know it.
        num_layers: depth L; exit e is the state after e layers.
        vocab_size: width of the logits.
        context: the most positions that the model supports.
        device: where its logits come out.
        dtype: of its weights.
        lease: of the decoding that the cache belongs to, whose state sets it; another one's is lost then.
    """

    kind: str
    name: str
    num_layers: int
    vocab_size: int
    context: int
    device: torch.device
    dtype: torch.dtype
    lease: object

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens; what it holds stays."""
        ...

    def embed(self, token_ids: list[int]) -> Tensor:
        """Token ids -> hidden states [n, hidden]."""
        ...

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int) -> Tensor:
        """Run rows [n, hidden] at `position`.. through layers start_layer..end_layer-1; returns [n, hidden]."""
        ...

    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Final norm and LM head: [n, hidden] -> logits [n, vocab_size], or [n, words] of a reduced head."""
        ...

    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """A head of the words `ids` only, ascending [words]; a copy of their rows."""
        ...
