"""Estimates that follow a text: ratios whose older observations count less, and corrections of step costs."""

from math import exp, log, sqrt
from typing import Literal

from hispec.policies.prediction import clamped

StepKind = tuple[Literal["draft", "verify"], int, int]
"""The kind of a step: the action, the level, and the number of rows as a power of two, rounded up."""

PRIOR_TOKENS = 24.0
"""The number of tokens that an expected throughput counts for when it is averaged with the observed one."""

MACHINE_RATE, KIND_RATE = 0.2, 0.1
"""Step sizes of the estimates of how slow the machine is, and of how much more one kind of step costs than expected."""


class DecayedRatio:
    """A ratio of two sums, beginning at an expected value; older observations count less.

    Args:
        ratio: the expected value.
        weight: the denominator that it counts for.
    """

    def __init__(self, ratio: float, weight: float) -> None:
        self._expected, self._weight = ratio, weight
        self._numerator = self._denominator = 0.0

    @property
    def mean(self) -> float:
        """Return the ratio, by the observations so far and the expected value."""
        return (self._expected * self._weight + self._numerator) / (self._weight + self._denominator)

    def update(self, numerator: float, denominator: float) -> None:
        """Add an observation."""
        self._numerator += numerator
        self._denominator += denominator

    def decay(self, factor: float) -> None:
        """Multiply the weight of all observations so far."""
        self._numerator *= factor
        self._denominator *= factor


class Acceptance(DecayedRatio):
    """The share of a level's tokens that another level accepts.

    Args:
        mean: the expected value.
        weight: the number of tokens that it counts for.
    """

    def __init__(self, mean: float, weight: float) -> None:
        super().__init__(clamped(mean), weight)

    @property
    def optimistic(self) -> float:
        """Return the mean plus one standard deviation, so that levels that were rarely tried are tried."""
        mean = self.mean
        return clamped(mean + sqrt(mean * (1 - mean) / (self._weight + self._denominator)))


class RelativeThroughput(DecayedRatio):
    """The number of committed tokens as a multiple of those that the performance model expected for the time.

    Args:
        ratio: the expected value.
    """

    def __init__(self, ratio: float = 1.0) -> None:
        super().__init__(ratio, PRIOR_TOKENS)


class CostCorrection:
    """The cost of each kind of step relative to the expected cost, compared with the other kinds.

    A busy machine slows all kinds of steps alike, which changes no choice. The passes of the target, which every way of
    decoding has, tell it from a kind whose cost was measured wrongly.
    """

    def __init__(self) -> None:
        self._machine: float | None = None
        self._kinds: dict[StepKind, float] = {}
        """The logarithms of the factors."""
        self._factors: dict[StepKind, float] = {}
        self._last: StepKind | None = None

    def factor(self, kind: StepKind) -> float:
        """Return the factor by which to multiply the expected cost of a kind of step."""
        return self._factors.get(kind, 1.0)

    def update(self, kind: StepKind, expected: float, seconds: float, *, target: bool) -> None:
        """Learn how long a step took.

        Args:
            kind: the kind of the step.
            expected: its cost, the factor included.
            seconds: wall time.
            target: whether it was a pass of the target.
        """
        if seconds <= 0 or expected <= 0 or (self._machine is None and not target):
            return
        ratio = log(seconds / expected)
        if self._machine is None:
            self._machine = ratio
        surprise = min(1.0, max(-1.0, ratio - self._machine))  # one odd step must not weigh without limit
        if target:
            self._machine += MACHINE_RATE * surprise
        if self._last not in (None, kind):  # with a single kind, a wrong cost looks like a slow machine
            self._kinds[kind] = self._kinds.get(kind, 0.0) + KIND_RATE * surprise
            self._factors[kind] = exp(self._kinds[kind])
        self._last = kind
