"""Figures by hand, intervals by simulation, and nothing where nothing was measured."""

import numpy as np
import pytest

from hispec.bench.record import DatasetInfo, Report, TokenComparison
from hispec.bench.statistics import interval95, resampled_sums, summarize
from tests.hispec.bench.examples import level, measurement, report, run, setup


def summary(*measurements, arms=None, **changes):
    names = arms or list(dict.fromkeys(m.arm for m in measurements))
    return summarize(setup(**changes), names, measurements, resamples=200)


def answer(arm, row, tokens, seconds, repeat=0, **changes):
    return measurement(arm=arm, row=row, repeat=repeat, token_ids=list(range(tokens)), seconds=seconds, **changes)


def test_speed_is_all_tokens_over_all_seconds():
    arm = summary(answer("hispec", "a", 10, 1.0), answer("hispec", "b", 90, 3.0)).arms[0]
    assert (arm.answers, arm.tokens, arm.seconds) == (2, 100, 4.0)
    assert arm.tokens_per_second == 25  # and not 20, the mean of 10 and 30


def test_speedup_is_the_ratio_of_pooled_speeds_over_every_measured_baseline():
    speeds = {"hispec": 2.0, "autoregressive": 8.0, "single-layer": 4.0}
    made = summary(*(answer(arm, row, 40, seconds) for arm, seconds in speeds.items() for row in "ab"))
    assert {name: figure.value for name, figure in made.arm("hispec").speedup.items()} == {
        "autoregressive": 4.0,
        "single-layer": 2.0,
    }
    assert set(made.arm("autoregressive").speedup) == {"single-layer"}
    assert made.arm("hispec").speedup["autoregressive"].ci95 == (4.0, 4.0)


def test_ratios_use_only_answers_that_both_arms_gave():
    made = summary(
        answer("hispec", "a", 10, 1.0),
        answer("hispec", "b", 10, 1.0),
        answer("hispec", "c", 10, 9.0),
        answer("hispec", "b", 10, 50.0, repeat=1),
        answer("autoregressive", "a", 10, 2.0),
        answer("autoregressive", "b", 10, 2.0),
        status="interrupted",
    )
    assert made.arm("hispec").speedup["autoregressive"].value == 2.0
    assert made.arm("hispec").tokens_per_second == pytest.approx(40 / 61)


def test_without_common_answers_there_is_no_ratio():
    made = summary(answer("hispec", "a", 10, 1.0), answer("autoregressive", "b", 10, 1.0))
    assert made.arm("hispec").speedup == {}


def test_an_arm_without_answers_has_no_figures():
    arm = summary(answer("hispec", "a", 10, 1.0), arms=["hispec", "autoregressive"]).arm("autoregressive")
    assert (arm.answers, arm.prompts, arm.tokens, arm.seconds) == (0, 0, 0, 0.0)
    absent = arm.model_dump(exclude={"name", "answers", "prompts", "tokens", "seconds"})
    assert all(value is None or value == [] or value == {} for value in absent.values()), absent


def test_what_an_arm_does_not_tell_is_absent():
    arm = summary(answer("hf", "a", 10, 1.0, inter_token_s=[])).arms[0]
    assert arm.tokens_per_target_pass is arm.mean_acceptance_length is arm.draft_acceptance_rate is None
    assert arm.peak_memory_bytes is arm.accuracy is arm.lossless is arm.inter_token_s is None
    assert arm.levels == [] and arm.phase_seconds == {}


def test_one_prompt_has_a_speed_and_no_interval_however_often_it_is_repeated():
    made = summary(*(answer(arm, "a", 10, 1.0 + repeat, repeat) for arm in ("hispec", "hf") for repeat in range(5)))
    assert made.arms[0].tokens_per_second == pytest.approx(50 / 15)
    assert made.arms[0].ci95 is None
    assert made.arms[0].speedup["hf"].value == 1.0 and made.arms[0].speedup["hf"].ci95 is None


def test_acceptance_by_hand():
    # Each answer: a prefill (1 token), then two verifications of runs of three that accept 3 and 1, the latter with a
    # correction: 3 + 2 tokens. Six tokens in three passes.
    counts = level("draft", 1, [0, 1, 0, 1], 3)
    answers = [answer("hispec", row, 6, 1.0, target_passes=3, levels=[counts]) for row in "ab"]
    arm = summary(*answers).arms[0]
    assert arm.tokens_per_target_pass == 2.0
    assert arm.mean_acceptance_length == 2.5
    assert arm.draft_acceptance_rate == pytest.approx(4 / 6)
    (draft,) = arm.levels
    assert (draft.proposed, draft.accepted, draft.acceptance_rate) == (12, 8, pytest.approx(2 / 3))
    assert draft.accepted_lengths == [0, 2, 0, 2]
    assert (draft.proposed_at, draft.accepted_at) == ([4, 4, 4], [4, 2, 2])


def test_levels_are_added_item_by_item_whatever_their_lengths():
    short, long = level("draft", 1, [1, 1], 1), level("draft", 1, [1, 0, 0, 1], 3)
    answers = [
        answer("hispec", "a", 9, 1.0, target_passes=4, levels=[short, level("intermediate", 2, [0, 1], 1)]),
        answer("hispec", "b", 9, 1.0, target_passes=4, levels=[long, level("intermediate", 2, [0, 1], 1)]),
    ]
    draft, intermediate = summary(*answers).arms[0].levels
    assert (draft.name, intermediate.name) == ("draft", "intermediate")
    assert draft.accepted_lengths == [2, 1, 0, 1]
    assert (draft.proposed_at, draft.accepted_at) == ([4, 2, 2], [2, 1, 1])


def test_the_target_verifications_are_those_of_the_level_below_it():
    levels = [level("draft", 1, [0, 0, 9], 2), level("intermediate", 2, [0, 0, 0, 0, 2], 4)]
    arm = summary(answer("hispec", "a", 9, 1.0, target_passes=3, levels=levels)).arms[0]
    assert arm.mean_acceptance_length == 4.0
    assert arm.draft_acceptance_rate == 1.0


def test_nothing_proposed_is_no_rate():
    levels = [level("draft", 1, [], 0)]
    arm = summary(answer("hispec", "a", 1, 1.0, target_passes=1, levels=levels)).arms[0]
    assert arm.draft_acceptance_rate is arm.levels[0].acceptance_rate is arm.mean_acceptance_length is None


def test_seconds_by_phase_memory_and_percentiles():
    answers = [
        answer("hispec", "a", 3, 1.0, phase_seconds={"prefill": 0.25, "draft": 0.5}, peak_memory_bytes=7),
        answer("hispec", "b", 3, 1.0, phase_seconds={"prefill": 0.5, "target": 0.5}, peak_memory_bytes=5),
    ]
    arm = summary(*(a.model_copy(update={"inter_token_s": [0.0, 0.0, 1.0]}) for a in answers)).arms[0]
    assert arm.phase_seconds == {"prefill": 0.75, "draft": 0.5, "target": 0.5}
    assert arm.peak_memory_bytes == 7
    assert (arm.time_to_first_token_s.p50, arm.time_to_first_token_s.p99) == (0.5, 0.5)
    assert arm.inter_token_s.p50 == 0.0  # tokens of one commit come together
    assert arm.inter_token_s.p90 == 1.0


def test_accuracy_counts_whole_scores_and_averages_partial_ones():
    whole = summary(
        *(answer("hf", row, 3, 1.0, score=score) for row, score in zip("abc", (1.0, 0.0, 1.0), strict=True))
    )
    assert whole.arms[0].accuracy.model_dump() == {"metric": "exact_match", "value": 2 / 3, "correct": 2, "of": 3}
    partial = summary(answer("hf", "a", 3, 1.0, score=0.5), answer("hf", "b", 3, 1.0, score=1.0))
    assert (partial.arms[0].accuracy.value, partial.arms[0].accuracy.correct) == (0.75, None)


def test_losslessness_counts_ties_and_errors_apart():
    found = [
        TokenComparison(identical=True),
        TokenComparison(identical=False, at=2, gap=0.0, kind="tie"),
        TokenComparison(identical=False, at=2, gap=3.0, kind="error"),
        TokenComparison(identical=True),
    ]
    answers = [answer("hispec", str(row), 3, 1.0, lossless=one) for row, one in enumerate(found)]
    assert summary(*answers).arms[0].lossless.model_dump() == {"identical": 2, "of": 4, "ties": 1, "errors": 1}


@pytest.mark.parametrize("second", [answer("hispec", "a", 3, 1.0), answer("other", "a", 3, 1.0)])
def test_an_answer_twice_or_of_an_unknown_arm_is_refused(second):
    with pytest.raises(ValueError, match=r"twice|not one of"):
        summary(answer("hispec", "a", 3, 1.0), second, arms=["hispec"])


def test_equal_measurements_give_equal_reports_in_any_order():
    measured = run(rows=12, repeats=2)
    shuffled = [measured[at] for at in np.random.default_rng(5).permutation(len(measured))]
    arms = ("hispec", "single-layer", "autoregressive", "hf")
    first, second = (summarize(setup(), arms, ms, resamples=300) for ms in (measured, shuffled))
    assert first.to_json() == second.to_json()


def test_repeats_travel_with_their_prompt():
    # Five repeats of the same two prompts tell no more about other prompts than one repeat does.
    once, often = (
        summary(
            *(answer("hf", row, 10, seconds, r) for row, seconds in (("a", 1.0), ("b", 3.0)) for r in range(repeats))
        )
        for repeats in (1, 5)
    )
    assert often.arms[0].ci95 == once.arms[0].ci95 == pytest.approx((10 / 3, 10.0))


def test_a_ratio_draws_the_same_prompts_for_both_arms():
    """Prompts differ twentyfold in speed, arms hardly: only pairing sees that."""
    rng = np.random.default_rng(1)
    answers = []
    for row in range(30):
        slow = float(rng.lognormal(0, 0.8))
        for arm, share in (("hispec", 0.5), ("autoregressive", 1.0)):
            answers.append(answer(arm, str(row), 40, share * slow * float(rng.lognormal(0, 0.02))))
    made = summary(*answers)
    low, high = made.arm("hispec").speedup["autoregressive"].ci95
    paired = high / low - 1
    intervals = [arm.ci95 for arm in made.arms]
    unpaired = (intervals[0][1] / intervals[1][0]) / (intervals[0][0] / intervals[1][1]) - 1
    assert low < 2 < high
    assert paired < 0.03 < 0.3 < unpaired


@pytest.mark.parametrize(("prompts", "repeats", "drift"), [(60, 1, 0.0), (40, 10, 0.05)])
def test_the_interval_of_a_known_ratio_covers_it_as_often_as_it_says(prompts, repeats, drift):
    """200 simulated runs, arm 1.5 times as fast in the long run; a drift slows one arm in one pass by that much.

    Covered in 95 % of runs, binomial standard deviation 1.5 %: 90 % to 99 % allows for three of them, and for the
    percentile interval being a little narrow.
    """
    rng, runs = np.random.default_rng(2), 200
    covered = 0
    for simulation in range(runs):
        tokens = np.repeat(rng.integers(10, 100, (prompts, 1)).astype(float), repeats, 1)
        slow = tokens * rng.lognormal(0, 0.4, (prompts, 1))
        noise = rng.gamma(25, 1 / 25, (2, prompts, 1)) * rng.lognormal(-(drift**2) / 2, drift, (2, 1, repeats))
        values = np.stack([tokens, slow / 1.5 * noise[0], tokens, slow * noise[1]], axis=2)
        sums = resampled_sums(values, 1000, seed=simulation)
        low, high = interval95((sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3]))
        covered += low <= 1.5 <= high
    assert 0.90 <= covered / runs <= 0.99


def test_a_drift_between_repeats_widens_the_interval():
    """All prompts alike, but the machine was half as fast in every other pass."""
    answers = [answer("hispec", str(row), 10, 1.0 + repeat % 2, repeat) for row in range(20) for repeat in range(10)]
    low, high = summary(*answers).arms[0].ci95
    assert low < 6.2 < 6.67 < 7.2 < high


def test_blocks_change_no_draw_count(monkeypatch):
    values = np.ones((50, 2, 1))
    monkeypatch.setattr("hispec.bench.statistics._BLOCK", 120)
    assert (resampled_sums(values, 101) == 100).all()


def test_an_undefined_resample_gives_no_interval():
    assert interval95(np.array([1.0, np.inf])) is None
    made = summary(
        answer("hispec", "a", 5, 1.0),
        answer("hispec", "b", 5, 1.0),
        answer("hf", "a", 0, 1.0),
        answer("hf", "b", 5, 1.0),
    )
    assert made.arm("hispec").speedup["hf"].ci95 is None
    assert made.arm("hispec").speedup["hf"].value == 2.0


def test_a_report_reads_back_as_it_was_written():
    made = report(rows=6)
    assert Report.model_validate_json(made.to_json()) == made


def test_no_metric_no_accuracy():
    dataset = DatasetInfo(name="mine", rows=1, sha256="0", source="mine.jsonl")
    assert summary(answer("hf", "a", 3, 1.0, score=1.0), dataset=dataset).arms[0].accuracy is None
