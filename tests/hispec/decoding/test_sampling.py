"""From logits to scores: the distribution is that of `transformers`, and the argmax of noisy scores draws from it."""

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

from hispec.decoding import sampling as module
from hispec.decoding.logits import Logits
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampler, Sampling
from hispec.errors import UsageError

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
    """The distribution of `transformers`."""
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
    processed = sampling.processors(logits, prefix, waiting)
    for i in range(len(logits)):
        scores = warpers_of(sampling)(torch.tensor([prefix + waiting[:i]]), logits[i : i + 1].clone())
        torch.testing.assert_close(sampling.warp(processed[i]).softmax(-1), scores.softmax(-1)[0])


@pytest.mark.parametrize("nucleus", [(1,), (2, 5), (64, 1024)])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.25, 0.5, 0.6, 0.999])
def test_of_equally_likely_tokens_those_are_kept_that_transformers_keeps(monkeypatch, nucleus, top_p):
    monkeypatch.setattr(module, "NUCLEUS", nucleus)
    for row in (
        [1.0] * 8,
        [2.0, 1.0, 2.0, 1.0, 1.0, 0.0],
        [0.0, 3.0, 3.0, 3.0, 0.0],
        [float(i % 3) for i in range(40)],
    ):
        logits = torch.tensor(row)
        expected = TopPLogitsWarper(top_p)(None, logits[None].clone())[0]
        assert torch.equal(Sampling(1.0, top_p=top_p).warp(logits), expected), (row, top_p)


def sampler(sampling, seed=0, vocab=16):
    return Sampler(sampling, GumbelNoise(seed, vocab, torch.device("cpu")))


@pytest.mark.parametrize("sampling", [s for s in SETTINGS if not s.processors], ids=str)
def test_draws_follow_the_distribution_and_never_pick_what_cannot_be(sampling):
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)) * 2
    expected = sampling.warp(logits[0]).softmax(-1)
    one, counts, draws = sampler(sampling), torch.zeros(16), 4_000
    for position in range(draws):
        (token,) = one.scores(Logits(logits), [0] * position).argmax()
        counts[token] += 1
    assert counts[expected == 0].sum() == 0
    # Five standard deviations: a false alarm in a million.
    assert (counts / draws - expected).abs().max() < 5 * (0.25 / draws) ** 0.5


@pytest.mark.parametrize("sampling", [Sampling(0.9), Sampling(0.9, top_p=0.8), Sampling(0.7, top_k=5)], ids=str)
def test_rows_are_scored_alike_alone_and_together_and_by_levels_that_have_the_token(sampling):
    """A token's score depends on its row, position and id: not on other rows, nor on which tokens a head lacks."""
    logits, text = torch.randn(6, 16, generator=torch.Generator().manual_seed(2)), [1, 2, 3]
    together = sampler(sampling).scores(Logits(logits), text, [4] * 5).own
    for row in range(6):
        alone = sampler(sampling).scores(Logits(logits[row : row + 1]), text + [4] * row).own
        assert torch.equal(alone[0], together[row])
    ids = torch.arange(1, 16, 2)
    reduced = sampler(Sampling(0.9)).scores(Logits(logits[:, ids], ids, 16), text, [4] * 5)
    whole = sampler(Sampling(0.9)).scores(Logits(logits), text, [4] * 5)
    assert torch.equal(reduced.own, whole.own[:, ids])
    assert reduced.argmax() == [ids[whole.own[row, ids].argmax()].item() for row in range(6)]


def test_the_highest_scores_are_taken_after_the_noise():
    logits = Logits(torch.zeros(1, 16))
    found = {tuple(sampler(Sampling(1.0), seed).scores(logits, [1]).top(3)[0]) for seed in range(20)}
    assert len(found) > 10
    scores = sampler(Sampling(1.0), 3).scores(logits, [1])
    assert scores.top(3)[0][0] == scores.argmax()[0]
    assert scores.top(99)[0][:3] == scores.top(3)[0]


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
@pytest.mark.parametrize("limits", [{}, {"top_p": 0.0}, {"top_k": 10**9}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_extreme_settings_give_a_token(temperature, limits):
    logits = torch.tensor([[1.0, 5.0, -3.0, 4.9]])
    scores = sampler(Sampling(temperature, **limits), 1, 4).scores(Logits(logits), [0])
    (token,) = scores.argmax()
    if temperature < 1 or limits in ({"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}):
        assert token == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.8, top_p=0.5)], ids=str)
def test_logits_that_are_not_numbers_name_their_level(bad, sampling):
    logits = torch.zeros(2, 16)
    logits[1, 3] = bad
    with pytest.raises(UsageError, match="the draft level gives no token"):
        sampler(sampling).scores(Logits(logits, level="draft"), [0], [1]).argmax()


def test_sampling_needs_noise():
    with pytest.raises(ValueError, match="noise"):
        Sampler(Sampling(1.0))


def test_probabilities_are_those_of_float32_whatever_the_logits_are():
    logits = (torch.randn(4096, generator=torch.Generator().manual_seed(3)) * 8).bfloat16()
    for sampling in SETTINGS:
        found = sampling.warp(logits)
        assert found.dtype == torch.float32 and torch.equal(found, sampling.warp(logits.float()))
