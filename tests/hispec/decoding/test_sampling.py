"""From logits to a distribution, and the streams of randomness that draw from it."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Randomness, Sampling

PENALTY = Processors([RepetitionPenaltyLogitsProcessor(1.7)])
SETTINGS = [
    Sampling(0.7),
    Sampling(1.3, top_k=3),
    Sampling(1.0, top_k=100),
    Sampling(0.8, top_p=0.6),
    Sampling(1.0, top_p=0.05),
    Sampling(1.0, min_p=0.2),
    Sampling(1.0, processors=PENALTY),
    Sampling(0.6, top_k=8, top_p=0.9, min_p=0.1, processors=PENALTY),
]


def warpers_of(sampling):
    """What `transformers` itself would apply."""
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7)] if sampling.processors else ())
    warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_the_distribution_is_that_of_transformers(sampling):
    logits = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * 3
    prefix, waiting = [3, 7], [1, 15, 3, 2] * 10
    ours = sampling.distribution(logits, prefix, waiting)
    for i in range(len(logits)):
        scores = warpers_of(sampling)(torch.tensor([prefix + waiting[:i]]), logits[i : i + 1].clone())
        torch.testing.assert_close(ours[i], scores.softmax(-1)[0])


def test_equal_seeds_give_equal_streams_and_every_stream_is_its_own():
    keys = [(level, purpose) for level in range(3) for purpose in ("draw", "accept", "redraw")]
    first = [tuple(Randomness(5).uniform(*key, 4)) for key in keys]
    assert first == [tuple(Randomness(5).uniform(*key, 4)) for key in keys]
    assert len(set(first)) == len(keys)
    assert first != [tuple(Randomness(6).uniform(*key, 4)) for key in keys]


def test_streams_do_not_disturb_each_other():
    quiet, busy = Randomness(1), Randomness(1)
    busy.uniform(0, "accept", 100)
    assert quiet.uniform(0, "draw", 3) == busy.uniform(0, "draw", 3)


def test_choices_follow_the_weights_and_never_pick_what_cannot_be():
    weights = torch.tensor([0.0, 0.3, 0.0, 0.6, 0.1, 0.0]) * 7
    random = Randomness(2)
    counts = torch.zeros(6)
    for _ in range(20_000):
        counts[random.choose(weights, 0, "draw")] += 1
    assert counts[[0, 2, 5]].sum() == 0
    # Five standard deviations: a false alarm in a million.
    assert (counts / 20_000 - weights / 7).abs().max() < 5 * (0.25 / 20_000) ** 0.5
