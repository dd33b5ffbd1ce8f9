"""The first difference of outputs, and the distinction between a tie and an error."""

import pytest

from hispec import Engine
from hispec.lossless import TIES, Difference, diagnose, first_difference
from training.evaluate import held_out_problems


def test_the_first_difference_counts_a_missing_end():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 9, 3], [1, 2, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], [4]) == 0


@pytest.mark.parametrize("dtype", TIES)
def test_a_gap_within_rounding_is_a_tie(dtype):
    assert diagnose(4, 30.0, 30.0, dtype) == Difference(4, 0.0, "tie")
    assert diagnose(4, 30.0, 30.0 * (1 - TIES[dtype] / 2), dtype).kind == "tie"
    assert diagnose(4, 30.0, 30.0 * (1 - TIES[dtype] * 2), dtype).kind == "error"


def test_in_bfloat16_all_that_differs_is_a_tie(record_property):
    """Kernels for one row and for several round differently there: report how often, and how narrowly."""
    hispec = Engine.from_profile("tiny", dtype="bfloat16", max_new_tokens=60)
    alone = hispec.with_settings(mode="autoregressive")
    deep = hispec.with_settings(mode="single-layer", validate_every=16)
    differences, count = [], 0
    for problem in held_out_problems(6, "trained") + held_out_problems(6, "held_out"):
        reference = alone.generate(problem.question)
        for engine in (hispec, deep):
            answer = engine.generate(problem.question)
            differences.append(engine.examine(answer.prompt_ids, answer.token_ids, reference.token_ids))
            count += len(answer.token_ids)
    found = [difference for difference in differences if difference is not None]
    record_property("bfloat16", (len(found), count, max((difference.gap for difference in found), default=0.0)))
    assert all(difference.kind == "tie" for difference in found)
    assert len(found) <= len(differences) / 4
