"""The rule by which a level's token is chosen: the argmax of its logits, or of log-probabilities with noise added.

The rule is the same for every level. A token depends on the prefix, the position and the seed only, never on drafts, so
that the target writes the same text whatever is drafted before it (docs/exactness.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hispec.decoding.logits import Logits
from hispec.decoding.mask import Mask, masked
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.processors import Processors

NUCLEUS = (64, 1024)
"""Tokens among which the nucleus of top-p is looked for, before the whole vocabulary is sorted."""


@dataclass(frozen=True)
class Sampling:
    """The tokens that may be drawn and their probabilities. Names, order and meaning of the options are those of
    `transformers`.

    Attributes:
        temperature: 0 is greedy: the argmax, always.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest most probable tokens that together have this probability; 1 keeps all.
        min_p: keep tokens at least this share as likely as the most probable; 0 keeps all.
        processors: applied to the logits before all else, in greedy decoding too.
        mask: excludes tokens next, in greedy decoding too; None excludes none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: Processors = field(default_factory=Processors)
    mask: Mask | None = None

    @property
    def greedy(self) -> bool:
        """Return whether the argmax is always chosen."""
        return self.temperature == 0

    @property
    def excludes(self) -> bool:
        """Return whether some tokens may not be drawn, however likely others are."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    @property
    def depends_on_text(self) -> bool:
        """Return whether the logits change with the text before a token, by more than the model."""
        return bool(self.processors) or self.mask is not None

    def restrict(self, logits: Tensor, prefix: Sequence[int], waiting: Sequence[int] = ()) -> Tensor:
        """Return logits as processors and mask leave them, [n, vocab]; arguments as `Processors`."""
        scores = self.processors(logits, prefix, waiting)
        return scores if self.mask is None else masked(self.mask, scores, logits, prefix, waiting)

    def warp(self, logits: Tensor) -> Tensor:
        """Return logits of the distribution that a token is drawn from, up to a constant; -inf where it cannot be.

        It takes one row, so that its sums run in the same order however many rows are computed together.

        Args:
            logits: the logits of one token, [vocab].
        """
        scores = logits.float() / self.temperature
        if 0 < self.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1:
            scores = _keep_nucleus(scores, self.top_p)
        if self.min_p:
            # p >= min_p * p_max, in logarithms.
            scores = scores.masked_fill(scores.softmax(-1) < self.min_p * scores.softmax(-1).amax(), -torch.inf)
        return scores


class Sampler:
    """Chooses the token of every level, by one rule.

    Args:
        sampling: the sampling options.
        noise: the noise of the text; greedy sampling needs none.
        lower_top_k: levels below the target accept a token that is among the k with the highest scores.
    """

    def __init__(self, sampling: Sampling, noise: GumbelNoise | None = None, lower_top_k: int = 1) -> None:
        if noise is None and not sampling.greedy:
            raise ValueError("sampling needs noise")
        self.sampling, self.noise, self.lower_top_k = sampling, noise, lower_top_k

    @property
    def takes_argmax(self) -> bool:
        """Return whether the token is the argmax of the unchanged logits, for any text."""
        return self.sampling.greedy and not self.sampling.depends_on_text

    def scores(self, logits: Logits, prefix: Sequence[int], waiting: Sequence[int] = ()) -> Logits:
        """Return scores whose argmax is the level's own token of each row; arguments and errors as `distribution`."""
        chances = self.distribution(logits, prefix, waiting)
        if self.sampling.greedy:
            return chances
        rows = [self._with_noise(row, chances, len(prefix) + i) for i, row in enumerate(chances.own)]
        return replace(chances, values=torch.stack(rows))

    def distribution(self, logits: Logits, prefix: Sequence[int], waiting: Sequence[int] = ()) -> Logits:
        """Return logits of the distributions that the level's tokens are drawn from, or have the argmax of if greedy.

        Args:
            logits: the logits of n tokens; row i is for the token after `prefix + waiting[:i]`.
            prefix: the text before the first row's token; its length is that token's position.
            waiting: the tokens between the rows, at least n - 1.

        Raises:
            UsageError: logits that are not numbers.
        """
        if self.takes_argmax:
            return logits
        logits.check()
        if self.sampling.depends_on_text:
            logits = replace(logits, values=self.sampling.restrict(logits.full(), prefix, waiting), ids=None)
        if self.sampling.greedy:
            return logits
        return replace(logits, values=torch.stack([self.sampling.warp(row) for row in logits.own]))

    def _with_noise(self, scores: Tensor, logits: Logits, position: int) -> Tensor:
        """Add the noise of a position to scores [vocab]; only to those that can win, where they are few."""
        assert self.noise is not None
        if not self.sampling.excludes:
            return scores + logits.select(self.noise.at(position))
        places = scores.isfinite().nonzero()[:, 0]
        ids = places if logits.ids is None else logits.ids[places]
        return scores.index_add(0, places, self.noise.at(position, ids))


def _keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Exclude what is beyond the fewest most probable tokens that together have probability `top_p`.

    Among equally probable tokens at the edge, the same ones are kept as in `transformers`, where the order of its sort
    decides.

    Args:
        scores: log-probabilities up to a constant, [vocab].
        top_p: a probability in [0, 1).
    """
    count, total = len(scores), scores.logsumexp(-1)
    for size in sorted({count, *(size for size in NUCLEUS if size < count)}):
        highest = scores.topk(size).values
        mass = (highest - total).exp().cumsum(-1)
        kept = int((mass < top_p).sum()) + 1
        if kept <= size or size == count:
            break
    kept = min(kept, count)
    least = highest[kept - 1]
    excluded = scores < least
    if count - int(excluded.sum()) > kept:
        excluded[scores.sort(descending=False).indices[: count - kept]] = True
    return scores.masked_fill(excluded, -torch.inf)
