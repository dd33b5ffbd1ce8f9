"""What proposes tokens: a level of the hierarchy, or what is remembered."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from hispec.decoding.logits import Logits
from hispec.decoding.mask import Mask
from hispec.decoding.past import RECYCLED, REST, Kind, Past
from hispec.decoding.policies import LEAST, Draft
from hispec.decoding.sampling import Sampler
from hispec.decoding.state import DecodingState


class Drafter(Protocol):
    """Adds tokens to a state, which higher levels verify."""

    def draft(self, state: DecodingState, step: Draft, room: int) -> tuple[int, ...]:
        """Add tokens and return them.

        Args:
            state: what is decoded.
            step: what the policy asks for.
            room: the most that may be added.
        """
        ...

    def rejected(self, rest: Sequence[int]) -> None:
        """Learn what the level that has just rejected a token said of those after it."""
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

    def draft(self, state: DecodingState, step: Draft, room: int) -> tuple[int, ...]:
        """See `Drafter.draft`."""
        before, count = len(state.tokens), min(step.tokens, room)
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
    """Drafts what is remembered: what followed an n-gram, what a level just said after a token that it rejected, or
    what levels last said after a token. Of these it takes the kind that was right most often.

    Its level is the lowest. It costs no pass of a model, and the next level verifies all of it in one.

    Args:
        longest: tokens of the longest n-gram that is looked up.
        most: the most tokens of one draft.
        ends: tokens after which it stops.
        past: of the session, with the same `longest`; none by default.
        mask: which tokens may follow a text; drafts end before the first that may not.
    """

    def __init__(
        self,
        longest: int,
        most: int,
        ends: Collection[int] = (),
        past: Past | None = None,
        mask: Mask | None = None,
    ) -> None:
        self.most, self.ends, self.past, self.mask = most, ends, past or Past(longest), mask
        self._rest: list[int] = []
        self._read: int | None = None
        """Tokens of the text that are in the past; None before any is."""
        self._proposed: tuple[int, Kind, list[int]] = 0, REST, []
        """The last draft: where in the text, of which kind, and the tokens."""

    def draft(self, state: DecodingState, step: Draft, room: int) -> tuple[int, ...]:
        """See `Drafter.draft`; all that it finds, or nothing."""
        found = self.propose(state.tokens, room, state.committed, step.least)
        for token in found:
            state.append(token, 0)
        return tuple(found)

    def rejected(self, rest: Sequence[int]) -> None:
        """Keep what a level said after the token that it rejected: it may well follow the correction too."""
        self._rest = list(rest)

    def remember(self, tokens: Sequence[int], committed: int) -> None:
        """Add a text to the past, as far as it is committed."""
        if self._read is None:
            self.past.begin(tokens[:committed])
        else:
            self.past.extend(tokens[self._read : committed])
        self._read = committed

    def propose(
        self, tokens: Sequence[int], room: int, committed: int | None = None, least: float = LEAST
    ) -> list[int]:
        """Return at most `room` tokens that may follow `tokens`, none past an end of text.

        Args:
            tokens: the text.
            room: the most that may be added.
            committed: tokens that stay as they are, never fewer than before; all by default.
            least: of the probability that all of them are right.
        """
        self._learn(tokens)
        self.remember(tokens, len(tokens) if committed is None else committed)
        (kind, found), self._rest = self._find(tokens), []
        found = found[: max(0, min(self.most, room))]
        count = next((at for at, token in enumerate(found, 1) if token in self.ends), len(found))
        chance = self.past.chance(kind)
        while count and chance**count < least:
            count -= 1
        self._proposed = len(tokens), kind, found[:count]
        return found[:count]

    def _find(self, tokens: Sequence[int]) -> tuple[Kind, list[int]]:
        """Return guesses of the kind that was right most often, and which it is."""
        kinds = [
            self.past.follow(tokens, tokens[self._read :], self.most),
            (REST, self._rest),
            (RECYCLED, self.past.recycle(tokens[-1], self.most)),
        ]
        if self.mask is not None:
            kinds = [(kind, guesses[: self.mask.fitting(tokens, guesses)]) for kind, guesses in kinds]
        found = [(kind, guesses) for kind, guesses in kinds if guesses]
        return max(found, key=lambda one: self.past.chance(one[0]), default=(REST, []))

    def _learn(self, tokens: Sequence[int]) -> None:
        """See which of the last guesses the text has kept."""
        at, kind, proposed = self._proposed
        kept = tokens[at : at + len(proposed)]
        wrong = (i for i, (token, guess) in enumerate(zip(kept, proposed, strict=False)) if token != guess)
        right = next(wrong, len(kept))
        if seen := min(len(kept), right + 1):
            self.past.judge(kind, right, seen)
