"""Predicting from a level's confidence whether the next level will accept its token."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, expm1, log, log1p
from typing import Protocol

from hispec.policies.confidence import Confidence

LogOdds = Callable[[Confidence], float]
MIN_DISTANCE = 1e-4
"""No prediction comes closer to 0 or 1: one surprise must not weigh without limit."""
MAX_LOG_ODDS = log(1 / MIN_DISTANCE - 1)

FITTED_WEIGHT, ASSUMED_WEIGHT = 40.0, 4.0
"""The number of tokens that a mean counts for if it was fitted to texts, and if it was not measured."""


class Predictor(Protocol):
    """Confidence in, probability of acceptance out.

    Attributes:
        features: the features that it reads, some of `hispec.policies.confidence.FEATURES`.
        mean: acceptance of all tokens it was fitted on.
        weight: the number of tokens that the mean counts for when it is averaged with observed acceptance.
    """

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features that it reads."""
        ...

    @property
    def mean(self) -> float:
        """Return the acceptance of all tokens that it was fitted on."""
        ...

    @property
    def weight(self) -> float:
        """Return the number of tokens that the mean counts for."""
        ...

    def log_odds(self, confidence: Confidence) -> float:
        """Return ln(p / (1 - p)) of the probability of acceptance; `confidence` holds its features in their order."""
        ...


@dataclass(frozen=True)
class Table:
    """Probabilities at some values of one feature, their log-odds linear in between; fitted by isotonic regression.

    Attributes:
        knots: ascending values of the feature.
        probabilities: the probability of acceptance at each of these.
        mean: the mean acceptance, as for `Predictor`.
        features: the one that it reads.
        weight: the number of tokens that the mean counts for, as for `Predictor`.
    """

    knots: tuple[float, ...]
    probabilities: tuple[float, ...]
    mean: float
    features: tuple[str, ...] = ("margin",)
    weight: float = FITTED_WEIGHT
    _odds: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_odds", tuple(map(log_odds_of, self.probabilities)))

    def log_odds(self, confidence: Confidence) -> float:
        """Return ln(p / (1 - p)) of the probability of acceptance; `confidence` holds its features in their order."""
        knots, odds, value = self.knots, self._odds, confidence[0]
        at = bisect_right(knots, value)
        if at == 0 or at == len(knots):
            return odds[min(at, len(knots) - 1)]
        share = (value - knots[at - 1]) / (knots[at] - knots[at - 1])
        return odds[at - 1] + share * (odds[at] - odds[at - 1])


@dataclass(frozen=True)
class Logistic:
    """A logistic regression: log-odds linear in `terms` of the features.

    Attributes:
        weights: the weights of the constant 1 and of each term.
        mean: the mean acceptance, as for `Predictor`.
        features: the features that it reads.
        weight: the number of tokens that the mean counts for, as for `Predictor`.
    """

    weights: tuple[float, ...]
    mean: float
    features: tuple[str, ...]
    weight: float = FITTED_WEIGHT

    def log_odds(self, confidence: Confidence) -> float:
        """Return ln(p / (1 - p)) of the probability of acceptance; `confidence` holds its features in their order."""
        if self.features == ("margin",):  # this most frequent case needs no list
            constant, linear, bent = self.weights
            (margin,) = confidence
            return constant + linear * margin + bent * log1p(margin)
        return sum(w * x for w, x in zip(self.weights, terms(self.features, confidence), strict=True))


def terms(features: Sequence[str], confidence: Confidence) -> list[float]:
    """Return the terms that a `Logistic` weighs: features transformed so that log-odds of acceptance are about linear
    in them.
    """
    values = [1.0]
    for name, value in zip(features, confidence, strict=True):
        match name:
            case "margin":
                values += [value, log1p(value)]
            case "log_probability":
                values.append(log(-expm1(min(value, -1e-7))))  # the logarithm of the probability of any other token
            case _:
                values.append(log(max(value, 0.0) + 1e-6))
    return values


UNCALIBRATED = Logistic((-0.3, 0.0, 1.6), 0.5, ("margin",), ASSUMED_WEIGHT)
"""The predictor of a pair that was not measured: a token whose two best logits are 3 apart is accepted in six of seven
cases. Decoding corrects it.
"""

QUANTIZED = Logistic((0.5, 0.0, 1.6), 0.85, ("margin",), ASSUMED_WEIGHT)
"""The same for the whole depth of a quantized copy, which most often agrees with the full weights."""


def log_odds_from(predictor: Predictor, features: Sequence[str]) -> LogOdds:
    """Return a predictor that reads confidences of more features than its own."""
    if tuple(features) == predictor.features:
        return predictor.log_odds
    places = [features.index(name) for name in predictor.features]
    return lambda confidence: predictor.log_odds(tuple(confidence[place] for place in places))


def probability_of(log_odds: float) -> float:
    """Return the probability, neither 0 nor 1."""
    if log_odds > MAX_LOG_ODDS:
        return 1 - MIN_DISTANCE
    return 1 / (1 + exp(-log_odds)) if log_odds > -MAX_LOG_ODDS else MIN_DISTANCE


def log_odds_of(probability: float) -> float:
    """Return ln(p / (1 - p)) of a probability, within limits."""
    probability = clamped(probability)
    return log(probability / (1 - probability))


def clamped(probability: float) -> float:
    """Return a probability that is neither 0 nor 1."""
    return min(1 - MIN_DISTANCE, max(MIN_DISTANCE, probability))
