"""The interface of models: embed tokens, run a span of layers, read logits from a hidden state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hispec.models.cache import KVCache
from hispec.models.linear import Linear
from hispec.models.rows import RowCounts, Width
from hispec.settings import Quantization


@dataclass(frozen=True, eq=False)
class ReducedHead:
    """The rows of a model's head that belong to some token ids; made by `LayerStack.reduce_head`.

    Attributes:
        ids: these token ids, ascending, [vocab].
        linear: a copy of their rows, held as their stack holds its head: normed hidden states -> logits [n, vocab].
    """

    ids: Tensor
    linear: Linear


ArgmaxHead = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Reads hidden states [n, hidden]: returns the highest logits [n] and their token ids [n], without waiting for the
device.
"""


class LayerStack(Protocol):
    """A decoder-only model that can be run in spans of layers, one sequence at a time.

    It has one KV cache, which stacks of other weights of the same model may share. The rows of a span at positions
    p..p+n-1 overwrite what the cache held there and see positions 0..p+n-1, so rewinding is nothing but running a span
    again at an earlier position.

    Attributes:
        kind: the name of the implementation.
        name: the model, as users know it.
        num_layers: depth L; exit e is the state after e layers.
        vocab_size: width of the logits.
        context: the most positions that the model supports.
        device: the device of its logits.
        dtype: the dtype of its weights.
        cache: the KV cache; stacks that share one are copies of one model at several precisions.
        rows: the row counts of its passes.
        narrow: the most rows of a pass that surely read its own weights, where these are quantized copies; wider ones
            may read the full ones.
    """

    kind: str
    name: str
    num_layers: int
    vocab_size: int
    context: int
    device: torch.device
    dtype: torch.dtype
    cache: KVCache
    rows: RowCounts
    narrow: int

    def prepare(self, width: Width) -> None:
        """Make a loaded model ready to run, with passes of some width; see `hispec.models.rows`."""
        ...

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens; its content is kept."""
        ...

    def clear(self) -> None:
        """Zero the KV cache, which may contain NaN."""
        ...

    def embed(self, token_ids: list[int]) -> Tensor:
        """Return token ids -> hidden states [n, hidden]."""
        ...

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int, *, prompt: bool = False) -> Tensor:
        """Run rows [n, hidden] at `position`.. through layers start_layer..end_layer-1; returns [n, hidden].

        `prompt` says that they are rows of a prompt; see `RowCounts.passes`.
        """
        ...

    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Return the logits of the final norm and the LM head: [n, hidden] -> [n, vocab_size], or [n, vocab] of a reduced head."""
        ...

    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """Return a head of the token ids `ids` only, ascending [vocab]; it is a copy of their rows."""
        ...

    def quantized(self, quantization: Quantization, layers: int | None = None) -> "LayerStack":
        """Return a stack that reads quantized copies of the first layers' weights, and shares the cache.

        One that was made before is returned again, if it is deep enough.

        Args:
            quantization: format of the copies.
            layers: the least number of layers in the copy; by default all.

        Raises:
            UnavailableError: the stack has no such copies, or its device no kernels for them.
        """
        ...

    def write_run(
        self, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a token through layers 0..end_layer-1, then the token read from it, and so on.

        Args:
            token: the first, [1].
            end_layer: the layer at which a token is read.
            position: the position of the first token.
            count: the number of tokens that are run and read.
            read: reads a token; equal readers read alike.

        Returns:
            What was read: the tokens [count] and their logits [count]; and the hidden states that they were read from,
            [count, hidden].
        """
        ...


def name_of_copy(model: str, weights: str) -> str:
    """Return the name of the stack that reads quantized copies of a model's weights."""
    return f"{model} {weights}"


def write_stepwise(
    stack: LayerStack, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `LayerStack.write_run` promises, one call of `run` for each token."""
    tokens, highest, hidden = [], [], []
    for step in range(count):
        hidden.append(stack.run(stack.embed(token.tolist()), 0, end_layer, position + step))
        logit, token = read(hidden[-1])
        tokens.append(token)
        highest.append(logit)
    return torch.cat(tokens), torch.cat(highest), torch.cat(hidden)
