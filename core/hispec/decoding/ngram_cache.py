"""The n-gram cache: what followed each n-gram in earlier texts, and the argmax that levels computed after each token.

Apart from texts, the cache keeps the argmax of every row that a level computes for a verification, by the token before
it, rejected tokens included. This is the simplest form of *Token Recycling* (Luo et al., arXiv 2408.08696): one
successor of each token, and a chain instead of a tree. The rows are computed anyway, so recycling adds no work.
"""

from collections.abc import Iterable, Sequence

from hispec.policies.estimates import Acceptance

MAX_TOKENS = 1 << 16
"""Tokens of texts that are remembered, about half a kilobyte each; beyond, the older half is forgotten."""

PRIOR_ACCEPTANCE, PRIOR_TOKENS = 0.7, 8.0
"""The expected acceptance of a kind of draft before any was verified; the number of tokens that it counts for."""

DECAY = 0.99
"""The factor on the weight of earlier tokens whenever a draft is verified."""

Kind = int
"""The kind of a draft: the length of the n-gram that was found, or one of these."""
RECYCLED: Kind = 0
AFTER_REJECTION: Kind = -1

BREAK = -1
"""Stands between two texts."""


class NgramCache:
    """The n-grams of a session's texts, the last argmax after each token, and the acceptance of each kind of draft.

    All token ids are of one vocabulary. Only committed tokens are added, so nothing is ever removed.

    Args:
        longest: tokens of the longest n-gram that is looked up.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._texts: list[int] = []
        """All texts, with `BREAK` between them. Of a text that begins like the one before it, only the new part and the
        n-gram before that are added.
        """
        self._begin = 0
        """The start of the current text in `_texts`."""
        self._present: list[int] = []
        """The current text as a whole."""
        self._after: dict[tuple[int, ...], int] = {}
        """For each n-gram, the position in `_texts` of the token that followed its last occurrence."""
        self._next: dict[int, int] = {}
        self._right: dict[Kind, Acceptance] = {}

    def start_text(self, text: Sequence[int]) -> None:
        """Begin another text with the tokens that it has so far."""
        both = zip(text, self._present, strict=False)
        shared = next((at for at, (new, old) in enumerate(both) if new != old), min(len(text), len(self._present)))
        self._present = list(text[:shared])
        self._add([BREAK, *text[max(0, shared - self.longest) : shared]])
        self.extend(text[shared:])

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens to the current text."""
        self._present += tokens
        self._add(tokens)

    def continuation(self, text: Sequence[int], tail: Sequence[int], max_tokens: int) -> tuple[Kind, list[int]]:
        """Return the `max_tokens` tokens that followed the last ones of a text the last time, if ever, and their kind.

        The longest n-gram counts, and the latest of equals. Where what followed is what the text ends in, it is taken
        to go on in a circle.

        Args:
            text: the present one.
            tail: the tokens of the text that have not been read yet.
            max_tokens: the maximum number of tokens, at least 1.
        """
        for length in range(min(self.longest, len(text)), 0, -1):
            start = self._after.get(tuple(text[-length:]))
            if start is not None:
                return length, self._from(start, tail, max_tokens)
        return 0, []

    def recycled(self, token: int, max_tokens: int) -> list[int]:
        """Return at most `max_tokens` tokens, each the argmax that was recorded after the one before."""
        found: list[int] = []
        following = self._next.get(token)
        while following is not None and len(found) < max_tokens:
            found.append(following)
            following = self._next.get(following)
        return found

    def record_argmax(self, tokens: Iterable[int], following: Iterable[int]) -> None:
        """Record the argmax that a level computed after each of some tokens."""
        self._next.update(zip(tokens, following, strict=False))

    def acceptance(self, kind: Kind) -> float:
        """Return the estimated acceptance of a kind of draft, optimistic where few were verified."""
        right = self._right.get(kind)
        return PRIOR_ACCEPTANCE if right is None else right.optimistic

    def record_acceptance(self, kind: Kind, right: int, seen: int) -> None:
        """Record how many draft tokens of a kind were accepted."""
        self._right.setdefault(kind, Acceptance(PRIOR_ACCEPTANCE, PRIOR_TOKENS)).update(right, seen)
        for known in [*self._right.values()]:
            known.decay(DECAY)

    def _from(self, start: int, tail: Sequence[int], max_tokens: int) -> list[int]:
        """Return the tokens of the texts from a place on; see `continuation`."""
        found = self._texts[start : start + max_tokens]
        if BREAK in found:
            return found[: found.index(BREAK)]
        found += tail[: max_tokens - len(found)]
        while found and len(found) < max_tokens:
            found += found[: max_tokens - len(found)]
        return found

    def _add(self, tokens: Sequence[int]) -> None:
        """Append tokens, and record their places under the n-grams before them."""
        if len(self._texts) + len(tokens) > MAX_TOKENS:
            tokens = tokens[-MAX_TOKENS // 2 :]
            kept = self._texts[len(self._texts) + len(tokens) - MAX_TOKENS // 2 :]
            self._texts, self._begin, self._after = [], 0, {}
            self._add(kept)
        for token in tokens:
            at = len(self._texts)
            if token == BREAK:
                self._begin = at + 1
            else:
                for length in range(1, min(self.longest, at - self._begin) + 1):
                    self._after[tuple(self._texts[at - length :])] = at
            self._texts.append(token)
