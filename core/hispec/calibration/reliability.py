"""Checks predicted acceptance: tokens sorted by prediction, and the share of them that was accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from hispec.calibration.fitting import Sample
from hispec.policies.confidence import FEATURES
from hispec.policies.prediction import Predictor, log_odds_from, probability_of

BINS = 10
"""The largest number of bins."""
FEWEST = 10
"""Tokens of a bin, at least."""
Z95 = 1.96


@dataclass(frozen=True)
class Bin:
    """Tokens of about the same prediction.

    Attributes:
        tokens: the number of tokens.
        predicted: their mean predicted probability of acceptance.
        accepted: the share that was accepted.
        ci95: the interval of that share: Wilson, *Probable Inference, the Law of Succession, and Statistical
            Inference*, 1927.
    """

    tokens: int
    predicted: float
    accepted: float
    ci95: tuple[float, float]


def reliability(predictor: Predictor, samples: Sequence[Sample]) -> list[Bin]:
    """Return predicted against observed acceptance, in bins of equal count, from doubtful to sure.

    Args:
        predictor: the predictor to check.
        samples: samples with all features; samples that it was fitted to would make it look better than it is.
    """
    odds = log_odds_from(predictor, list(FEATURES))
    ordered = sorted((probability_of(odds(sure)), accepted) for sure, accepted in samples)
    size = max(FEWEST, -(-len(ordered) // BINS))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    if len(parts) > 1 and len(parts[-1]) < FEWEST:
        last = parts.pop()
        parts[-1] += last
    return [_bin(part) for part in parts]


def _bin(part: Sequence[tuple[float, bool]]) -> Bin:
    count = len(part)
    predicted = sum(probability for probability, _ in part) / count
    accepted = sum(was for _, was in part) / count
    return Bin(count, predicted, accepted, wilson(accepted, count))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of some tokens."""
    spread = Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
