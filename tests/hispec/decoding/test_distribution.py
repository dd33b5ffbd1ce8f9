"""Sampling is exact: what comes out has the target's own joint distribution, whatever drafted and judged it.

First without chance: every random decision of the engine is taken in turn, and the probabilities of all that it may
write are added up. Then with its real random streams, which enumeration replaces: drawn texts are counted. Seeds are
fixed; with another seed each of the latter tests would fail by chance once in 10,000 times (`ALARM`), and any of all
about once in 400 times. `pytest --draws N` draws less; the table of p-values is printed at the end of the run.
"""

from math import sqrt

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from hispec.decoding.hierarchy import Level
from hispec.decoding.processors import Processors
from hispec.decoding.rules import Speculative, Verdict
from hispec.decoding.sampling import Randomness, Sampling
from tests.toy import (
    ToyStack,
    chi_square,
    draw_many,
    draw_windows,
    enumerate_outcomes,
    exits_of,
    joint,
    transitions,
)

ALARM = 1e-4
PROMPT = [0, 1]
NGRAM = (3, 3)
WARM = Sampling(temperature=0.9)
PENALTY = Processors([RepetitionPenaltyLogitsProcessor(1.5)])


def hierarchies(vocab):
    """One of each kind, on models of that many words."""
    target, small, middle = (ToyStack.random(layers, vocab, seed) for layers, seed in ((4, 1), (2, 5), (3, 6)))
    return {
        "target": exits_of(target),
        "exit, target": exits_of(target, 1),
        "exit, exit, target": exits_of(target, 1, 2),
        "four exits": exits_of(target, 1, 2, 3),
        "model, exit, target": [Level("small", small, 2), *exits_of(target, 2)],
        "model, model, target": [Level("small", small, 2), Level("middle", middle, 3), *exits_of(target)],
        "guesses, target": exits_of(target, guesses=True),
        "guesses, exit, exit, target": exits_of(target, 1, 2, guesses=True),
        # The draft's logits are the negative of the target's, so that every bias shows.
        "opposed exit, exit, target": exits_of(ToyStack.random(3, vocab, seed=2, scale=1.0, opposed=True), 1, 2),
        # Words that some level lacks: the draft, both, or each another one.
        "few words, exit, target": exits_of(target, 1, 2, words=[[*range(1, vocab)]]),
        "few words, few words, target": exits_of(target, 1, 2, words=[[*range(vocab - 1)]] * 2),
        "few words, other words, target": exits_of(target, 1, 2, words=[[*range(1, vocab)], [*range(vocab - 1)]]),
        "guesses, few words, target": exits_of(target, 2, guesses=True, words=[[*range(1, vocab)]]),
        # Blocks are often cut after a token that was kept with a share well below 1.
        "unlike exit, target": exits_of(ToyStack.random(2, vocab, seed=3, agreement=0.0, scale=2.0), 1),
    }


KINDS = hierarchies(3)
NARROW = exits_of(ToyStack.random(3, 16, seed=2, scale=1.0, opposed=True), 1, 2)
CASES = [(kind, rule) for kind in KINDS for rule in ("tokens", "blocks") if (kind, rule) != ("target", "blocks")]
BY_ENUMERATION_ONLY = (
    "target",
    "guesses, target",
    "opposed exit, exit, target",
    "unlike exit, target",
)  # and those of few words, to save time
DRAWN = [(kind, rule) for kind, rule in CASES if kind not in BY_ENUMERATION_ONLY and "few words" not in kind]


def seeded(sampling, rule="tokens"):
    """What makes the rule of each text, with random streams of its own as every answer has."""
    return lambda seed: Speculative(sampling, Randomness(seed), rule == "blocks")


def guesses_in(levels):
    return {"ngram": NGRAM} if levels[0].stack is None else {}


@pytest.fixture
def draws(request):
    """How often to draw: `--draws`."""
    return request.config.getoption("--draws")


def assert_exact(levels, sampling, length, rule="tokens", eos=(), **lengths):
    found = enumerate_outcomes(
        levels, sampling, PROMPT, length, blocks=rule == "blocks", eos=eos, **lengths, **guesses_in(levels)
    )
    torch.testing.assert_close(found, joint(levels[-1].stack, sampling, PROMPT, length, eos), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_all_that_may_be_written_has_exactly_the_targets_probabilities(kind, rule):
    for n_d, n_i in [(1, 2), (2, 3), (2, 1), (3, 3)]:
        assert_exact(hierarchies(2)[kind], WARM, 3, rule, n_d=n_d, n_i=n_i)
    if kind != "four exits":  # three words and four exits have tens of thousands of outcomes
        assert_exact(KINDS[kind], WARM, 3, rule)


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_a_text_that_may_end_is_exact_too(kind, rule):
    """A tentative end of text stops drafting, which must not change who judges it."""
    for n_d, n_i in [(1, 2), (2, 3), (3, 3)]:
        assert_exact(hierarchies(2)[kind], WARM, 3, rule, eos=(1,), n_d=n_d, n_i=n_i)


@pytest.mark.parametrize("rule", ["tokens", "blocks"])
def test_longer_texts_have_exactly_the_targets_probabilities(rule):
    assert_exact(hierarchies(2)["exit, exit, target"], WARM, 4, rule)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.2, top_k=2), Sampling(0.8, top_p=0.7), Sampling(1.0, min_p=0.3), Sampling(1.0, processors=PENALTY)],
    ids=["top-k", "top-p", "min-p", "repetition penalty"],
)
@pytest.mark.parametrize("kind", ["exit, exit, target", "guesses, exit, exit, target"])
def test_every_way_of_sampling_is_exact(kind, sampling):
    assert_exact(KINDS[kind], sampling, 3)


@pytest.mark.parametrize(("kind", "rule"), DRAWN)
def test_three_drawn_tokens_have_the_targets_joint_distribution(kind, rule, draws, record_property):
    """Windows of three tokens after two: the last token of each, given the four before it, at every place of a text."""
    levels = KINDS[kind]
    counts = draw_windows(levels, seeded(WARM, rule), draws, history=4, **guesses_in(levels))
    p_value = chi_square(counts, transitions(levels[-1].stack, WARM, history=4))
    record_property("distribution", (kind, rule, int(counts.sum()), p_value))
    assert p_value > ALARM


@pytest.mark.parametrize("rule", ["tokens", "blocks"])
def test_a_draft_that_wants_the_opposite_is_exact_too(rule, draws, record_property):
    """Sixteen words, the draft's logits the negative of the target's: every word, given the two before it."""
    target, sampling = NARROW[-1].stack, Sampling(temperature=1.0)
    counts = draw_windows(NARROW, seeded(sampling, rule), draws, history=2)
    p_value = chi_square(counts, transitions(target, sampling, history=2))
    record_property("distribution", ("opposed, 16 words", rule, draws, p_value))
    assert p_value > ALARM


class DraftsOwnQ(Speculative):
    """Wrong on purpose: the target's ratio takes the draft's distribution, not the intermediate's."""

    def judge(self, tokens, q, logits, prefix, level):
        verdict = super().judge(tokens, q, logits, prefix, level)
        kept = tuple(q[: verdict.accepted]) + verdict.drawn_from[verdict.accepted :]
        return Verdict(verdict.accepted, verdict.correction, kept)


class OneStream(Randomness):
    """Wrong on purpose: every purpose starts its own copy of one and the same stream."""

    def _stream(self, level, purpose):
        if (level, purpose) not in self._streams:
            self._streams[level, purpose] = Randomness(self._seed)._stream(*self.same_as(level, purpose))
        return self._streams[level, purpose]

    def same_as(self, level, purpose):
        return 0, "draw"


class OneStreamALevel(OneStream):
    """Wrong on purpose: a level accepts and redraws with the numbers that it drew with."""

    def same_as(self, level, purpose):
        return level, "draw"


class OneStreamAPurpose(OneStream):
    """Wrong on purpose: all levels accept with the same numbers."""

    def same_as(self, level, purpose):
        return 0, purpose


@pytest.mark.parametrize(
    "rule_of",
    [
        lambda seed: DraftsOwnQ(Sampling(1.0), Randomness(seed)),
        lambda seed: Speculative(Sampling(1.0), OneStream(seed)),
        lambda seed: Speculative(Sampling(1.0), OneStream(seed), blocks=True),
        lambda seed: Speculative(Sampling(1.0), OneStreamALevel(seed)),
        lambda seed: Speculative(Sampling(1.0), OneStreamAPurpose(seed)),
    ],
    ids=["the draft's own q", "one stream", "one stream, blocks", "one stream a level", "one stream a purpose"],
)
def test_rules_that_are_wrong_on_purpose_are_found_out(rule_of):
    target = ToyStack.random(3, 4, seed=3, opposed=True)
    levels = exits_of(target, 1, 2)
    counts = draw_many(levels, rule_of, PROMPT, 3, 2_000)
    windows = draw_windows(levels, rule_of, 24_000, history=2)
    joint_fits = chi_square(counts, joint(target, Sampling(1.0), PROMPT, 3))
    assert min(joint_fits, chi_square(windows, transitions(target, Sampling(1.0), history=2))) < ALARM


def test_the_check_notices_another_temperature(draws):
    """The finest difference that it can see shrinks with the root of the draws: 0.9 against 0.95 at 100,000 of them."""
    target = KINDS["target"][-1].stack
    counts = draw_windows(KINDS["target"], seeded(Sampling(0.9 + 16 / sqrt(draws))), draws, history=4)
    assert chi_square(counts, transitions(target, WARM, history=4)) < ALARM
