"""The place of this process among those that torchrun or accelerate started with it, which is known without torch."""

import os
import sys
from dataclasses import dataclass

from hispec.errors import UsageError


@dataclass(frozen=True)
class LaunchedProcess:
    """The place of a process among those that were started together.

    Attributes:
        count: the number of processes.
        rank: the number of this process; rank 0 prints.
        local_rank: among those on this machine: the number of the GPU to use.
    """

    count: int = 1
    rank: int = 0
    local_rank: int = 0


def launched() -> LaunchedProcess:
    """Return the rank and number of processes, which is 0 of 1 unless a launcher started several.

    Raises:
        UsageError: an environment that neither torchrun nor accelerate makes.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return LaunchedProcess()
    try:
        return LaunchedProcess(*(int(os.environ[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")))
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE is set, but not as torchrun sets it", "unset it, or start with torchrun or accelerate"
        ) from None


def is_first() -> bool:
    """Return whether this process reports for all that were started together."""
    return os.environ.get("RANK", "0") == "0"


def is_first_here() -> bool:
    """Return whether this process reports what all on this machine meet alike."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("LOCAL_RANK", "0") == "0"


def is_connected() -> bool:
    """Return whether this process is connected with its peers: what it meets from then on may be its own."""
    torch = sys.modules.get("torch")  # not imported yet, it cannot be
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def started_by_torchrun() -> int:
    """Return how many processes torchrun started, 1 where it did not."""
    return launched().count if "TORCHELASTIC_RUN_ID" in os.environ else 1


def check_launched() -> None:
    """Refuse to share work if there is only one process.

    Raises:
        UsageError: torchrun did not start several processes.
    """
    if started_by_torchrun() < 2:
        raise UsageError(
            "--tensor-parallel needs one process for each device",
            "start them: torchrun --nproc-per-node 2 -m hispec_cli generate --tensor-parallel ...",
        )
