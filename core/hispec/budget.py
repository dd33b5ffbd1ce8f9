"""The time budget of a command."""

import math
from dataclasses import dataclass, field
from time import monotonic


@dataclass(frozen=True)
class Budget:
    """Wall time from the start of a command, loading included.

    Attributes:
        seconds: the limit, counted from the start; infinite for no limit.
        began: the time when the command started, on the clock of `time.monotonic`.
    """

    seconds: float = math.inf
    began: float = field(default_factory=monotonic)

    @property
    def spent(self) -> float:
        """Return the seconds since the start."""
        return monotonic() - self.began

    @property
    def left(self) -> float:
        """Return the seconds that are left, negative once the budget is spent."""
        return self.seconds - self.spent

    def over(self, share: float = 1.0) -> bool:
        """Return whether a share of the budget is spent."""
        return self.spent >= share * self.seconds
