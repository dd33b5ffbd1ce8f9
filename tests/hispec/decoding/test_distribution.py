"""Sampling is exact: the target alone draws from its own joint distribution, and every hierarchy writes what it draws.

For one seed, all kinds of hierarchy write the same text as the target alone, token for token. So only the target alone
has to be counted against the distribution that it should have. Seeds are fixed; with other seeds each of the drawn
tests would fail by chance once in 10,000 times (`ALARM`). `pytest --draws N` draws more; the table of p-values is
printed at the end of the run.
"""

from math import sqrt

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from hispec.adaptation import performance_model
from hispec.decoding import noise
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Verified
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.static import StaticPolicy
from tests.toy import ToyStack, chi_square, draw_many, draw_windows, exits_of, joint, sampler_of, transitions, write

ALARM = 1e-4
PROMPT = [0, 1]
WARM = Sampling(temperature=0.9)
PENALTY = Processors([RepetitionPenaltyLogitsProcessor(1.5)])
SAMPLINGS = {
    "warm": WARM,
    "hot": Sampling(1.5),
    "top-k": Sampling(1.2, top_k=3),
    "top-p": Sampling(0.8, top_p=0.7),
    "min-p": Sampling(1.0, min_p=0.3),
    "penalty": Sampling(1.0, processors=PENALTY),
    "greedy, penalty": Sampling(processors=PENALTY),
}


def hierarchies(vocab):
    """One hierarchy of each kind, on models with a vocabulary of that size."""
    target, small, middle = (ToyStack.random(layers, vocab, seed) for layers, seed in ((4, 1), (2, 5), (3, 6)))
    copy, finer = (ToyStack(target.near(share, seed=8).tables, shares=target) for share in (0.6, 0.9))
    return {
        "exit, target": exits_of(target, 1),
        "exit, exit, target": exits_of(target, 1, 2),
        "four exits": exits_of(target, 1, 2, 3),
        "model, exit, target": [Level("small", small, 2), *exits_of(target, 2)],
        "model, model, target": [Level("small", small, 2), Level("middle", middle, 3), *exits_of(target)],
        "n-grams, target": exits_of(target, ngrams=(3, 3)),
        "n-grams, exit, exit, target": exits_of(target, 1, 2, ngrams=(3, 3)),
        # The draft's logits are the negative of the target's.
        "opposed exit, exit, target": exits_of(ToyStack.random(3, vocab, seed=2, scale=1.0, opposed=True), 1, 2),
        # Tokens that some level lacks: the draft, both, or each another one.
        "few words, exit, target": exits_of(target, 1, 2, words=[[*range(1, vocab)]]),
        "few words, few words, target": exits_of(target, 1, 2, words=[[*range(vocab - 1)]] * 2),
        "few words, other words, target": exits_of(target, 1, 2, words=[[*range(1, vocab)], [*range(vocab - 1)]]),
        "copy, target": [Level("copy", copy, 4), *exits_of(target)],
        "exit of a copy, copy, target": [*exits_of(copy, 1)[:-1], Level("copy", copy, 4), *exits_of(target)],
        "exit of a copy, another copy, target": [
            *exits_of(copy, 2)[:-1],
            Level("finer copy", finer, 4),
            *exits_of(target),
        ],
        "exit, copy, target": [*exits_of(target, 1)[:-1], Level("copy", copy, 4), *exits_of(target)],
        "exit of a copy, exit, target": [*exits_of(copy, 1)[:-1], *exits_of(target, 2)],
        "n-grams, exit of a copy, two exits of another, target": [
            *exits_of(copy, 1, ngrams=(3, 3))[:-1],
            *exits_of(finer, 2, 3)[:-1],
            *exits_of(target),
        ],
        "n-grams, one word, target": exits_of(target, 2, ngrams=(3, 3), words=[[2]]),
    }


KINDS = hierarchies(6)


@pytest.fixture
def draws(request):
    """The number of draws: `--draws`."""
    return request.config.getoption("--draws")


@pytest.mark.parametrize("adaptive", [False, True], ids=["static", "adaptive"])
@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_hierarchy_writes_what_the_target_alone_draws(kind, name, adaptive):
    levels, sampling = KINDS[kind], SAMPLINGS[name]
    policy_of = (lambda hierarchy: AdaptivePolicy(performance_model(hierarchy, None))) if adaptive else None
    for seed, eos, n_d, n_i in ((0, (), 2, 3), (1, (3,), 1, 2), (2, (), 4, 9)):
        sampler = sampler_of(levels, sampling, seed)
        alone = write(levels[-1:], sampler, PROMPT, 40, eos=eos)
        found = write(levels, sampler, PROMPT, 40, n_d=n_d, n_i=n_i, eos=eos, policy_of=policy_of)
        assert found == alone, (seed, n_d, n_i, eos)


def test_lower_levels_may_be_lenient_when_sampling_too():
    levels = KINDS["exit, exit, target"]
    for seed in range(20):
        strict, lenient = sampler_of(levels, WARM, seed), sampler_of(levels, WARM, seed)
        lenient.lower_top_k = 3
        assert write(levels, lenient, PROMPT, 40) == write(levels[-1:], strict, PROMPT, 40)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_levels_that_think_alike_draw_alike(name):
    """The noise of a position is the same at all levels, so a draft with the target's own distribution is accepted."""
    first, second, target = (ToyStack.random(4, 6, seed=1) for _ in range(3))
    levels = [Level("draft", first, 4), Level("middle", second, 4), *exits_of(target)]
    for seed in range(5):
        state = DecodingState(Hierarchy(levels), PROMPT, len(PROMPT) + 40)
        policy = StaticPolicy.of(state.hierarchy, 3, 6)
        events = list(decode(state, policy, sampler_of(levels, SAMPLINGS[name], seed), StopCriteria(40)))
        verified = [event for event in events if isinstance(event, Verified)]
        assert verified
        assert all(event.accepted == event.proposed for event in verified)


def test_other_seeds_give_other_texts():
    levels = KINDS["exit, exit, target"]
    texts = {tuple(write(levels, sampler_of(levels, WARM, seed), PROMPT, 20)) for seed in range(50)}
    assert len(texts) == 50


@pytest.mark.parametrize(
    "sampling",
    [WARM, Sampling(1.2, top_k=2), Sampling(0.8, top_p=0.7), Sampling(1.0, min_p=0.3), SAMPLINGS["penalty"]],
    ids=["temperature", "top-k", "top-p", "min-p", "repetition penalty"],
)
@pytest.mark.parametrize("eos", [(), (1,)])
def test_the_joint_distribution_of_three_tokens_is_the_targets(sampling, eos, draws):
    target = exits_of(ToyStack.random(4, 3, seed=1))
    counts = draw_many(target, sampling, PROMPT, 3, draws // 5, eos=eos)
    assert chi_square(counts, joint(target[-1].stack, sampling, PROMPT, 3, eos)) > ALARM


def test_drawn_windows_have_the_targets_distribution(draws, record_property):
    """Windows of three tokens after two: the last token of each, given the four before it, at every place of a text."""
    levels = exits_of(ToyStack.random(4, 3, seed=1))
    counts = draw_windows(levels, WARM, draws, history=4)
    p_value = chi_square(counts, transitions(levels[-1].stack, WARM, history=4))
    record_property("distribution", ("target", "coupled", int(counts.sum()), p_value))
    assert p_value > ALARM


def test_a_draft_that_wants_the_opposite_is_exact_too(draws, record_property):
    """Sixteen tokens; the draft's logits are the negative of the target's, for every token given the two before it."""
    levels, sampling = (
        exits_of(ToyStack.random(3, 16, seed=2, scale=1.0, opposed=True), 1, 2),
        Sampling(temperature=1.0),
    )
    counts = draw_windows(levels, sampling, draws, history=2)
    p_value = chi_square(counts, transitions(levels[-1].stack, sampling, history=2))
    record_property("distribution", ("opposed, 16 words", "coupled", draws, p_value))
    assert p_value > ALARM


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ids, seed, position: hash_ids(ids, seed, 0),
        lambda ids, seed, position: hash_ids(ids, 0, position),
        lambda ids, seed, position: hash_ids(ids // 2, seed, position),
        lambda ids, seed, position: hash_ids(ids, seed, position) >> 4,
    ],
    ids=["one noise for all positions", "one noise for all seeds", "one noise for two tokens", "too few bits"],
)
def test_noise_that_is_wrong_on_purpose_is_found_out(monkeypatch, wrong):
    monkeypatch.setattr(noise, "hash_ids", wrong)
    levels = exits_of(ToyStack.random(3, 4, seed=3))
    counts = draw_windows(levels, WARM, 6_000, history=2)
    many = draw_many(levels, WARM, PROMPT, 3, 1_000)
    joint_fits = chi_square(many, joint(levels[-1].stack, WARM, PROMPT, 3))
    assert min(joint_fits, chi_square(counts, transitions(levels[-1].stack, WARM, history=2))) < ALARM


def test_the_check_notices_another_temperature(draws):
    """The finest difference that it can see shrinks with the root of the draws: 0.9 against 0.95 at 100,000 of them."""
    levels = exits_of(ToyStack.random(4, 3, seed=1))
    counts = draw_windows(levels, Sampling(0.9 + 16 / sqrt(draws)), draws, history=4)
    assert chi_square(counts, transitions(levels[-1].stack, WARM, history=4)) < ALARM


hash_ids = noise.hash_ids
