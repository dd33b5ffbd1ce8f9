"""Predicted against observed acceptance."""

from random import Random

import pytest

from hispec.calibration.reliability import FEWEST, reliability, wilson
from hispec.policies.prediction import Table, probability_of

PREDICTOR = Table((0.0, 10.0), (0.2, 0.9), 0.5)


def samples(count, true_chance):
    rng = Random(5)
    margins = [rng.uniform(0, 10) for _ in range(count)]
    return [((margin, 0.0, 0.0), rng.random() < true_chance(PREDICTOR, margin)) for margin in margins]


def predicted(predictor, margin):
    return probability_of(predictor.log_odds((margin,)))


def test_where_predictions_hold_shares_are_as_predicted():
    bins = reliability(PREDICTOR, samples(5000, predicted))
    assert len(bins) == 10 and sum(each.tokens for each in bins) == 5000
    assert [each.predicted for each in bins] == sorted(each.predicted for each in bins)
    assert sum(low <= each.predicted <= high for each in bins for low, high in [each.ci95]) >= 8


def test_where_they_do_not_the_curve_leaves_the_diagonal():
    bins = reliability(PREDICTOR, samples(5000, lambda predictor, margin: 1 - predicted(predictor, margin)))
    assert bins[0].accepted > bins[-1].accepted
    assert not any(low <= each.predicted <= high for each in (bins[0], bins[-1]) for low, high in [each.ci95])


@pytest.mark.parametrize("count", [0, 1, FEWEST, FEWEST + 3, 5 * FEWEST + 1])
def test_no_bin_is_small_where_there_are_more(count):
    bins = reliability(PREDICTOR, samples(count, predicted))
    assert sum(each.tokens for each in bins) == count
    assert len(bins) <= 1 or min(each.tokens for each in bins) >= FEWEST


def test_the_interval_is_wilsons():
    low, high = wilson(0.9, 10)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0) and wilson(0.0, 10)[0] == 0.0
