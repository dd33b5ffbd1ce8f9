"""Drafters propose tokens: with a level of the hierarchy, or from an n-gram cache."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from hispec.decoding.logits import Logits
from hispec.decoding.mask import Mask
from hispec.decoding.ngram_cache import AFTER_REJECTION, RECYCLED, Kind, NgramCache
from hispec.decoding.sampling import Sampler
from hispec.decoding.state import DecodingState
from hispec.policies.base import MIN_PROBABILITY, Draft


class Drafter(Protocol):
    """Adds tokens to a state, which higher levels verify."""

    def draft(self, state: DecodingState, step: Draft, room: int) -> tuple[int, ...]:
        """Add tokens and return them.

        Args:
            state: the state of the decoding.
            step: the policy's request.
            room: the most that may be added.
        """
        ...

    def rejected(self, rest: Sequence[int]) -> None:
        """Receive the argmax tokens that a level computed after the token that it has just rejected."""
        ...


@dataclass(frozen=True)
class LevelDrafter:
    """Drafts with a level of the hierarchy, one token after the other.

    Attributes:
        level: the index of the level that drafts.
        sampler: the sampler that chooses its tokens.
        eos_ids: tokens after which it stops.
        keep_drafting: called with the scores of each token; drafting ends if it returns False. None drafts all that is
            asked for.
    """

    level: int
    sampler: Sampler
    eos_ids: Collection[int] = ()
    keep_drafting: Callable[[Logits], bool] | None = None

    def draft(self, state: DecodingState, step: Draft, room: int) -> tuple[int, ...]:
        """Add tokens and return them; see `Drafter.draft`."""
        before, count = len(state.tokens), min(step.tokens, room)
        if self.sampler.takes_argmax and self.keep_drafting is None and count > 1:
            state.write(self.level, count, self.eos_ids)
            return tuple(state.tokens[before:])
        for _ in range(count):
            at = len(state.tokens)
            scores = self.sampler.scores(state.logits(self.level, at - 1, at), state.tokens)
            another = self.keep_drafting is None or self.keep_drafting(scores)
            (token,) = scores.argmax()
            state.append(token, self.level)
            if token in self.eos_ids or not another:
                break
        return tuple(state.tokens[before:])

    def rejected(self, rest: Sequence[int]) -> None:
        """Receive the argmax tokens that a level computed after the token that it has just rejected.

        See `Drafter.rejected`. The level will draft on from the correction.
        """


class NgramDrafter:
    """Drafts from earlier tokens. There are three kinds: the tokens that followed an n-gram, the argmax tokens that a level
    computed after a token that it rejected, and recycled tokens. It takes the kind with the highest acceptance so far.

    Its level is the lowest. A draft needs no pass of a model, and the next level verifies all of it in one pass.

    Args:
        longest: tokens of the longest n-gram that is looked up.
        max_tokens: the maximum number of tokens in one draft.
        eos_ids: tokens after which it stops.
        cache: the n-gram cache of the session, with the same `longest`; by default an empty one.
        mask: the tokens that may follow a text; a draft ends before the first that may not.
    """

    def __init__(
        self,
        longest: int,
        max_tokens: int,
        eos_ids: Collection[int] = (),
        cache: NgramCache | None = None,
        mask: Mask | None = None,
    ) -> None:
        self.max_tokens, self.eos_ids, self.cache, self.mask = max_tokens, eos_ids, cache or NgramCache(longest), mask
        self._rest: list[int] = []
        self._read: int | None = None
        """The number of tokens of the text that the cache has read; None before the first."""
        self._proposed: tuple[int, Kind, list[int]] = 0, AFTER_REJECTION, []
        """The last draft: its position in the text, its kind, and its tokens."""

    def draft(self, state: DecodingState, step: Draft, room: int) -> tuple[int, ...]:
        """Add all tokens that are found and return them; see `Drafter.draft`."""
        found = self.propose(state.tokens, room, state.committed, step.min_probability)
        for token in found:
            state.append(token, 0)
        return tuple(found)

    def rejected(self, rest: Sequence[int]) -> None:
        """Keep the tokens that a level computed after the rejected one: they often follow the correction too."""
        self._rest = list(rest)

    def remember(self, tokens: Sequence[int], committed: int) -> None:
        """Add the committed part of a text to the cache."""
        if self._read is None:
            self.cache.start_text(tokens[:committed])
        else:
            self.cache.extend(tokens[self._read : committed])
        self._read = committed

    def propose(
        self, tokens: Sequence[int], room: int, committed: int | None = None, min_probability: float = MIN_PROBABILITY
    ) -> list[int]:
        """Return at most `room` tokens that may follow `tokens`, and none after an EOS.

        Args:
            tokens: the text.
            room: the most that may be added.
            committed: the number of committed tokens, never fewer than before; by default all.
            min_probability: the least probability that all tokens of the draft are accepted.
        """
        self._learn(tokens)
        self.remember(tokens, len(tokens) if committed is None else committed)
        (kind, found), self._rest = self._find(tokens), []
        found = found[: max(0, min(self.max_tokens, room))]
        count = next((at for at, token in enumerate(found, 1) if token in self.eos_ids), len(found))
        probability = self.cache.acceptance(kind)
        while count and probability**count < min_probability:
            count -= 1
        self._proposed = len(tokens), kind, found[:count]
        return found[:count]

    def _find(self, tokens: Sequence[int]) -> tuple[Kind, list[int]]:
        """Return the kind with the highest acceptance, and its draft."""
        kinds = [
            self.cache.continuation(tokens, tokens[self._read :], self.max_tokens),
            (AFTER_REJECTION, self._rest),
            (RECYCLED, self.cache.recycled(tokens[-1], self.max_tokens)),
        ]
        if self.mask is not None:
            kinds = [(kind, drafts[: self.mask.fitting(tokens, drafts)]) for kind, drafts in kinds]
        found = [(kind, drafts) for kind, drafts in kinds if drafts]
        return max(found, key=lambda one: self.cache.acceptance(one[0]), default=(AFTER_REJECTION, []))

    def _learn(self, tokens: Sequence[int]) -> None:
        """Record how many tokens of the last draft were accepted."""
        at, kind, proposed = self._proposed
        kept = tokens[at : at + len(proposed)]
        wrong = (i for i, (token, draft) in enumerate(zip(kept, proposed, strict=False)) if token != draft)
        right = next(wrong, len(kept))
        if seen := min(len(kept), right + 1):
            self.cache.record_acceptance(kind, right, seen)
