"""Sampling is exact: what comes out has the target's own joint distribution, whatever drafted and judged it.

Every test compares the counts of three-token continuations with their exact probabilities. Seeds are fixed; with
another seed each test would fail by chance once in 10,000 times (`ALARM`).
"""

import pytest
import torch

from hispec.decoding.hierarchy import Level
from hispec.decoding.rules import Speculative, Verdict
from hispec.decoding.sampling import Randomness, Sampling
from tests.toy import ToyStack, chi_square, draw_many, exits_of, joint

ALARM = 1e-4
DRAWS = 2_000
PROMPT = [0, 1]
TARGET = ToyStack.random(4, 3, seed=1)
SMALL, MIDDLE = ToyStack.random(2, 3, seed=5), ToyStack.random(3, 3, seed=6)

HIERARCHIES = {
    "target": exits_of(TARGET),
    "exit, target": exits_of(TARGET, 1),
    "exit, exit, target": exits_of(TARGET, 1, 2),
    "four exits": exits_of(TARGET, 1, 2, 3),
    "model, exit, target": [Level("small", SMALL, 2), *exits_of(TARGET, 2)],
    "model, model, target": [Level("small", SMALL, 2), Level("middle", MIDDLE, 3), *exits_of(TARGET)],
    "guesses, target": exits_of(TARGET, guesses=True),
    "guesses, exit, exit, target": exits_of(TARGET, 1, 2, guesses=True),
}


@pytest.mark.parametrize("blocks", [False, True], ids=["tokens", "blocks"])
@pytest.mark.parametrize("levels", HIERARCHIES.values(), ids=HIERARCHIES)
def test_three_tokens_have_the_targets_joint_distribution(levels, blocks):
    sampling = Sampling(temperature=0.9)
    ngram = (3, 3) if levels[0].stack is None else None
    counts = draw_many(levels, sampling, PROMPT, 3, DRAWS, blocks=blocks, ngram=ngram)
    assert chi_square(counts, joint(TARGET, sampling, PROMPT, 3)) > ALARM


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.2, top_k=2), Sampling(0.8, top_p=0.7), Sampling(1.0, min_p=0.3), Sampling(1.0, repetition_penalty=1.5)],
    ids=["top-k", "top-p", "min-p", "repetition penalty"],
)
def test_every_way_of_sampling_is_exact(sampling):
    counts = draw_many(exits_of(TARGET, 1, 2), sampling, PROMPT, 3, DRAWS)
    assert chi_square(counts, joint(TARGET, sampling, PROMPT, 3)) > ALARM


@pytest.mark.parametrize("blocks", [False, True], ids=["tokens", "blocks"])
def test_a_draft_that_wants_the_opposite_is_exact_too(blocks):
    """Sixteen words, the draft's logits the negative of the target's: every bias shows."""
    target = ToyStack.random(3, 16, seed=2, scale=1.0)
    target.tables[0] = -target.tables[-1]
    sampling = Sampling(temperature=1.0)
    counts = draw_many(exits_of(target, 1, 2), sampling, PROMPT, 1, 2 * DRAWS, blocks=blocks)
    assert chi_square(counts, joint(target, sampling, PROMPT, 1)) > ALARM
    counts = draw_many(exits_of(target, 1, 2), sampling, PROMPT, 2, 2 * DRAWS, blocks=blocks)
    assert chi_square(counts, joint(target, sampling, PROMPT, 2)) > ALARM


def test_a_block_that_is_cut_redraws_from_the_residual_of_its_share():
    """A draft unlike the target, so that blocks are often cut after a token kept with a share well below 1."""
    target = ToyStack.random(2, 3, seed=3, agreement=0.0, scale=2.0)
    sampling = Sampling(1.0)
    counts = draw_many(exits_of(target, 1), sampling, PROMPT, 3, 9_000, n_i=2, blocks=True)
    assert chi_square(counts, joint(target, sampling, PROMPT, 3)) > ALARM


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
            self._streams[level, purpose] = torch.Generator().manual_seed(self._seed)
        return self._streams[level, purpose]


@pytest.mark.parametrize(
    "rule",
    [
        DraftsOwnQ(Sampling(1.0), Randomness(0)),
        Speculative(Sampling(1.0), OneStream(0)),
        Speculative(Sampling(1.0), OneStream(0), blocks=True),
    ],
    ids=["the draft's own q", "one stream", "one stream, blocks"],
)
def test_rules_that_are_wrong_on_purpose_are_found_out(rule):
    target = ToyStack.random(3, 4, seed=3)
    target.tables[0] = -target.tables[-1]
    sampling = Sampling(1.0)
    counts = draw_many(exits_of(target, 1, 2), sampling, PROMPT, 3, DRAWS, rule=rule)
    assert chi_square(counts, joint(target, sampling, PROMPT, 3)) < ALARM


def test_the_check_itself_can_fail():
    sampling = Sampling(0.9)
    counts = draw_many(exits_of(TARGET), Sampling(1.0), PROMPT, 3, DRAWS)
    assert chi_square(counts, joint(TARGET, sampling, PROMPT, 3)) < 0.5
    counts = draw_many(exits_of(TARGET), Sampling(1.3), PROMPT, 3, DRAWS)
    assert chi_square(counts, joint(TARGET, sampling, PROMPT, 3)) < ALARM
