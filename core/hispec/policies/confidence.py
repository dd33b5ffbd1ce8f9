"""Features of a level's logits that measure its confidence in a token, from which policies predict acceptance."""

from collections.abc import Callable, Sequence

from torch import Tensor

Confidence = tuple[float, ...]
"""The features that were asked for, in that order."""

TINY = 1e-30

WIDEST_MARGIN = 1e4
"""The margin of a token that has no rival, because the head has one token or all others are excluded."""


def margin_of(first: float, second: float) -> float:
    """Return the margin between the two highest logits, at most `WIDEST_MARGIN`."""
    return min(first - second, WIDEST_MARGIN)


def _margin(logits: Tensor) -> Tensor:
    if logits.shape[-1] == 1:
        return logits.new_full(logits.shape[:1], WIDEST_MARGIN)
    two = logits.topk(2).values
    return (two[:, 0] - two[:, 1]).clamp(max=WIDEST_MARGIN)


def _log_probability(logits: Tensor) -> Tensor:
    return logits.amax(-1) - logits.logsumexp(-1)


def _entropy(logits: Tensor) -> Tensor:
    probabilities = logits.softmax(-1)
    return -(probabilities * probabilities.clamp(min=TINY).log()).sum(-1)  # excluded tokens add 0


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "margin": _margin,
    "log_probability": _log_probability,
    "entropy": _entropy,
}
"""Figures of a level's distribution: between its two best logits; of its best token; of the whole, in nats."""


def confidence_of(logits: Tensor, features: Sequence[str]) -> list[Confidence]:
    """Return the confidence of a level, row by row.

    Args:
        logits: [n, vocab].
        features: some of `FEATURES`; each needs a pass over the vocabulary, and the margin is the cheapest.
    """
    columns = [FEATURES[name](logits.float()).tolist() for name in features]
    return list(zip(*columns, strict=True))
