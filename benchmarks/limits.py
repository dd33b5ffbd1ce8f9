"""Computes the bytes that a way of decoding reads, measures the memory bandwidth, and derives the highest speed.

The formulas are those of weights that are streamed once a pass, batch 1: with w bytes a layer, H of a head, B the read
bandwidth, and g(a, n) = (1 - a^n) / (1 - a) tokens from a run of n of which each is accepted with probability a,

- the target alone gives B / (L w + H) tokens per second,
- single-layer speculation at exit E, k drafts: g(a, k) B / (k (E w + H1) + (L - E) w + H),
- hispec at exits E1, E2: N_i / g(a1, N_d) cycles of N_d (E1 w + H1) + (E2 - E1) w + H2 bytes, then (L - E2) w + H, for
  g(a2, N_i) tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from hispec.decoding.hierarchy import Hierarchy
from hispec.events import Drafted, Event, Prefilled, Verified
from hispec.models.config import ModelConfig


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model in its dtype: of a layer, of a row of the head, and of a position's keys and values in a layer."""

    layers: int
    vocab_size: int
    layer: int
    head_row: int
    position: int

    @classmethod
    def of(cls, config: ModelConfig, itemsize: int) -> "Sizes":
        """Return the sizes of a configuration."""
        heads = 2 * config.num_heads + 2 * config.num_kv_heads
        return cls(
            config.num_layers,
            config.vocab_size,
            config.hidden_size * (heads * config.head_size + 3 * config.intermediate_size) * itemsize,
            config.hidden_size * itemsize,
            2 * config.num_kv_heads * config.head_size * itemsize,
        )

    @property
    def total(self) -> int:
        """Return the bytes of a pass through the whole model at an empty context."""
        return self.layers * self.layer + self.vocab_size * self.head_row

    def head(self, size: int | None) -> int:
        """Return the bytes of a head of that size; None means the whole head."""
        return (self.vocab_size if size is None else size) * self.head_row


def tokens_of_run(acceptance: float, length: int) -> float:
    """Return g(a, n): the mean number of tokens that a verified run of n yields, the correction among them."""
    return sum(acceptance**at for at in range(length))


def limit(
    bandwidth: float,
    sizes: Sizes,
    exits: Sequence[int],
    heads: Sequence[int | None],
    periods: Sequence[int],
    acceptance: Sequence[float],
) -> float | None:
    """Return tokens per second at best; None for hierarchies of more than three levels.

    Args:
        bandwidth: bytes per second.
        sizes: the sizes of the model.
        exits: the exits of the levels, the last the whole depth.
        heads: the head size of each level, None for the whole head.
        periods: per level above the first, tokens that wait before it verifies.
        acceptance: per level above the first, of tokens that it verifies.
    """
    match exits:
        case (depth,):
            return bandwidth / (depth * sizes.layer + sizes.head(None))
        case (draft, depth):
            drafting = periods[0] * (draft * sizes.layer + sizes.head(heads[0]))
            cost: float = drafting + (depth - draft) * sizes.layer + sizes.head(None)
            return bandwidth * tokens_of_run(acceptance[0], periods[0]) / cost
        case (draft, middle, depth):
            cycle = periods[0] * (draft * sizes.layer + sizes.head(heads[0]))
            cycle += (middle - draft) * sizes.layer + sizes.head(heads[1])
            cycles = periods[1] / tokens_of_run(acceptance[0], periods[0])
            cost = cycles * cycle + (depth - middle) * sizes.layer + sizes.head(None)
            return bandwidth * tokens_of_run(acceptance[1], periods[1]) / cost
        case _:
            return None


@dataclass
class Traffic:
    """The work of one level: passes, rows with logits, seconds, bytes, and verifications of single tokens."""

    passes: int = 0
    rows: int = 0
    seconds: float = 0.0
    bytes: int = 0
    accepted: int = 0
    rejected: int = 0

    def add(self, other: "Traffic") -> None:
        """Add the work of another answer."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def acceptance(self) -> float | None:
        """Return the share of verified tokens that was accepted; those after a rejected one do not count."""
        verified = self.accepted + self.rejected
        return self.accepted / verified if verified else None


class Meter:
    """Computes the traffic of each level from the events of one answer.

    Args:
        hierarchy: a hierarchy whose levels all read one model.
        sizes: the sizes of that model.
    """

    def __init__(self, hierarchy: Hierarchy, sizes: Sizes) -> None:
        self._hierarchy, self._sizes = hierarchy, sizes
        self._names = [level.name for level in hierarchy.levels]
        self._length = 0
        self._frontier = [0] * len(self._names)
        self.levels = {name: Traffic() for name in self._names}
        self.prefill_seconds = 0.0

    def see(self, event: Event) -> None:
        """Add one event."""
        match event:
            case Prefilled():
                self._length = event.prompt_tokens + 1
                self._frontier = [event.prompt_tokens] * len(self._names)
                self.prefill_seconds = event.seconds
            case Drafted():
                level = self._names.index(event.level)
                traffic = self.levels[event.level]
                traffic.seconds += event.seconds
                traffic.rows += len(event.token_ids)
                for _ in event.token_ids:
                    traffic.passes += self._hierarchy.levels[level].stack is not None
                    traffic.bytes += self._run(level, self._length)
                    self._length += 1
            case Verified():
                level = self._names.index(event.level)
                traffic = self.levels[event.level]
                corrected = event.accepted < event.proposed
                own = event.correction is not None
                traffic.seconds += event.seconds
                traffic.passes += 1
                traffic.rows += event.proposed
                traffic.accepted += event.accepted
                traffic.rejected += corrected
                traffic.bytes += self._run(level, self._length - 1 + (own and not corrected))
                kept = self._length - event.proposed + event.accepted
                if corrected:
                    self._frontier = [min(frontier, kept) for frontier in self._frontier]
                self._length = kept + own

    def _run(self, level: int, upto: int) -> int:
        """Return bytes read for a level's logits up to a position: its own layers, those below that lag behind, and its
        head.
        """
        own, sizes, read = self._hierarchy.levels[level], self._sizes, 0
        if own.stack is None:
            return 0
        for below in range(self._hierarchy.ngrams is not None, level + 1):
            if self._frontier[below] < upto:
                layers = self._hierarchy.levels[below].exit_layer - self._hierarchy.first_layer(below)
                read += layers * (sizes.layer + sizes.position * upto)
                self._frontier[below] = upto
        return read + sizes.head(None if own.reduced is None else len(own.reduced.ids))


def read_bandwidth(size: int, dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Return the bytes per second at which one large matrix is read, by a product with a vector or a sum.

    Args:
        size: bytes, those of the model: what fits a cache is read from there. At most 4 GiB are taken on a GPU, 2 on a CPU.
        dtype: the dtype of the matrix.
        device: the device that reads.
        seconds: the time to spend on each way of reading.
    """
    columns = 4096
    most = (2 << 30) << (device.type == "cuda")
    rows = max(1, min(size, most) // (columns * dtype.itemsize))
    matrix = torch.empty(rows, columns, dtype=dtype, device=device)
    matrix.normal_()  # equal numbers are read faster by some memories
    vector = torch.ones(columns, 1, dtype=dtype, device=device)
    amount = matrix.numel() * dtype.itemsize
    return max(amount / _fastest(how, device, seconds) for how in (lambda: matrix @ vector, lambda: matrix.sum()))


def _fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds of the fastest of many runs."""
    best, until = float("inf"), perf_counter() + seconds
    for turn in range(1000):
        took = _seconds(work, device)
        best = min(best, took) if turn else best  # the first allocates
        if perf_counter() > until and turn:
            break
    return best


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run by the clock of the device, which does not count the start."""
    if device.type != "cuda":
        begin = perf_counter()
        work()
        return perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
