"""The processes of one tensor-parallel decoding: each has a part of every matrix, and all take the same decisions.

Every rank runs the same decode loop on the same token ids, because each pass waits for all ranks. Values that could
differ between ranks are those of rank 0: the seed, an interruption, and the steps that a policy chooses.
"""

import atexit
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hispec.errors import UsageError
from hispec.launched import check_launched, started_by_torchrun
from hispec.models.config import ModelConfig
from hispec.models.sharding import Shard
from hispec.policies.base import Draft, Policy, Step, Verify
from hispec.policies.confidence import Confidence

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(hours=2)
"""The time that a rank waits for the slowest one to read its weights."""

NO_LEVEL = -1
"""The number that stands for no level in a message between ranks."""


def check_ranks(model: str, config: ModelConfig) -> None:
    """Refuse tensor parallelism without other processes, or for a target whose matrices cannot be divided.

    Args:
        model: the target, as the profile names it.
        config: its configuration.

    Raises:
        UsageError: torchrun did not start several processes, or their number does not divide the model's heads or MLP.
    """
    check_launched()
    count, heads, inner = started_by_torchrun(), config.num_kv_heads, config.intermediate_size
    if not Shard(0, count).divides(config):
        what = f"{heads} key/value heads" if heads % count else f"{inner} inner units of the MLP"
        fit = ", ".join(str(n) for n in range(2, heads + 1) if Shard(0, n).divides(config))
        raise UsageError(
            f"{count} processes cannot share the {what} of {model} evenly",
            f"start as many as divide them: {fit}" if fit else "leave out --tensor-parallel",
        )


class Ranks:
    """A process and its peers, which connect at the start; all of them must call every method alike.

    Args:
        device: the device that holds this rank's part of the models.
    """

    def __init__(self, device: "torch.device") -> None:
        from torch import cuda, distributed

        if device.type == "cuda":
            cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        self._group = distributed.new_group(backend="gloo")  # small decisions go through the CPU
        self.rank = distributed.get_rank()
        self.count = distributed.get_world_size()
        atexit.register(_leave)

    def share(self, value: Any) -> Any:
        """Return the value that rank 0 passed, of any type."""
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def share_numbers(self, *numbers: int) -> list[int]:
        """Return the whole numbers that rank 0 passed. All ranks pass as many, since the message has a fixed size."""
        import torch

        shared = torch.tensor(numbers, dtype=torch.int64)
        torch.distributed.broadcast(shared, src=0, group=self._group)
        found: list[int] = shared.tolist()
        return found


def _leave() -> None:
    """Leave the process group, as torch.distributed asks of every process."""
    from torch import distributed

    with suppress(Exception):
        if distributed.is_initialized():
            distributed.destroy_process_group()


class SharedPolicy(Policy):
    """A policy whose choices on rank 0 all ranks follow.

    Args:
        policy: the policy, which is asked on rank 0 only.
        ranks: this process and its peers.
    """

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self._policy, self._ranks, self._leads = policy, ranks, ranks.rank == 0
        self.features = policy.features

    def next_step(self, verified: Sequence[int], may_draft: bool) -> Step:
        """Return the next step; see `Policy.next_step`."""
        step = self._policy.next_step(verified, may_draft) if self._leads else Verify(0)
        drafts = (
            (step.tokens, NO_LEVEL if step.fallback is None else step.fallback) if isinstance(step, Draft) else (0, 0)
        )
        tokens, fallback, level = self._ranks.share_numbers(*drafts, step.level)
        return Draft(tokens, level, None if fallback == NO_LEVEL else fallback) if tokens else Verify(level)

    def on_draft(self, level: int, confidence: Confidence) -> bool:
        """Learn of a token that `level` has just drafted, and return whether it should draft another.

        See `Policy.on_draft`.
        """
        return bool(self._ranks.share_numbers(self._leads and self._policy.on_draft(level, confidence))[0])

    def on_verification(
        self, level: int, proposed: int, accepted: int, passed: int, confidence: Sequence[Confidence]
    ) -> None:
        """Learn of a verification by `level`; see `Policy.on_verification`."""
        if self._leads:
            self._policy.on_verification(level, proposed, accepted, passed, confidence)

    def on_timing(self, step: Step, seconds: float) -> None:
        """Learn how long a step took; see `Policy.on_timing`."""
        if self._leads:
            self._policy.on_timing(step, seconds)
