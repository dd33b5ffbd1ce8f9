"""What decoding asks of a model: embed tokens, run a span of its layers, read the vocabulary from a hidden state."""

from typing import Protocol

import torch
from torch import Tensor


class LayerStack(Protocol):
    """A decoder-only model that can be run in spans of layers, one sequence at a time.

    It owns one KV cache. The rows of a span at positions p..p+n-1 overwrite what the cache held there and see
    positions 0..p+n-1, so rewinding is nothing but running a span again at an earlier position.

    Attributes:
        name: the model, as users know it.
        num_layers: depth L; exit e is the state after e layers.
        vocab_size: width of the logits.
        context: the most positions that the model supports.
        device: where its logits come out.
        lease: of the decoding that the cache belongs to, whose state sets it; another one's is lost then.
    """

    name: str
    num_layers: int
    vocab_size: int
    context: int
    device: torch.device
    lease: object

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens; what it held is lost."""
        ...

    def embed(self, token_ids: list[int]) -> Tensor:
        """Token ids -> hidden states [n, hidden]."""
        ...

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int) -> Tensor:
        """Run rows [n, hidden] at `position`.. through layers start_layer..end_layer-1; returns [n, hidden]."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Final norm and LM head: [n, hidden] -> logits [n, vocab_size]."""
        ...
