"""How a level draws a token and judges the tokens of the level before it.

The mathematics is in small pure functions, the first five; the classes below apply it to logits.

Notation: `p` are the judging level's distributions, `q` those that the tokens were drawn from at the last level that
judged them (None for a guess, which is all mass on the token itself), `u` independent uniform numbers in [0, 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hispec.decoding.logits import Logits
from hispec.decoding.sampling import Randomness, Sampling


def first_refused(tokens: Sequence[int], accepted: Callable[[int, int], bool]) -> int:
    """How many leading tokens satisfy `accepted(index, token)`."""
    return next((i for i, token in enumerate(tokens) if not accepted(i, token)), len(tokens))


def residual(p: Tensor, q: Tensor | None, token: int, share: float = 1.0) -> Tensor:
    """What a refused token is redrawn from: max(0, share * p - q), not normalised, [vocab].

    Source: Leviathan et al., arXiv 2211.17192, section 2.3 (share 1); Sun et al., arXiv 2403.10444, equation 4.

    Args:
        p: the judging level's distribution, [vocab].
        q: what the token was drawn from, [vocab]; None for a guess.
        token: the refused token.
        share: probability that the block up to here is kept; 1 where tokens are judged one by one.
    """
    if q is None:
        rest = share * p
        rest[token] = (rest[token] - 1).clamp(min=0)
    else:
        rest = (share * p - q).clamp(min=0)
    return rest if rest.any() else p


def speculative(tokens: Sequence[int], p: Tensor, q: Sequence[Tensor | None], u: Sequence[float]) -> int:
    """How many leading tokens are accepted, each with probability min(1, p(t) / q(t)).

    Source: Leviathan et al., arXiv 2211.17192, algorithm 1.

    Args:
        tokens: [n].
        p: [n, vocab].
        q: n distributions [vocab].
        u: [n].
    """
    return first_refused(tokens, lambda i, token: u[i] * _chance(q[i], token) < float(p[i, token]))


def block(tokens: Sequence[int], p: Tensor, q: Sequence[Tensor | None], u: Sequence[float]) -> tuple[int, float]:
    """How many leading tokens are accepted when the block is judged as a whole, never fewer on average.

    Source: Sun et al., "Block Verification Accelerates Speculative Decoding", arXiv 2403.10444, algorithm 2.

    Args:
        tokens: [n].
        p: [n, vocab].
        q: n distributions [vocab].
        u: [n].

    Returns:
        The count, and the `share` with which the refused token is redrawn from its `residual`.
    """
    keep, accepted, share = 1.0, 0, 1.0
    for i, token in enumerate(tokens):
        keep = min(1.0, keep * float(p[i, token]) / _chance(q[i], token))
        if i + 1 < len(tokens):
            gain = float(residual_mass(p[i + 1], q[i + 1], tokens[i + 1], keep))
            chance = gain / (gain + 1 - keep) if gain + 1 - keep > 0 else 1.0
        else:
            chance = keep
        if u[i] < chance:
            accepted, share = i + 1, keep
    return accepted, share


def residual_mass(p: Tensor, q: Tensor | None, token: int, share: float) -> Tensor:
    """The sum over the vocabulary of max(0, share * p - q)."""
    if q is None:
        return share * (p.sum() - p[token]) + (share * p[token] - 1).clamp(min=0)
    return (share * p - q).clamp(min=0).sum()


def _chance(q: Tensor | None, token: int) -> float:
    return 1.0 if q is None else float(q[token])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first `accepted` tokens stay; `correction` replaces the next one, or is None when all stay.

    `drawn_from` holds, for each of these tokens, the distribution that it is now an exact sample of; it is empty in
    greedy decoding, which needs none.
    """

    accepted: int
    correction: int | None
    drawn_from: tuple[Tensor, ...] = ()


class Rule(Protocol):
    """Draws and judges; one rule serves all levels."""

    @property
    def takes_best(self) -> bool:
        """Whether `draw` takes the likeliest word, whatever the text was: then a run may be written in one call."""
        ...

    def draw(self, logits: Logits, prefix: Sequence[int], level: int) -> tuple[int, Tensor | None]:
        """The token that a level adds after `prefix`, from its logits of one row, and what it was drawn from."""
        ...

    def judge(
        self, tokens: Sequence[int], q: Sequence[Tensor | None], logits: Logits, prefix: Sequence[int], level: int
    ) -> Verdict:
        """Judge the tokens after `prefix`, drawn from `q`, by a level's logits of as many rows."""
        ...


class Greedy:
    """Temperature 0: a level accepts a token iff it is the level's own arg-max, and corrects with its arg-max.

    The target's rule alone decides the output, which is therefore the target's own greedy text. Lower levels may be
    more lenient: what they let through is still judged above.

    Args:
        sampling: only its processors matter.
        target: index of the target's level, whose rule is always exact.
        lower_top_k: levels below the target accept a token among their k likeliest.
    """

    def __init__(self, sampling: Sampling | None = None, target: int = 0, lower_top_k: int = 1) -> None:
        self.sampling = sampling or Sampling()
        self.target = target
        self.lower_top_k = lower_top_k

    @property
    def takes_best(self) -> bool:
        """See `Rule.takes_best`."""
        return not self.sampling.processors

    def draw(self, logits: Logits, prefix: Sequence[int], level: int) -> tuple[int, None]:
        """See `Rule.draw`."""
        return self._processed(logits, prefix, ()).best()[0], None

    def judge(
        self, tokens: Sequence[int], q: Sequence[Tensor | None], logits: Logits, prefix: Sequence[int], level: int
    ) -> Verdict:
        """See `Rule.judge`."""
        logits = self._processed(logits, prefix, tokens)
        best = logits.best()
        if self.lower_top_k > 1 and level < self.target:
            full = logits.full()
            near = full.topk(min(self.lower_top_k, full.shape[-1])).indices.tolist()
            accepted = first_refused(tokens, lambda i, token: token in near[i])
        else:
            accepted = first_refused(tokens, lambda i, token: token == best[i])
        return Verdict(accepted, best[accepted] if accepted < len(tokens) else None)

    def _processed(self, logits: Logits, prefix: Sequence[int], waiting: Sequence[int]) -> Logits:
        if not self.sampling.processors:
            return logits
        return Logits(self.sampling.processors(logits.full(), prefix, waiting))


class Speculative:
    """Temperature above 0: what every level lets through is an exact sample of that level.

    Args:
        sampling: how every level's logits become a distribution.
        randomness: independent streams for drafting, accepting and redrawing at every level.
        blocks: judge all waiting tokens as a block instead of one by one.
    """

    takes_best = False

    def __init__(self, sampling: Sampling, randomness: Randomness, blocks: bool = False) -> None:
        self.sampling, self.randomness, self.blocks = sampling, randomness, blocks

    def draw(self, logits: Logits, prefix: Sequence[int], level: int) -> tuple[int, Tensor]:
        """See `Rule.draw`."""
        p = self.sampling.distribution(logits.full(), prefix)[0]
        return self.randomness.choose(p, level, "draw"), p

    def judge(
        self, tokens: Sequence[int], q: Sequence[Tensor | None], logits: Logits, prefix: Sequence[int], level: int
    ) -> Verdict:
        """See `Rule.judge`."""
        p = self.sampling.distribution(logits.full(), prefix, tokens)
        u = self.randomness.uniform(level, "accept", len(tokens))
        accepted, share = block(tokens, p, q, u) if self.blocks else (speculative(tokens, p, q, u), 1.0)
        if accepted == len(tokens):
            return Verdict(accepted, None, tuple(p))
        rest = residual(p[accepted], q[accepted], tokens[accepted], share)
        correction = self.randomness.choose(rest, level, "redraw")
        return Verdict(accepted, correction, tuple(p[: accepted + 1]))
