"""Costs at any number of tokens, interpolated between the numbers at which they were measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Seconds at some numbers, linear in between and beyond.

    Attributes:
        at: ascending.
        seconds: the measured time at each of these numbers.
    """

    at: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, number: float) -> float:
        """Return the seconds at a number."""
        if len(self.at) == 1:
            return self.seconds[0]
        i = next((i for i in range(1, len(self.at) - 1) if number <= self.at[i]), len(self.at) - 1)
        share = (number - self.at[i - 1]) / (self.at[i] - self.at[i - 1])
        return self.seconds[i - 1] + share * (self.seconds[i] - self.seconds[i - 1])
