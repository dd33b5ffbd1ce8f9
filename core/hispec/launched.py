"""Whether torchrun started this process with others, which is known without torch."""

import os

from hispec.errors import UsageError


def started_by_torchrun() -> int:
    """Return how many processes torchrun started, 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def check_launched() -> None:
    """Refuse to share work where there is nobody to share it with.

    Raises:
        UsageError: torchrun did not start several processes.
    """
    if started_by_torchrun() < 2:
        raise UsageError(
            "--tensor-parallel needs one process for each device",
            "start them: torchrun --nproc-per-node 2 -m hispec_cli generate --tensor-parallel ...",
        )
