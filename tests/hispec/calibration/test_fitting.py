"""Predictors of acceptance find what there is to find, and are chosen by what they have not seen."""

from itertools import pairwise
from math import exp
from random import Random

import pytest

from hispec.calibration.fitting import fit, fit_logistic, fit_table, log_likelihood, mean_acceptance, samples_of
from hispec.calibration.recording import LevelSpec
from hispec.policies.prediction import Logistic, Table, probability_of

WHOLE = ("margin", "log_probability", "entropy")


def drawn(probability, count, seed=0):
    """Samples whose margin is uniform in 0..10 and decides; the other features are noise."""
    rng = Random(seed)
    found = []
    for _ in range(count):
        margin = rng.uniform(0, 10)
        sure = (margin, -rng.uniform(0.01, 3), rng.uniform(0.01, 5))
        found.append((sure, rng.random() < probability(margin)))
    return found


def smooth(margin):
    return 1 / (1 + exp(1.5 - margin))


def steps(margin):
    return 0.1 if margin < 4 else 0.5 if margin < 8 else 0.97


def only_margin(samples):
    return [((sure[0],), accepted) for sure, accepted in samples]


@pytest.mark.parametrize("probability", [smooth, steps])
def test_a_table_rises_and_is_near_the_truth(probability):
    table = fit_table(only_margin(drawn(probability, 20_000)), "margin")
    assert all(b >= a for a, b in pairwise(table.probabilities))
    for margin in (1.0, 3.0, 6.0, 9.0):
        assert probability_of(table.log_odds((margin,))) == pytest.approx(probability(margin), abs=0.06)


def test_a_table_of_falling_acceptance_is_flat_and_never_falls():
    table = fit_table(only_margin(drawn(lambda margin: 0.9 - 0.08 * margin, 4000)), "margin")
    assert len(set(table.probabilities)) == 1
    assert table.probabilities[0] == pytest.approx(table.mean, abs=0.01)


def test_a_logistic_regression_finds_the_weights():
    fitted = fit_logistic(only_margin(drawn(lambda m: probability_of(-1 + 0.6 * m), 20_000)), ("margin",))
    for margin in (0.5, 2.0, 5.0):
        assert fitted.log_odds((margin,)) == pytest.approx(-1 + 0.6 * margin, abs=0.25)


def test_the_choice_goes_by_what_was_not_seen():
    curved, _ = fit(drawn(steps, 6000), drawn(steps, 6000, seed=1), ("margin",))
    straight, _ = fit(drawn(smooth, 400), drawn(smooth, 6000, seed=1), ("margin",))
    assert isinstance(curved, Table)
    assert isinstance(straight, Logistic)


def test_several_features_are_weighed_together():
    predictor, likelihood = fit(drawn(smooth, 6000), drawn(smooth, 6000, seed=1), WHOLE)
    alone, best = fit(drawn(smooth, 6000), drawn(smooth, 6000, seed=1), ("margin",))
    assert predictor.features == WHOLE
    assert likelihood == pytest.approx(best, abs=0.01), "noise neither helps nor hurts"
    assert alone.features == ("margin",)


def test_acceptance_without_exception_leaves_room_for_doubt():
    certain = [((5.0,), True)] * 50
    assert 0.9 < mean_acceptance(certain) < 1
    for predictor in (fit_table(certain, "margin"), fit_logistic(certain, ("margin",))):
        assert 0.5 < probability_of(predictor.log_odds((5.0,))) < 1
        assert log_likelihood(predictor, certain) > -0.7


def test_samples_say_whether_two_readers_agree(recorded):
    lower, upper = LevelSpec("random", 2), LevelSpec("random", 6)
    samples = samples_of(lower, upper, recorded.texts)
    assert len(samples) == sum(len(text.tokens) for text in recorded.texts)
    agreed = sum(accepted for _, accepted in samples)
    assert 0 < agreed < len(samples)
    assert all(accepted for _, accepted in samples_of(upper, upper, recorded.texts))
