"""The rules on vectors that a hand can check."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from hispec.decoding.logits import Logits
from hispec.decoding.processors import Processors
from hispec.decoding.rules import Greedy, Verdict, block, residual, speculative
from hispec.decoding.sampling import Sampling

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
Q = (torch.tensor([0.2, 0.6, 0.2]), torch.tensor([0.2, 0.2, 0.6]))


@pytest.mark.parametrize(
    ("tokens", "u", "accepted"),
    [
        ([0, 2], [0.99, 0.99], 2),  # p >= q: always
        ([1, 2], [0.49, 0.0], 2),  # 0.3 / 0.6 = 0.5
        ([1, 2], [0.51, 0.0], 0),
        ([0, 0], [0.0, 0.49], 2),  # 0.1 / 0.2
        ([0, 0], [0.0, 0.51], 1),
        ([], [], 0),
    ],
)
def test_speculative_accepts_with_the_ratio(tokens, u, accepted):
    assert speculative(tokens, P, Q, u) == accepted


def test_a_guess_is_accepted_with_its_own_probability():
    assert speculative([1], P, [None], [0.29]) == 1
    assert speculative([1], P, [None], [0.31]) == 0


def test_the_residual_is_what_the_draft_lacks():
    assert residual(P[0], Q[0], 1).tolist() == pytest.approx([0.3, 0, 0])
    assert residual(P[0], None, 1).tolist() == pytest.approx([0.5, 0, 0.2])
    assert residual(P[0], Q[0], 1, share=0.5).tolist() == pytest.approx([0.05, 0, 0])


def test_a_residual_that_rounding_emptied_falls_back_to_the_distribution():
    assert residual(P[0], P[0].clone(), 0) is P[0] or torch.equal(residual(P[0], P[0].clone(), 0), P[0])


def test_a_block_may_keep_what_a_token_alone_would_lose():
    """Token 1 is half as likely as its draft, but the block's second token makes up for it."""
    # keep after the first: 0.5; gain = sum max(0, 0.5 p - q) = 0 at (0.05, 0.05, 0.4) - (0.2, 0.2, 0.6)
    accepted, share = block([1, 2], P, Q, [0.9, 0.6])
    # after the second: 0.5 * 0.8 / 0.6 = 2/3, and 0.6 < 2/3: both stay, though 0.9 > 0.5 would have refused the first
    assert (accepted, share) == (2, pytest.approx(2 / 3))
    assert block([1, 2], P, Q, [0.9, 0.7]) == (0, 1.0)


def test_a_block_of_one_is_the_ordinary_rule():
    for token in range(3):
        for u in (0.1, 0.45, 0.55, 0.9):
            assert block([token], P[:1], Q[:1], [u])[0] == speculative([token], P[:1], Q[:1], [u])


def test_greedy_accepts_the_arg_max_and_corrects_with_it():
    assert Greedy().judge([0, 2], (None, None), Logits(P), [], 0) == Verdict(2, None)
    assert Greedy().judge([0, 1], (None, None), Logits(P), [], 0) == Verdict(1, 2)
    assert Greedy().draw(Logits(P[1:2]), [], 0) == (2, None)


def test_lower_levels_may_be_lenient_but_never_the_target():
    rule = Greedy(target=2, lower_top_k=2)
    assert rule.judge([1, 2], (None, None), Logits(P), [], 1) == Verdict(2, None)
    assert rule.judge([2, 2], (None, None), Logits(P), [], 1) == Verdict(0, 0)
    assert rule.judge([1, 2], (None, None), Logits(P), [], 2) == Verdict(0, 0)


def test_greedy_honours_the_repetition_penalty_of_each_position():
    logits = torch.tensor([[2.0, 1.9, 0.0], [2.0, 1.9, 0.0]])
    rule = Greedy(Sampling(processors=Processors([RepetitionPenaltyLogitsProcessor(2.0)])))
    assert rule.draw(Logits(logits[:1]), [2], 0)[0] == 0
    assert rule.draw(Logits(logits[:1]), [0], 0)[0] == 1
    assert rule.judge([0, 1], (None, None), Logits(logits), [2], 0) == Verdict(2, None)
