"""What proposes tokens: a level of the hierarchy, or what followed the same n-gram earlier in the text."""

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from hispec.decoding.logits import Logits
from hispec.decoding.sampling import Sampler
from hispec.decoding.state import DecodingState

_WIDTH = array("i").itemsize


class Drafter(Protocol):
    """Adds tokens to a state, which higher levels verify."""

    def draft(self, state: DecodingState, wanted: int, room: int) -> tuple[int, ...]:
        """Add tokens and return them.

        Args:
            state: what is decoded.
            wanted: how many the policy asks for; a drafter that has them for nothing may add more.
            room: the most that may be added.
        """
        ...

    def rejected(self, rest: Sequence[int]) -> None:
        """Learn which tokens followed the one that was just rejected."""
        ...


@dataclass(frozen=True)
class LevelDrafter:
    """Drafts with a level of the hierarchy, one token after the other.

    Attributes:
        level: that drafts.
        sampler: chooses its tokens.
        ends: tokens after which it stops.
        goes_on: told the scores of each token, whether there is to be another; None to draft what is wanted.
    """

    level: int
    sampler: Sampler
    ends: Collection[int] = ()
    goes_on: Callable[[Logits], bool] | None = None

    def draft(self, state: DecodingState, wanted: int, room: int) -> tuple[int, ...]:
        """See `Drafter.draft`."""
        before, count = len(state.tokens), min(wanted, room)
        if self.sampler.takes_argmax and self.goes_on is None and count > 1:
            state.write(self.level, count, self.ends)
            return tuple(state.tokens[before:])
        for _ in range(count):
            at = len(state.tokens)
            scores = self.sampler.scores(state.logits(self.level, at - 1, at), state.tokens)
            another = self.goes_on is None or self.goes_on(scores)
            (token,) = scores.best()
            state.append(token, self.level)
            if token in self.ends or not another:
                break
        return tuple(state.tokens[before:])

    def rejected(self, rest: Sequence[int]) -> None:
        """See `Drafter.rejected`; the level will draft on from the correction."""


class NgramDrafter:
    """Drafts what followed the last time: the rest of a draft that was just rejected, else the longest n-gram.

    Its level is the lowest. It costs no pass of a model, and the next level verifies all of it in one.

    Args:
        longest: tokens of the longest n-gram that is looked up.
        most: the most tokens of one draft.
        ends: tokens after which it stops.
    """

    def __init__(self, longest: int, most: int, ends: Collection[int] = ()) -> None:
        self.longest, self.most, self.ends = longest, most, ends
        self._rest: list[int] = []

    def draft(self, state: DecodingState, wanted: int, room: int) -> tuple[int, ...]:
        """See `Drafter.draft`; all that it finds, or nothing."""
        found = self.propose(state.tokens, room)
        for token in found:
            state.append(token, 0)
        return tuple(found)

    def rejected(self, rest: Sequence[int]) -> None:
        """Keep what followed a rejected token: it may well follow the correction too."""
        self._rest = list(rest)

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        """Return at most `room` tokens that may follow `tokens`, none past an end of text."""
        rest, self._rest = self._rest, []
        found = (rest or self._look_up(tokens))[: max(0, min(self.most, room))]
        end = next((at for at, token in enumerate(found, 1) if token in self.ends), len(found))
        return found[:end]

    def _look_up(self, tokens: Sequence[int]) -> list[int]:
        """Return what followed the latest earlier occurrence of the text's last tokens, the longest match first."""
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
