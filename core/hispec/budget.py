"""The time that a command may take."""

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
        """Return seconds since the start."""
        return monotonic() - self.began

    @property
    def left(self) -> float:
        """Return seconds until it is over, negative after that."""
        return self.seconds - self.spent

    def over(self, share: float = 1.0) -> bool:
        """Return whether a share of it is over."""
        return self.spent >= share * self.seconds
