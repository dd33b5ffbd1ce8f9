"""A calibration keeps its budget, finds the fastest configuration, resumes after an interruption, and reports ties."""

from dataclasses import replace
from random import Random
from time import monotonic

import pytest

from hispec.budget import Budget
from hispec.calibration import run as sessions
from hispec.calibration.adapting import Fitter
from hispec.calibration.fitting import mean_acceptance
from hispec.calibration.job import exits_to_consider
from hispec.calibration.recording import LevelSpec
from hispec.calibration.run import CalibrationJob, CalibrationRun, Phase, Planned, Replayed, Timed
from hispec.calibration.search import PLAIN, Configuration, HierarchyBuilder, Scorer, SearchSpace, search
from hispec.calibration.store import CalibrationStore
from hispec.calibration.timing import TimedAnswer, Timer, Timings, halving
from hispec.policies.performance_model import UNPREDICTED
from hispec.policies.prediction import UNCALIBRATED

READERS = tuple(LevelSpec("random", exit_) for exit_ in range(1, 6))
SPACE = SearchSpace(READERS, draft_tokens=(1, 3), validate_every=(2, 6, 12), ngrams=((2, 3),))
DEFAULTS = Configuration((LevelSpec("random", 1), LevelSpec("random", 3)), (), (3, 4), uncalibrated=True)
PROMPTS = [[3, 1, 4, at] for at in range(12)]


@pytest.fixture
def job(stack):
    return CalibrationJob(
        {"random": stack}, "random", {}, SPACE, PROMPTS, frozenset(), 24, budget=Budget(4.0), defaults=DEFAULTS
    )


@pytest.fixture
def scorer(stack, recorded, costs):
    return Scorer(
        HierarchyBuilder({"random": stack}, "random"), recorded, costs, (), Fitter(recorded.texts, ("margin",))
    )


def test_a_whole_calibration(job, tmp_path):
    seen = []
    result = CalibrationRun(job, tmp_path, seen.append).run()
    assert next(step.name for step in seen if isinstance(step, Phase) and step.share == 0.0) == "costs"
    assert {step.name for step in seen if isinstance(step, Phase) and step.share == 1.0} == set(sessions.PHASES)
    assert sum(isinstance(step, Replayed) for step in seen) == result.scorer.scored
    assert any(isinstance(step, Timed) for step in seen)
    assert result.winner in result.check.configurations
    assert {PLAIN, DEFAULTS} <= set(result.check.configurations)
    assert DEFAULTS not in result.timings.configurations and result.winner != DEFAULTS
    assert result.timings.differing() == result.check.differing() == 0
    assert result.agreement[LevelSpec("random", 6)] == 1.0
    assert result.agreement[READERS[-1]] > result.agreement[READERS[0]]
    assert sum(result.seconds.values()) < 20 * job.budget.seconds


@pytest.mark.parametrize("gone", [0.0, 1000.0])
def test_loading_counts_and_what_cannot_be_kept_is_done_with_the_least(job, tmp_path, monkeypatch, gone):
    """A second a token: no budget of four seconds has room for that, whether loading has used it up or not."""
    seen, asked = [], []
    real = Timer.answer

    def answer(self, configuration, prompt):
        asked.append((self.max_new_tokens, configuration))
        return real(self, configuration, prompt)

    monkeypatch.setattr(Timer, "answer", answer)
    monkeypatch.setattr(sessions, "seconds_alone", lambda *_: (0.0, 1.0))
    job = replace(job, budget=Budget(4.0, began=monotonic() - gone))
    result = CalibrationRun(job, tmp_path, seen.append).run()
    first, plan = [step for step in seen if isinstance(step, Planned)]
    assert seen.index(first) == 1 and first.tokens is None and first.least > 0
    assert plan == Planned(16, (8 + 16 + 2 * 4 + 1) * 16.0)
    assert {max_new_tokens for max_new_tokens, _ in asked} == {16}
    if gone:
        assert len(result.scorer.recorded.texts) == 8
        assert len({answer.prompt for answer in result.check.answers}) == 2
        assert len(result.timings.configurations) <= 3 + 5


def test_answers_are_as_long_as_the_budget_allows_and_stay_so_when_it_goes_on(job, tmp_path, monkeypatch):
    def planned(seconds, token):
        seen = []
        monkeypatch.setattr(sessions, "seconds_alone", lambda *_: (0.0, token))
        session = CalibrationRun(
            replace(job, max_new_tokens=256, budget=Budget(seconds)), tmp_path, seen.append, resume=True
        )
        return session.plan(None), seen[0].tokens

    assert planned(600.0, 1e-4) == (256, 256)
    (tmp_path / "length.json").unlink()
    assert planned(321.0, 0.1) == (40, 40)  # a fifth of the time for 16 answers
    assert planned(9000.0, 0.1) == (40, 40)
    CalibrationRun(job, tmp_path)  # started again
    assert planned(9000.0, 0.1) == (256, 256)


def test_the_defaults_begin_where_no_calibration_and_no_cache_has_helped_them(scorer, monkeypatch):
    def cached(*_):
        raise AssertionError("the user's cache")

    monkeypatch.setattr("hispec.step_timing.remembered", cached)
    monkeypatch.setattr("hispec.step_timing.remember", cached)
    scorer.builder.translators = {("random", 1): object()}
    known, calibrated = (scorer.performance_model(replace(DEFAULTS, uncalibrated=one)) for one in (True, False))
    assert set(known.predictors.values()) <= {UNCALIBRATED, UNPREDICTED}
    assert UNCALIBRATED not in calibrated.predictors.values()
    hierarchy = scorer.builder.hierarchy(DEFAULTS)
    assert [level.translator for level in hierarchy.levels] == [None] * len(hierarchy)
    assert scorer.builder.hierarchy(replace(DEFAULTS, uncalibrated=False)).levels[1].translator is not None


def test_the_defaults_are_timed_and_never_win(job, recorded, tmp_path, monkeypatch):
    asked = []

    def answer(self, configuration, prompt):
        asked.append((configuration, tuple(prompt)))
        return [*range(20)], 20 / (90.0 if configuration == DEFAULTS else 60.0 - 10 * len(configuration.specs))

    monkeypatch.setattr(CalibrationRun, "recorded", lambda self: recorded)
    monkeypatch.setattr(Timer, "answer", answer)
    result = CalibrationRun(job, tmp_path / "run").run()
    assert (result.winner, result.beats_defaults) == (PLAIN, False)
    assert result.over_defaults.value == pytest.approx(60 / 90)
    session = CalibrationRun(job, tmp_path / "prompts")
    by_defaults = [prompt for configuration, prompt in asked if configuration == DEFAULTS]
    assert by_defaults[0] == tuple(session._own[0]), "one answer that is not timed"
    assert set(by_defaults[1:]) <= set(map(tuple, session._unseen)) and len(by_defaults) > 2
    assert {answer.prompt for answer in result.check.answers} <= set(range(len(session._unseen)))


def test_all_prompts_to_check_with_are_new(job, tmp_path):
    session = CalibrationRun(job, tmp_path)
    assert not {tuple(prompt) for prompt in session._own} & {tuple(prompt) for prompt in session._unseen}
    assert len(session._own) + len(session._unseen) == len(PROMPTS)


@pytest.mark.parametrize("phase", ["replay", "timing"])
def test_a_calibration_that_was_cut_off_goes_on(job, tmp_path, phase, monkeypatch):
    def cut(step):
        if isinstance(step, Timed) if phase == "timing" else step == Phase("replay", 0.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CalibrationRun(job, tmp_path, cut).run()

    def again(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(sessions, "measure", again)
    monkeypatch.setattr(sessions, "record_all", again)
    before = CalibrationStore(tmp_path, resume=True)
    kept = len(list(before._lines("timing")))
    assert kept == (phase == "timing")
    result = CalibrationRun(job, tmp_path, resume=True).run()
    assert result.winner in result.check.configurations
    keys = [(answer.configuration, answer.prompt, answer.repeat) for answer in result.timings.answers]
    assert len(keys) == len(set(keys)), "no answer twice"


def test_without_resume_it_begins_again(tmp_path, recorded, costs):
    kept = CalibrationStore(tmp_path, resume=False)
    kept.keep_costs(costs)
    kept.keep_recorded(recorded)
    kept.keep_answer("timing", PLAIN, TimedAnswer(0, 1, 0, 5, 0.5, 7))
    again = CalibrationStore(tmp_path, resume=True)
    assert again.costs() == costs
    assert again.recorded() == recorded
    assert again.answers("timing", [PLAIN]) == [TimedAnswer(0, 1, 0, 5, 0.5, 7)]
    fresh = CalibrationStore(tmp_path, resume=False)
    assert (fresh.costs(), fresh.recorded(), fresh.answers("timing", [PLAIN])) == (None, None, [])


def test_what_was_half_written_does_not_count(tmp_path, recorded, costs):
    kept = CalibrationStore(tmp_path, resume=False)
    kept.keep_costs(costs)
    kept.keep_recorded(recorded)
    for at in range(3):
        kept.keep_answer("timing", PLAIN, TimedAnswer(0, at, 0, 5, 0.5, 7))
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - 9])
    again = CalibrationStore(tmp_path, resume=True)
    assert again.costs() is None
    assert again.recorded() is None
    assert [answer.prompt for answer in again.answers("timing", [PLAIN])] == [0, 1]
    again.keep_answer("timing", PLAIN, TimedAnswer(0, 5, 0, 5, 0.5, 7))
    assert [answer.prompt for answer in again.answers("timing", [PLAIN])] == [0, 1, 5]


def test_the_search_finds_the_fastest_of_all_that_it_may_choose(scorer):
    small = replace(SPACE, adaptive=False, ngrams=())
    found = search(small, scorer)
    by_hand = max(scorer.score(one, scorer.recorded.texts).speed for one in small.static())
    assert found.finalists[0].speed == pytest.approx(by_hand, rel=1e-6)
    assert found.finalists[0].speed >= found.finalists[-1].speed
    assert PLAIN in [score.configuration for score in found.finalists]
    assert len(found.scores) == sum(1 for _ in small.static())


def test_the_search_tries_n_grams_and_the_adaptive_policy_and_ends_in_time(scorer):
    kinds = [score.configuration for score in search(SPACE, scorer).scores]
    assert any(one.adaptive for one in kinds)
    assert any(one.ngram for one in kinds)
    assert search(SPACE, scorer, out_of_time=lambda: True).finalists


def test_every_configuration_of_a_finite_grid_is_offered_once():
    offered = list(SPACE.static())
    assert len(offered) == len(set(offered))
    assert len(offered) == 1 + 5 * 3 + 10 * (2 * 3 - 1), "N_i is never below N_d"


def test_configurations_say_what_they_are():
    two = Configuration((READERS[0], LevelSpec("other", 3, 256)), (2, 8))
    assert two.describe("random") == "exit 1 drafts 2, exit 3 of other with a head of 256 tokens drafts 8"
    assert (
        Configuration((READERS[1],), (), (3, 4)).describe("random")
        == "n-grams of up to 3 draft 4, exit 2 > target, adaptive"
    )
    assert PLAIN.describe("random") == "the target alone"
    assert [one.mode for one in (PLAIN, Configuration((READERS[0],), (2,)), two)] == [
        "autoregressive",
        "single-layer",
        "hispec",
    ]


class Pretended(Timer):
    """Answers in seconds that are made up."""

    def __init__(self, speeds, noise=0.01):
        self.speeds, self.noise, self.rng = speeds, noise, Random(0)
        self.asked = []

    def answer(self, configuration, prompt):
        self.asked.append(configuration)
        return [*range(20)], 20 / self.speeds[configuration] * self.rng.uniform(1 - self.noise, 1 + self.noise)


def timed(speeds, rounds=6, noise=0.01, keep=()):
    configurations = list(speeds)
    timings, left = Timings(configurations), []
    late = iter(range(10**6))
    timer = Pretended(speeds, noise)
    for alive in halving(timer, timings, PROMPTS, keep, 4, Random(0), lambda: next(late) > 4 * rounds):
        left = alive
    return timings, left, timer


CHOICES = [Configuration((spec,), (4,)) for spec in READERS]


def test_the_slower_half_is_dropped_and_the_fastest_found():
    speeds = dict(zip(CHOICES, (10.0, 20.0, 40.0, 30.0, 15.0), strict=True))
    timings, left, timer = timed(speeds)
    assert timings.fastest(left)[0] == 2
    assert timer.asked.count(CHOICES[0]) < timer.asked.count(CHOICES[2])
    assert timings.ties(2, range(5)) == []


def test_what_may_be_as_fast_is_not_dropped_and_is_named():
    speeds = dict(zip(CHOICES, (10.0, 40.0, 40.2, 20.0, 15.0), strict=True))
    timings, left, _ = timed(speeds, noise=0.2)
    best = timings.fastest(left)[0]
    assert {best, *timings.ties(best, range(5))} == {1, 2}


def test_what_is_kept_for_comparison_is_timed_to_the_end():
    speeds = dict(zip(CHOICES, (10.0, 20.0, 40.0, 30.0, 15.0), strict=True))
    _, left, _ = timed(speeds, keep=(0,))
    assert 0 in left


def test_whoever_is_left_has_had_the_same_prompts():
    speeds = dict(zip(CHOICES, (10.0, 10.0, 10.0, 10.0, 3.0), strict=True))
    timings, left, _ = timed(speeds, noise=0.3)
    had = {one: {(a.prompt, a.repeat) for a in timings.answers if a.configuration == one} for one in left}
    assert len(left) > 1
    assert len(set(map(frozenset, had.values()))) == 1


def test_default_exits_reach_three_quarters_of_the_depth():
    assert exits_to_consider(16) == list(range(1, 13))
    assert exits_to_consider(80)[0] >= 1
    assert exits_to_consider(80)[-1] == 60
    assert len(exits_to_consider(80)) == 16
    assert exits_to_consider(2) == [1]
    assert mean_acceptance([]) == 0.5
