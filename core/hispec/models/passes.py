"""The working data of one pass of the fused stack: buffers, positions, masks, and the windows that rows attend to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.limits import SMALL_MATRIX
from hispec.models.config import ModelConfig


class Window(NamedTuple):
    """The part of the text that some rows of a pass attend to.

    Attributes:
        start, stop: the rows that it is for; the results of others are not used.
        length: the number of cache positions that attention reads.
        mask: added to the scores, it hides positions that come after a row; see `FusedStack._mask`.
    """

    start: int
    stop: int
    length: int
    mask: Tensor | None


@dataclass(slots=True)
class PassPlace:
    """The positions of a pass's rows in the text, and what they attend to.

    Attributes:
        cos, sin: the rotary embeddings of the rows, [n, 1, head size] each.
        position: the first one's, or where only the device knows it, all of theirs, [n].
        rows: the number of rows that are tokens; the others are padding.
        windows: what the rows attend to, by window.
        grouped: whether query heads that read the same keys are taken as rows, as the masks must have them.
    """

    cos: Tensor
    sin: Tensor
    position: int | Tensor
    rows: int
    windows: tuple[Window, ...]
    grouped: bool


class Buffers:
    """The buffers of a span of `rows` rows, and every view of them that it needs.

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
        self._plain = device.type == "cpu" and dtype == torch.float32 and config.largest_matrix < SMALL_MATRIX
        if self._plain:
            self._squares = torch.empty_like(self._normed)
            self._mean = torch.full((config.hidden_size,), 1 / config.hidden_size, dtype=dtype)
            self._epsilons = torch.full((rows,), self._eps, dtype=dtype)
            self._scale = empty(rows)
            self._scale_column = self._scale[:, None]

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return the RMS norm of [n, hidden]; the result is overwritten by the next."""
        if not self._plain:
            return F.rms_norm(hidden, weight.shape, weight, self._eps)
        # On a CPU `F.rms_norm` is a chain of small calls, none of which keeps its memory: this takes half the time, which
        # counts where layers are so small that they are not packed. Its sums depend on how many rows there are.
        torch.mul(hidden, hidden, out=self._squares)
        torch.addmv(self._epsilons, self._squares, self._mean, out=self._scale).rsqrt_()
        return torch.mul(hidden, self._scale_column, out=self._normed).mul_(weight)

    def grouped_queries(self) -> Tensor:
        """Return the queries, [1, kv heads, n * group, size]: those that share a key head are rows of one head."""
        return self._by_group.reshape(1, self._kv_heads, self._rows * self._group, self._size)

    def ungroup(self, attended: Tensor) -> Tensor:
        """Return their attention output in the original order, [n, heads * size]."""
        by_row = attended.view(self._kv_heads, self._rows, self._group, self._size).transpose(0, 1)
        return by_row.reshape(self._rows, -1)


@contextmanager
def without_cudnn(device: torch.device) -> Iterator[None]:
    """Keep attention from cuDNN, which torch prefers on Hopper: it plans for tens of milliseconds at every new shape."""
    chosen = device.type == "cuda" and torch._C._get_cudnn_sdp_enabled()
    if chosen:
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if chosen:
            torch.backends.cuda.enable_cudnn_sdp(True)


def causal_bias(rows: int, position: int, width: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 0 where row i, at position + i, may look, else -inf; [rows * group, width], each row `group` times.

    Columns c.. of it are the same for rows at position - c.., which makes one table serve every position.
    """
    bias = torch.full((rows, width), -torch.inf, dtype=dtype, device=device).triu_(position + 1)
    return bias.repeat_interleave(group, 0)
