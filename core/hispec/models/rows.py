"""The number of rows of a pass: passes are padded so that a row has the same bits however many are computed together.

Kernels for one row and for several add in different orders, so that in half precision the most probable token may differ.
Most kernels, however, compute a row in one way for a whole range of row counts. `equal_counts` finds these counts by
trying; passes are padded to one of them, and every mode then computes the very same numbers (docs/exactness.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from hispec.limits import FREE_ROWS, WIDEST
from hispec.models.cache import KVCache

Width = int | Literal["auto", "free"]
"""`free`: passes have as many rows as there are tokens; a number: that many; `auto`: counts found equal by trying."""

BUCKET = 64
"""The length that attention reads is a multiple of this, so that its kernels do not depend on where a pass ends."""

CANDIDATES = (2, 3, 4, 6, 8, 12, 16, 32, 64)
"""The row counts that are tried. One row is not among them, since its kernels often change with the length of the
text.
"""


TRIED_AT = (48, 1008)
"""Positions at which row counts are tried: kernels of attention may change with its length."""

Compute = Callable[[int, int, int], Tensor]
"""Computes some rows of a text in one pass: (first row, rows, rows with padding)."""


@dataclass(frozen=True)
class RowCounts:
    """The row counts of passes.

    Attributes:
        counts: the row counts that a pass is padded to, ascending; empty at free widths.
        prompt: rows of each pass of a prompt.
    """

    counts: tuple[int, ...] = ()
    prompt: int = FREE_ROWS

    @property
    def free(self) -> bool:
        """Return whether passes have as many rows as there are tokens."""
        return not self.counts

    @property
    def interchangeable(self) -> bool:
        """Return whether a row of a prompt's pass is the same as in any other pass."""
        return self.free or self.prompt in self.counts

    def passes(self, rows: int, position: int, *, prompt: bool = False) -> Iterator[tuple[int, int]]:
        """Cut rows into passes: yields (rows, rows with padding).

        Args:
            rows: the number of rows, at least 1.
            position: the position of the first row.
            prompt: whether these are rows of a prompt. Where they are not interchangeable with others, their passes
                begin at multiples of `prompt`, so that the same text is always cut in the same way.
        """
        if self.free:
            yield from ((count, count) for count in _cut(rows, self.prompt))
        elif prompt and not self.interchangeable:
            first = min(rows, self.prompt - position % self.prompt)
            for count in (first, *_cut(rows - first, self.prompt)):
                yield count, self.prompt
        else:
            for count in _cut(rows, self.counts[-1]):
                yield count, self.padded(count)

    def within_buckets(self, rows: int, position: int) -> Iterator[int]:
        """Split the rows of a pass where the length that attention reads grows."""
        while rows:
            part = rows if self.free else min(rows, BUCKET - position % BUCKET)
            yield part
            rows, position = rows - part, position + part

    def padded(self, rows: int) -> int:
        """Return the smallest count of a pass that holds some rows, at most `counts[-1]`."""
        return rows if self.free else next(count for count in self.counts if count >= rows)

    def length(self, end: int) -> int:
        """Return the number of positions that attention reads, for a row that attends to `end` of them."""
        return end if self.free else -(-end // BUCKET) * BUCKET

    @property
    def padding(self) -> int:
        """Return the most rows that padding adds after a text."""
        return 0 if self.free else max(self.prompt, self.counts[-1])

    def describe(self) -> str | int | list[int]:
        """Return the description for the environment of results: `free`, one width, or the equal counts."""
        if self.free:
            return "free"
        return self.counts[0] if len(self.counts) == 1 else list(self.counts)


def prompt_rows(device: torch.device) -> int:
    """Return the rows of a prompt's pass where they are not interchangeable with others: enough to keep a device busy."""
    return 512 if device.type == "cuda" else 64


def pad_rows(hidden: Tensor, rows: int) -> Tensor:
    """Return [n, hidden] with rows of zeros after it, [rows, hidden]; the same tensor where there are none to add."""
    if rows == len(hidden):
        return hidden
    padded = hidden.new_zeros(rows, hidden.shape[-1])
    padded[: len(hidden)] = hidden
    return padded


def in_passes(counts: RowCounts, compute: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Compute rows [n, hidden] that do not depend on each other, with the row counts of passes."""
    done, at = [], 0
    for rows, padded in counts.passes(len(hidden), 0):
        done.append(compute(pad_rows(hidden[at : at + rows], padded))[:rows])
        at += rows
    return done[0] if len(done) == 1 else torch.cat(done)


def _cut(rows: int, max_rows: int) -> Iterator[int]:
    for begin in range(0, rows, max_rows):
        yield min(max_rows, rows - begin)


class Triable(Protocol):
    """A stack on which row counts are tried: a layer stack with its cache."""

    rows: RowCounts
    cache: KVCache
    context: int
    device: torch.device

    def reserve(self, positions: int) -> None: ...  # noqa: D102
    def embed(self, token_ids: list[int]) -> Tensor: ...  # noqa: D102
    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int) -> Tensor: ...  # noqa: D102
    def head(self, hidden: Tensor) -> Tensor: ...  # noqa: D102


@torch.inference_mode()
def choose_rows(stack: "Triable", width: Width, candidates: Sequence[int], prompt: int) -> RowCounts:
    """Return the row counts for a width, trying them on a layer and the head where they are not given.

    Random rows are computed at several positions of a text of random keys and values, in a cache of one layer that is
    given back.

    Args:
        stack: a loaded model.
        width: the requested width.
        candidates: counts to try.
        prompt: rows of a prompt's pass where they are not interchangeable with others.
    """
    if width == "free":
        return RowCounts()
    if isinstance(width, int):
        return RowCounts((width,), prompt)
    longest = max(candidates)
    bases = [base for base in TRIED_AT if base + 2 * BUCKET <= stack.context] or TRIED_AT[:1]
    own, own_rows = stack.cache, stack.rows
    rng = torch.Generator().manual_seed(0)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=rng).to(like)

    try:
        stack.rows, stack.cache = RowCounts((longest,)), own.scratch()
        stack.reserve(bases[-1] + 2 * BUCKET)
        stack.cache.layers[0].copy_(random(stack.cache.layers[0]))
        text = random(stack.embed([0] * longest))

        def compute(base: int, first: int, rows: int, padded: int) -> Tensor:
            stack.rows = RowCounts((padded,))
            given = text[first : first + rows]
            return torch.cat([stack.run(given, 0, 1, base + first).to(stack.device), stack.head(given)], -1)

        counts: Sequence[int] = candidates
        for base in reversed(bases):  # the last first: its rows see what rows before them have left in the cache
            counts = equal_counts(partial(compute, base), counts)
            counts = without_other_places(partial(compute, base // BUCKET * BUCKET), counts, longest)
    finally:
        stack.cache, stack.rows = own, own_rows
    return RowCounts(tuple(counts), counts[-1] if counts[-1] > WIDEST else prompt)


def equal_counts(compute: Compute, candidates: Sequence[int], rows: int = WIDEST) -> tuple[int, ...]:
    """Return the counts that compute every row of a text to the same bits: the largest set of them.

    Each count computes the text twice, with rows at other places in their passes. Where no count computes a row in the
    same way at every place, the smallest is returned alone: modes may then differ in the last bit.

    Args:
        compute: computes the text.
        candidates: the row counts to try, ascending.
        rows: the rows of the text.
    """
    known: list[tuple[Tensor, list[int]]] = []
    for count in candidates:
        text = _compute_text(compute, count, count, rows)
        if not torch.equal(text, _compute_text(compute, count, (count + 1) // 2, rows)):
            continue
        equal = next((counts for other, counts in known if torch.equal(text, other)), None)
        if equal is None:
            known.append((text, [count]))
        else:
            equal.append(count)
    sets = [tuple(counts) for _, counts in known] or [(candidates[0],)]
    return max(sets, key=lambda counts: len(counts))


def without_other_places(compute: Compute, counts: Sequence[int], rows: int) -> tuple[int, ...]:
    """Return equal counts without those above `WIDEST` that compute a row at their last places in another way.

    A text of `WIDEST` rows, which `equal_counts` computes, does not reach these places.

    Args:
        compute: computes a text that begins where attention begins to read more positions.
        counts: equal counts, ascending.
        rows: the rows of the text.
    """
    narrow = tuple(count for count in counts if count <= WIDEST)
    if not narrow or narrow == tuple(counts):
        return tuple(counts)
    text = _compute_text(compute, narrow[-1], narrow[-1], rows)
    tried = {
        count: [_compute_text(compute, count, first, rows) for first in (count, (count + 1) // 2)]
        for count in counts[len(narrow) :]
    }
    return narrow + tuple(count for count, found in tried.items() if all(torch.equal(one, text) for one in found))


def _compute_text(compute: Compute, count: int, first: int, text: int) -> Tensor:
    """Compute all rows of a text in passes of `count`, of which the first has only `first` tokens."""
    first = min(first, text)
    parts = [compute(0, first, count)]
    parts += [compute(at, min(count, text - at), count) for at in range(first, text, count)]
    return torch.cat(parts, dim=-2)
