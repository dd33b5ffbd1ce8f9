"""Several processes that share a benchmark, as `torchrun` and `accelerate launch` start them, on one machine or many."""

from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from hispec.launched import launched

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""The time that a process waits for the slowest: rows are distributed in advance, and answers differ in length."""


class Processes:
    """The rank of this process among those that share the work, which is 0 of 1 unless a launcher started several.

    Attributes:
        rank: the number of this process; rank 0 reports.
        count: the number of processes.
        local_rank: among those on this machine: the number of the GPU to use.

    Raises:
        UsageError: an environment that neither of these makes.
    """

    def __init__(self) -> None:
        place = launched()
        self.count, self.rank, self.local_rank = place.count, place.rank, place.local_rank

    def __enter__(self) -> Self:
        if self.count > 1:
            import torch.distributed as dist

            # Only records of a few kilobytes travel, so gloo serves machines with and without GPUs.
            dist.init_process_group("gloo", timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count > 1 and kind is None:
            import torch.distributed as dist

            dist.destroy_process_group()

    @property
    def reports(self) -> bool:
        """Return whether this process gathers and reports."""
        return self.rank == 0

    def share_of(self, items: Sequence[T]) -> list[T]:
        """Return the items of this process: every `count`-th, so that long and short ones spread."""
        return list(items[self.rank :: self.count])

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes in the process that reports, none in the others. All must call it."""
        if self.count == 1:
            return list(items)
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.count if self.reports else None
        dist.gather_object(list(items), parts)
        return [item for part in parts or () for item in part]

    def agree(self, value: T) -> T:
        """Return the value of the process that reports, in all of them. All must call it."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]
