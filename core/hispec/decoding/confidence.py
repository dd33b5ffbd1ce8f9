"""How sure a level is of a token: figures from its logits, from which policies predict acceptance."""

from collections.abc import Callable, Sequence

from torch import Tensor

Confidence = tuple[float, ...]
"""The features that were asked for, in that order."""


def _margin(logits: Tensor) -> Tensor:
    two = logits.topk(2).values
    return two[:, 0] - two[:, 1]


def _log_probability(logits: Tensor) -> Tensor:
    return logits.amax(-1) - logits.logsumexp(-1)


def _entropy(logits: Tensor) -> Tensor:
    logarithm = logits.log_softmax(-1)
    return -(logarithm.exp() * logarithm).sum(-1)


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "margin": _margin,
    "log_probability": _log_probability,
    "entropy": _entropy,
}
"""Figures of a level's distribution: between its two best logits; of its best token; of the whole, in nats."""


def confidence_of(logits: Tensor, features: Sequence[str]) -> list[Confidence]:
    """How sure a level is, row by row.

    Args:
        logits: [n, words], at least two words.
        features: some of `FEATURES`; each costs a pass over the words, the margin the cheapest.
    """
    columns = [FEATURES[name](logits.float()).tolist() for name in features]
    return list(zip(*columns, strict=True))
