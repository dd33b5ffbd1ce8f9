"""The adaptive policy does not change the output, and its decisions follow acceptance and cost."""

from itertools import pairwise
from random import Random

import pytest

from hispec.adaptation import performance_model, uncalibrated_costs
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Drafted, Verified
from hispec.policies import adaptive
from hispec.policies import performance_model as performance_models
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Draft, Verify
from hispec.policies.estimates import CostCorrection
from hispec.policies.performance_model import PerformanceModel
from hispec.policies.prediction import UNCALIBRATED, Logistic, Table
from hispec.policies.step_costs import StepCosts, all_active_levels
from tests.toy import ToyStack, exits_of, sampler_of, write

SURE, UNSURE = (9.0,), (0.1,)
GREEDY = Sampler(Sampling())
DRAFT, VERIFY = ("draft", 0, 0), ("verify", 1, 2)
CHANCE = Table((0.0, 10.0), (0.05, 0.99), 0.8)


def policy_of(hierarchy):
    return AdaptivePolicy(performance_model(hierarchy, None))


def costs_of(levels, draft, verify):
    pairs = [(a, b) for a in range(levels) for b in range(a + 1, levels)]
    return StepCosts(draft, {pair: [verify[pair] + 0.01 * k for k in range(32)] for pair in pairs})


def single(draft=0.1, verify=1.0, target=1.0, predictor=CHANCE):
    """A policy of one exit below a target."""
    return AdaptivePolicy(PerformanceModel(2, costs_of(2, [draft, target], {(0, 1): verify}), {(0, 1): predictor}))


def drafted_before_verification(policy, confidence, max_tokens=60):
    """The number of tokens of one confidence that are drafted before a verification."""
    verified, count = [1, 1], 0
    while isinstance(step := policy.next_step(verified, True), Draft) and count < max_tokens:
        for _ in range(step.tokens):
            verified[0] += 1
            count += 1
            if not policy.on_draft(0, confidence):
                break
    return count


def trace(levels, sampler, length, policy, prompt=(0, 1), eos=()):
    """Tokens and events of one decoding."""
    hierarchy = Hierarchy(levels)
    state = DecodingState(hierarchy, list(prompt), len(prompt) + length)
    events = list(decode(state, policy or policy_of(hierarchy), sampler, StopCriteria(length, eos)))
    return state.tokens[: state.committed], events


@pytest.fixture
def restless(monkeypatch):
    """A policy that changes the active levels all the time."""
    rng = Random(0)
    monkeypatch.setattr(adaptive, "RESELECT_AFTER", 1)
    monkeypatch.setattr(
        PerformanceModel, "fastest_levels", lambda performance_model: rng.choice(performance_model.choices)
    )


@pytest.mark.parametrize("ngrams", [None, (3, 4)])
@pytest.mark.parametrize("exits", [(4,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_answers_are_the_targets_own(exits, seed, ngrams, restless):
    stack, eos = ToyStack.random(6, 12, seed), () if seed % 2 else (11,)
    alone, _ = trace([Level("target", stack, 6)], GREEDY, 120, None, eos=eos)
    levels = exits_of(stack, *exits, ngrams=ngrams)
    written, events = trace(levels, GREEDY, 120, None, eos=eos)
    assert written == alone
    if not eos:
        verdicts = [event for event in events if isinstance(event, Verified) and event.level == "target"]
        assert any(verdict.correction is None for verdict in verdicts)
        assert any(verdict.correction is not None for verdict in verdicts)


@pytest.mark.parametrize("exits", [(1,), (1, 2)])
def test_sampling_writes_what_the_target_alone_draws_while_active_levels_change(exits, restless):
    stack, sampling = ToyStack.random(3, 3, seed=7, opposed=True), Sampling(temperature=0.9)
    levels = exits_of(stack, *exits)
    choices = set()

    class Watched(AdaptivePolicy):
        def next_step(self, verified, may_draft):
            step = super().next_step(verified, may_draft)
            choices.add(self.active)
            return step

    for seed in range(20):
        sampler = sampler_of(levels, sampling, seed)
        written = write(levels, sampler, [0, 1], 60, policy_of=lambda h: Watched(performance_model(h, None)))
        assert written == write(levels[-1:], sampler, [0, 1], 60)
    assert len(choices) > 1


def test_levels_are_left_out_only_from_a_moment_on_at_which_nothing_waits(restless):
    stack = ToyStack.random(6, 12, 3)
    policy = policy_of(Hierarchy(exits_of(stack, 1, 2, 4)))
    changes, choices, choose = [], set(), policy.next_step

    def next_step(verified, may_draft):
        before = policy.active
        step = choose(verified, may_draft)
        choices.add(policy.active)
        if policy.active != before:
            changes.append(verified[0] - verified[-1])
        return step

    policy.next_step = next_step
    trace(exits_of(stack, 1, 2, 4), GREEDY, 200, policy)
    assert len(choices) > 3
    assert set(changes) == {0}


def test_more_is_drafted_where_the_level_is_sure():
    few, many = (drafted_before_verification(single(), sure) for sure in (UNSURE, SURE))
    assert few == 1
    assert many > 8


def test_more_is_drafted_where_verifying_costs_more():
    cheap, dear = (drafted_before_verification(single(verify=cost), (6.0,)) for cost in (0.3, 3.0))
    assert cheap < dear


def test_no_more_waits_than_is_worth_a_verifications_width():
    assert (
        drafted_before_verification(
            single(draft=1e-6, verify=50.0, target=60.0, predictor=Table((0.0,), (0.9999,), 0.9999)), SURE
        )
        == 32
    )


def test_what_waits_is_verified_when_nothing_may_be_drafted():
    policy = single()
    policy.next_step([1, 1], True)
    policy.on_draft(0, SURE)
    assert policy.next_step([2, 1], False) == Verify(1)


def answer(policy, right, tokens=400):
    """Let a policy decode with a draft whose tokens at some positions are right; yields (position, active levels)."""
    committed, waiting = 1, 0
    while committed < tokens:
        yield committed, policy.active
        step = policy.next_step([committed + waiting, committed], True)
        match step:
            case Draft(_, 1):
                committed += 1
                policy.on_timing(Draft(1, 1), 1.0)
            case Draft():
                waiting += 1
                while policy.on_draft(0, SURE):
                    waiting += 1
            case Verify():
                accepted = next((at for at in range(waiting) if not right(committed + at)), waiting)
                passed = accepted + (accepted < waiting)
                policy.on_verification(1, waiting, accepted, passed, [])
                committed, waiting = committed + passed, 0


def test_predictions_are_corrected_by_what_happens():
    known = [PerformanceModel(2, costs_of(2, [0.01, 1.0], {(0, 1): 1.0}), {(0, 1): CHANCE}) for _ in range(2)]
    trusting, sobered = map(AdaptivePolicy, known)
    for _ in range(12):
        sobered.next_step([1, 1], True)
        sobered.on_draft(0, SURE)
        sobered.on_verification(1, 1, 0, 1, [])
    assert sobered.active == (0, 1)
    assert drafted_before_verification(sobered, (4.0,)) < drafted_before_verification(trusting, (4.0,))


def test_the_target_alone_takes_over_where_drafts_are_rejected_and_hands_back_later():
    taken = dict(answer(single(), lambda at: at > 300, 600))
    assert taken[1] == (0, 1)
    assert all(active == (1,) for at, active in taken.items() if 60 < at < 100), "within a few dozen tokens"
    assert sum(active == (0, 1) for at, active in taken.items() if 60 < at < 300) < 40, "it is tried now and then"
    assert taken[max(taken)] == (0, 1)


def share_on_trial(policy, tokens=3000):
    """Return the share of an answer's tokens that are written while a level that is never right is active."""
    return sum(len(active) > 1 for _, active in answer(policy, lambda at: False, tokens)) / tokens


def test_a_trial_ends_as_soon_as_it_has_failed_and_not_sooner(monkeypatch):
    short = share_on_trial(single())
    monkeypatch.setattr(adaptive, "STOP_TRIAL_AFTER", 99)
    long = share_on_trial(single())
    assert 0 < short < 0.9 * long
    monkeypatch.undo()
    kept = [*answer(single(), lambda at: at % 9)]
    monkeypatch.setattr(adaptive, "STOP_TRIAL_AFTER", 99)
    assert kept == [*answer(single(), lambda at: at % 9)], "it pays"


def test_trials_are_rarer_where_the_last_one_failed_and_that_is_known_in_the_next_answer(monkeypatch):
    model = single()._model
    shares = [share_on_trial(AdaptivePolicy(model)) for _ in range(2)]
    assert model.failed == {(0, 1)}
    monkeypatch.setattr(performance_models, "SLOWER", 1)
    model = single()._model
    assert all(2 * rarer < share_on_trial(AdaptivePolicy(model)) for rarer in shares)


def test_levels_that_are_kept_have_not_failed():
    policy = single()
    for _ in answer(policy, lambda at: at > 300, 1000):
        pass
    assert policy.active == (0, 1) and policy._model.failed == set()


def test_what_is_known_of_levels_that_failed_decays_slowly_while_the_target_writes_alone():
    pairs = ((0, 1), (0, 2), (1, 2))
    known = PerformanceModel(3, costs_of(3, [0.1, 0.5, 1.0], dict.fromkeys(pairs, 1.0)), dict.fromkeys(pairs, CHANCE))
    watched = known.relative[1, 2], known.acceptance[1, 2], known.relative[0, 1, 2]

    def left(active):
        for one in watched:
            one._denominator = 100.0
        known.decay(347, active)
        return [round(one._denominator) for one in watched]

    assert left((2,)) == [50, 50, 50]
    known.end_trial((1, 2), failed=True)
    assert left((2,)) == [71, 50, 50], "(0, 1, 2) has not failed"
    known.end_trial((0, 1, 2), failed=True)
    assert left((2,)) == [71, 71, 71]
    assert left((0, 2)) == [50, 50, 50]
    known.end_trial((1, 2), failed=False)
    assert left((2,)) == [50, 50, 71]


def test_what_is_learned_in_one_answer_is_known_in_the_next():
    policy = single()
    for _ in answer(policy, lambda at: False, 60):
        pass
    assert AdaptivePolicy(policy._model).active == (1,)


def test_levels_that_nobody_has_seen_are_tried_only_where_they_may_pay():
    costs = costs_of(2, [0.9, 1.0], {(0, 1): 1.0})
    assert AdaptivePolicy(PerformanceModel(2, costs, {(0, 1): UNCALIBRATED})).active == (1,)
    costs = costs_of(2, [0.1, 1.0], {(0, 1): 0.9})
    assert AdaptivePolicy(PerformanceModel(2, costs, {(0, 1): UNCALIBRATED})).active == (0, 1)


def test_costs_are_corrected_by_the_clock():
    """Drafts take ten times as long as was measured, which makes them useless."""
    policy = single()
    for _ in range(120):
        policy.on_timing(Draft(1, 0), 1.0)
        policy.on_verification(1, 1, 1, 1, [])
        policy.on_timing(Verify(1), 1.0)
    assert policy._model.draft_cost(0) > 0.5 * policy._model.draft_cost(1)


def test_a_busy_machine_makes_no_step_dearer_than_another():
    correction = CostCorrection()
    for seconds in (1.0, 5.0, 0.5, 3.0):
        for _ in range(40):
            correction.update(DRAFT, 0.1 * correction.factor(DRAFT), 0.1 * seconds, target=False)
            correction.update(VERIFY, correction.factor(VERIFY), seconds, target=True)
    assert correction.factor(DRAFT) == pytest.approx(correction.factor(VERIFY), rel=0.2)
    alone = CostCorrection()
    for _ in range(100):
        alone.update(VERIFY, 1.0, 3.0, target=True)
    assert alone.factor(VERIFY) == 1.0


def test_n_grams_that_are_never_right_are_left_out():
    known = PerformanceModel(2, costs_of(2, [1e-5, 1.0], {(0, 1): 1.4}), {})
    policy = AdaptivePolicy(known)
    assert policy.active == (0, 1)
    for _ in range(20):
        policy.next_step([1, 1], True)
        policy.on_verification(1, 4, 0, 1, [])
    assert policy.active == (1,)


def test_a_level_that_accepts_nearly_all_is_left_out():
    """Level 1 lets all of level 0's tokens pass: asking it is a waste of time."""
    sure = Logistic((6.0, 0.0, 0.0), 0.99, ("margin",))
    costs = costs_of(3, [0.1, 0.5, 2.0], {(0, 1): 0.6, (0, 2): 2.0, (1, 2): 1.8})
    assert AdaptivePolicy(PerformanceModel(3, costs, dict.fromkeys(costs.verify, sure))).active == (0, 2)


def test_a_level_between_takes_part_where_it_saves_verifications():
    poor, good = (Logistic((odds, 0.0, 0.0), mean, ("margin",)) for odds, mean in ((0.4, 0.6), (4.6, 0.99)))
    costs = costs_of(3, [0.05, 0.8, 8.0], {(0, 1): 0.6, (0, 2): 8.0, (1, 2): 7.4})
    predictors = {(0, 1): poor, (0, 2): poor, (1, 2): good}
    assert AdaptivePolicy(PerformanceModel(3, costs, predictors)).active == (0, 1, 2)


def test_calibrated_throughputs_go_before_expected_ones():
    costs = costs_of(3, [0.1, 0.5, 2.0], {(0, 1): 0.6, (0, 2): 2.0, (1, 2): 1.8})
    known = PerformanceModel(3, costs, dict.fromkeys(costs.verify, CHANCE), {(1, 2): 99.0})
    assert AdaptivePolicy(known).active == (1, 2)


def test_n_gram_drafts_are_verified_at_once():
    stack = ToyStack.random(4, 8, 2)
    levels = exits_of(stack, 1, ngrams=(3, 4))
    _, events = trace(levels, GREEDY, 150, None)
    waits = [after for before, after in pairwise(events) if isinstance(before, Drafted) and before.level == "guesses"]
    assert waits
    assert all(isinstance(event, Verified) for event in waits)


def test_every_subset_of_levels_may_take_part():
    assert set(all_active_levels(3)) == {(2,), (0, 2), (1, 2), (0, 1, 2)}


def test_n_grams_may_stand_right_below_the_target(monkeypatch):
    """Where no n-gram is found, the target decodes, and no level between is asked."""
    monkeypatch.setattr(PerformanceModel, "fastest_levels", lambda performance_model: (0, 2))
    stack = ToyStack.random(4, 8, 2)
    written, events = trace(exits_of(stack, 1, ngrams=(3, 4)), GREEDY, 80, None)
    assert written[2:] == write([Level("target", stack, 4)], GREEDY, [0, 1], 80)
    assert {event.level for event in events if isinstance(event, Drafted)} == {"guesses", "target"}


def test_uncalibrated_costs_know_which_layers_are_done():
    stack, other = (
        ToyStack.random(8, 6, 1),
        ToyStack.random(
            3,
            6,
            2,
        ),
    )
    levels = [Level("small", other, 3), *exits_of(stack, 2)]
    costs = uncalibrated_costs(Hierarchy(levels))
    assert costs.draft == [5.0, 4.0, 10.0]
    assert costs.verify[0, 1][0] == 4.0
    assert costs.verify[1, 2][0] == 8.0, "two of eight layers are done"
    assert costs.verify[0, 2][0] == 10.0, "another model's layers do not count"
