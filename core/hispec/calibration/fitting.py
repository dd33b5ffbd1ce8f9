"""Fits predictors of acceptance to recorded predictions.

Along the target's own text, a level accepts a token of the level below where their argmax tokens agree. The confidence
of the lower level predicts much of whether they will.
"""

from collections.abc import Iterable, Sequence
from math import log
from typing import NamedTuple

import torch

from hispec.calibration.recording import LevelSpec, RecordedText
from hispec.policies.confidence import FEATURES, Confidence
from hispec.policies.prediction import Logistic, Predictor, Table, clamped, probability_of, terms

Sample = tuple[Confidence, bool]
"""The confidence of a level, with all features, and whether the next level accepted the token."""

KNOTS = 24
"""The largest number of values in a table."""

RIDGE = 1e-2
"""The regularization of a logistic regression, which bounds the weights where all tokens were accepted."""


def samples_of(lower: LevelSpec, upper: LevelSpec, texts: Sequence[RecordedText]) -> list[Sample]:
    """Return a sample for every token of the texts: the lower level's confidence, and whether the upper one agrees."""
    return [
        (sure, own == other)
        for text in texts
        for sure, own, other in zip(
            text.predictions[lower].confidence,
            text.predictions[lower].argmax,
            text.predictions[upper].argmax,
            strict=True,
        )
    ]


def fit(samples: Sequence[Sample], held_out: Sequence[Sample], features: Sequence[str]) -> tuple[Predictor, float]:
    """Return the predictor on these features that fits the held-out samples best, and its mean log-likelihood there.

    Args:
        samples: the samples to fit to.
        held_out: the samples by which the predictor is chosen.
        features: one gives the choice of an isotonic table and a logistic regression, several only the latter.
    """
    places = [list(FEATURES).index(name) for name in features]
    chosen, unseen = (
        [(tuple(sure[p] for p in places), accepted) for sure, accepted in part] for part in (samples, held_out)
    )
    candidates: list[Predictor] = [fit_logistic(chosen, features)]
    if len(features) == 1:
        candidates.append(fit_table(chosen, features[0]))
    return max(((each, log_likelihood(each, unseen)) for each in candidates), key=lambda scored: scored[1])


def log_likelihood(predictor: Predictor, samples: Iterable[Sample]) -> float:
    """Return the mean in nats for each token; `samples` hold its features only."""
    logs = [log(probability_of(predictor.log_odds(sure) * (1 if accepted else -1))) for sure, accepted in samples]
    return sum(logs) / len(logs)


def mean_acceptance(samples: Sequence[Sample]) -> float:
    """Return the share that was accepted, as if one more of each had been seen: never 0 or 1."""
    return (sum(accepted for _, accepted in samples) + 1) / (len(samples) + 2)


def fit_table(samples: Sequence[Sample], feature: str) -> Table:
    """Fit an isotonic regression by pooling adjacent violators (Barlow et al., *Statistical Inference under Order
    Restrictions*, 1972), on bins of equal count; each begins with one token accepted and one refused.
    """
    ordered = sorted((sure[0], accepted) for sure, accepted in samples)
    size = max(1, -(-len(ordered) // KNOTS))
    pools: list[_Pool] = []
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        middle = sum(x for x, _ in part) / len(part)
        pools.append(_Pool(middle, middle, sum(y for _, y in part), len(part)))
        while len(pools) > 1 and pools[-2].rate >= pools[-1].rate:
            last, before = pools.pop(), pools.pop()
            pools.append(_Pool(before.first, last.last, before.accepted + last.accepted, before.tokens + last.tokens))
    knots = {round(x, 4): round(clamped(pool.rate), 5) for pool in pools for x in (pool.first, pool.last)}
    return Table(tuple(knots), tuple(knots.values()), round(mean_acceptance(samples), 5), (feature,))


class _Pool(NamedTuple):
    """Adjacent bins that share a rate: the feature in the first and in the last of them, tokens accepted, tokens."""

    first: float
    last: float
    accepted: int
    tokens: int

    @property
    def rate(self) -> float:
        return (self.accepted + 1) / (self.tokens + 2)


def fit_logistic(samples: Sequence[Sample], features: Sequence[str]) -> Logistic:
    """Fit a logistic regression with a small ridge, by Newton's method."""
    x = torch.tensor([terms(features, sure) for sure, _ in samples], dtype=torch.float64)
    y = torch.tensor([float(accepted) for _, accepted in samples], dtype=torch.float64)
    ridge = RIDGE * torch.eye(x.shape[1], dtype=torch.float64) * len(y) / 100
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (y - p) - ridge @ weights
        step = torch.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + ridge, gradient)
        weights += step.clamp(-4, 4)
        if step.abs().max() < 1e-7:
            break
    return Logistic(tuple(round(w, 5) for w in weights.tolist()), round(mean_acceptance(samples), 5), tuple(features))
