"""Guesses: tokens that cost no model, offered to the lowest exit, which judges them in one pass.

A guess may come from anywhere: it is judged as all probability on one token, which is exact whatever it was.
"""

from array import array
from collections.abc import Sequence

_WIDTH = array("i").itemsize


class Guesser:
    """Looks for what followed the last time: the tail of a draft that was just cut, else the longest n-gram.

    Args:
        longest: tokens of the longest n-gram that is looked up.
        most: the most tokens of one guess.
    """

    def __init__(self, longest: int, most: int) -> None:
        self.longest, self.most = longest, most
        self._tail: list[int] = []

    def offer(self, tail: Sequence[int]) -> None:
        """Keep what followed a refused token: it may well follow the correction too."""
        self._tail = list(tail)

    def guess(self, tokens: Sequence[int], room: int) -> list[int]:
        """At most `room` tokens that may follow `tokens`; empty when nothing comes to mind."""
        tail, self._tail = self._tail, []
        return (tail or self._look_up(tokens))[: min(self.most, room)]

    def _look_up(self, tokens: Sequence[int]) -> list[int]:
        """What followed the latest earlier occurrence of the text's last tokens, the longest match first."""
        text = array("i", tokens).tobytes()
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            start = _last_occurrence(text[-length * _WIDTH :], text[:-_WIDTH])
            if start is not None:
                return list(tokens[start + length : start + length + self.most])
        return []


def _last_occurrence(pattern: bytes, text: bytes) -> int | None:
    """Index, in tokens, of the last aligned occurrence."""
    at = text.rfind(pattern)
    while at >= 0 and at % _WIDTH:
        at = text.rfind(pattern, 0, at + len(pattern) - 1)
    return at // _WIDTH if at >= 0 else None
