"""The adaptive policy: exact whatever it decides, and it decides by worth and cost."""

from itertools import pairwise
from random import Random

import pytest

from hispec.adaptation import knowledge, uncalibrated_costs
from hispec.decoding import adaptive
from hispec.decoding.adaptive import AdaptivePolicy
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.knowledge import Clock, Knowledge, StepCosts, all_teams
from hispec.decoding.policies import Draft, Judge
from hispec.decoding.prediction import UNCALIBRATED, Logistic, Table
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Drafted, Judged
from tests.toy import ToyStack, exits_of, sampler_of, write

SURE, UNSURE = (9.0,), (0.1,)
GREEDY = Sampler(Sampling())
DRAFT, VERIFY = ("draft", 0, 0), ("verify", 1, 2)
CHANCE = Table((0.0, 10.0), (0.05, 0.99), 0.8)


def policy_of(hierarchy):
    return AdaptivePolicy(knowledge(hierarchy, None))


def costs_of(levels, draft, judge):
    pairs = [(a, b) for a in range(levels) for b in range(a + 1, levels)]
    return StepCosts(draft, {pair: [judge[pair] + 0.01 * k for k in range(32)] for pair in pairs})


def single(draft=0.1, judge=1.0, target=1.0, predictor=CHANCE):
    """A policy of one exit below a target."""
    return AdaptivePolicy(Knowledge(2, costs_of(2, [draft, target], {(0, 1): judge}), {(0, 1): predictor}))


def drafted_before_judgement(policy, confidence, most=60):
    """How many tokens of one confidence are drafted before somebody judges."""
    judged, count = [1, 1], 0
    while isinstance(step := policy.next_step(judged, True), Draft) and count < most:
        for _ in range(step.tokens):
            judged[0] += 1
            count += 1
            if not policy.drafted(0, confidence):
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
    """It takes other levels all the time, whatever it knows of them."""
    dice = Random(0)
    monkeypatch.setattr(adaptive, "RECONSIDERED", 1)
    monkeypatch.setattr(Knowledge, "fastest", lambda knowledge: dice.choice(knowledge.teams))


@pytest.mark.parametrize("guesses", [None, (3, 4)])
@pytest.mark.parametrize("exits", [(4,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_answers_are_the_targets_own(exits, seed, guesses, restless):
    stack, eos = ToyStack.random(6, 12, seed), () if seed % 2 else (11,)
    alone, _ = trace([Level("target", stack, 6)], GREEDY, 120, None, eos=eos)
    levels = exits_of(stack, *exits, guesses=guesses)
    written, events = trace(levels, GREEDY, 120, None, eos=eos)
    assert written == alone
    if not eos:
        verdicts = [event for event in events if isinstance(event, Judged) and event.level == "target"]
        assert any(verdict.correction is None for verdict in verdicts)
        assert any(verdict.correction is not None for verdict in verdicts)


@pytest.mark.parametrize("exits", [(1,), (1, 2)])
def test_sampling_writes_what_the_target_alone_draws_while_teams_change(exits, restless):
    stack, sampling = ToyStack.random(3, 3, seed=7, opposed=True), Sampling(temperature=0.9)
    levels = exits_of(stack, *exits)
    teams = set()

    class Watched(AdaptivePolicy):
        def next_step(self, judged, may_draft):
            step = super().next_step(judged, may_draft)
            teams.add(self.team)
            return step

    for seed in range(20):
        sampler = sampler_of(levels, sampling, seed)
        written = write(levels, sampler, [0, 1], 60, policy_of=lambda h: Watched(knowledge(h, None)))
        assert written == write(levels[-1:], sampler, [0, 1], 60)
    assert len(teams) > 1


def test_levels_are_left_out_only_from_a_moment_on_at_which_nothing_waits(restless):
    stack = ToyStack.random(6, 12, 3)
    policy = policy_of(Hierarchy(exits_of(stack, 1, 2, 4)))
    changes, teams, choose = [], set(), policy.next_step

    def next_step(judged, may_draft):
        before = policy.team
        step = choose(judged, may_draft)
        teams.add(policy.team)
        if policy.team != before:
            changes.append(judged[0] - judged[-1])
        return step

    policy.next_step = next_step
    trace(exits_of(stack, 1, 2, 4), GREEDY, 200, policy)
    assert len(teams) > 3
    assert set(changes) == {0}


def test_more_is_drafted_where_the_level_is_sure():
    few, many = (drafted_before_judgement(single(), sure) for sure in (UNSURE, SURE))
    assert few == 1
    assert many > 8


def test_more_is_drafted_where_judging_costs_more():
    cheap, dear = (drafted_before_judgement(single(judge=cost), (6.0,)) for cost in (0.3, 3.0))
    assert cheap < dear


def test_no_more_waits_than_is_worth_a_judgements_width():
    assert (
        drafted_before_judgement(
            single(draft=1e-6, judge=50.0, target=60.0, predictor=Table((0.0,), (0.9999,), 0.9999)), SURE
        )
        == 32
    )


def test_what_waits_is_judged_when_nothing_may_be_drafted():
    policy = single()
    policy.next_step([1, 1], True)
    policy.drafted(0, SURE)
    assert policy.next_step([2, 1], False) == Judge(1)


def answer(policy, right, tokens=400):
    """Let a policy decode beside a draft whose tokens at some positions are right; yields (position, team)."""
    committed, waiting = 1, 0
    while committed < tokens:
        yield committed, policy.team
        step = policy.next_step([committed + waiting, committed], True)
        match step:
            case Draft(_, 1):
                committed += 1
                policy.timed(Draft(1, 1), 1.0)
            case Draft():
                waiting += 1
                while policy.drafted(0, SURE):
                    waiting += 1
            case Judge():
                accepted = next((at for at in range(waiting) if not right(committed + at)), waiting)
                passed = accepted + (accepted < waiting)
                policy.judged(1, waiting, accepted, passed, [])
                committed, waiting = committed + passed, 0


def test_predictions_are_corrected_by_what_happens():
    known = [Knowledge(2, costs_of(2, [0.01, 1.0], {(0, 1): 1.0}), {(0, 1): CHANCE}) for _ in range(2)]
    trusting, sobered = map(AdaptivePolicy, known)
    for _ in range(12):
        sobered.next_step([1, 1], True)
        sobered.drafted(0, SURE)
        sobered.judged(1, 1, 0, 1, [])
    assert sobered.team == (0, 1)
    assert drafted_before_judgement(sobered, (4.0,)) < drafted_before_judgement(trusting, (4.0,))


def test_the_target_alone_takes_over_where_drafts_are_rejected_and_hands_back_later():
    taken = dict(answer(single(), lambda at: at > 300, 600))
    assert taken[1] == (0, 1)
    assert all(team == (1,) for at, team in taken.items() if 60 < at < 100), "within a few dozen tokens"
    assert sum(team == (0, 1) for at, team in taken.items() if 60 < at < 300) < 40, "it is tried now and then"
    assert taken[max(taken)] == (0, 1)


def test_what_is_learned_in_one_answer_is_known_in_the_next():
    policy = single()
    for _ in answer(policy, lambda at: False, 60):
        pass
    assert AdaptivePolicy(policy._knowledge).team == (1,)


def test_levels_that_nobody_has_seen_are_tried_only_where_they_may_pay():
    costs = costs_of(2, [0.9, 1.0], {(0, 1): 1.0})
    assert AdaptivePolicy(Knowledge(2, costs, {(0, 1): UNCALIBRATED})).team == (1,)
    costs = costs_of(2, [0.1, 1.0], {(0, 1): 0.9})
    assert AdaptivePolicy(Knowledge(2, costs, {(0, 1): UNCALIBRATED})).team == (0, 1)


def test_costs_are_corrected_by_the_clock():
    """Drafts take ten times as long as was measured, which makes them useless."""
    policy = single()
    for _ in range(120):
        policy.timed(Draft(1, 0), 1.0)
        policy.judged(1, 1, 1, 1, [])
        policy.timed(Judge(1), 1.0)
    assert policy._knowledge.draft_cost(0) > 0.5 * policy._knowledge.draft_cost(1)


def test_a_busy_machine_makes_no_step_dearer_than_another():
    clock = Clock()
    for seconds in (1.0, 5.0, 0.5, 3.0):
        for _ in range(40):
            clock.see(DRAFT, 0.1 * clock.factor(DRAFT), 0.1 * seconds, target=False)
            clock.see(VERIFY, clock.factor(VERIFY), seconds, target=True)
    assert clock.factor(DRAFT) == pytest.approx(clock.factor(VERIFY), rel=0.2)
    alone = Clock()
    for _ in range(100):
        alone.see(VERIFY, 1.0, 3.0, target=True)
    assert alone.factor(VERIFY) == 1.0


def test_n_grams_that_are_never_right_are_left_out():
    known = Knowledge(2, costs_of(2, [1e-5, 1.0], {(0, 1): 1.4}), {})
    policy = AdaptivePolicy(known)
    assert policy.team == (0, 1)
    for _ in range(20):
        policy.next_step([1, 1], True)
        policy.judged(1, 4, 0, 1, [])
    assert policy.team == (1,)


def test_a_level_that_accepts_nearly_all_is_left_out():
    """Level 1 lets all of level 0's tokens pass: asking it is a waste of time."""
    sure = Logistic((6.0, 0.0, 0.0), 0.99, ("margin",))
    costs = costs_of(3, [0.1, 0.5, 2.0], {(0, 1): 0.6, (0, 2): 2.0, (1, 2): 1.8})
    assert AdaptivePolicy(Knowledge(3, costs, dict.fromkeys(costs.judge, sure))).team == (0, 2)


def test_a_level_between_takes_part_where_it_saves_judgements():
    poor, good = (Logistic((odds, 0.0, 0.0), mean, ("margin",)) for odds, mean in ((0.4, 0.6), (4.6, 0.99)))
    costs = costs_of(3, [0.05, 0.8, 8.0], {(0, 1): 0.6, (0, 2): 8.0, (1, 2): 7.4})
    predictors = {(0, 1): poor, (0, 2): poor, (1, 2): good}
    assert AdaptivePolicy(Knowledge(3, costs, predictors)).team == (0, 1, 2)


def test_calibrated_paces_go_before_expected_ones():
    costs = costs_of(3, [0.1, 0.5, 2.0], {(0, 1): 0.6, (0, 2): 2.0, (1, 2): 1.8})
    known = Knowledge(3, costs, dict.fromkeys(costs.judge, CHANCE), {(1, 2): 99.0})
    assert AdaptivePolicy(known).team == (1, 2)


def test_n_gram_drafts_are_verified_at_once():
    stack = ToyStack.random(4, 8, 2)
    levels = exits_of(stack, 1, guesses=(3, 4))
    _, events = trace(levels, GREEDY, 150, None)
    waits = [after for before, after in pairwise(events) if isinstance(before, Drafted) and before.level == "guesses"]
    assert waits
    assert all(isinstance(event, Judged) for event in waits)


def test_every_subset_of_levels_may_take_part():
    assert set(all_teams(3)) == {(2,), (0, 2), (1, 2), (0, 1, 2)}


def test_n_grams_may_stand_right_below_the_target(monkeypatch):
    """Where no n-gram is found, the target writes, and no level between is asked."""
    monkeypatch.setattr(Knowledge, "fastest", lambda knowledge: (0, 2))
    stack = ToyStack.random(4, 8, 2)
    written, events = trace(exits_of(stack, 1, guesses=(3, 4)), GREEDY, 80, None)
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
    assert costs.judge[0, 1][0] == 4.0
    assert costs.judge[1, 2][0] == 8.0, "two of eight layers are done"
    assert costs.judge[0, 2][0] == 10.0, "another model's layers do not count"
