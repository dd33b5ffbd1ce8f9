"""The adaptive policy: exact whatever it decides, and it decides by worth and cost."""

from itertools import pairwise

import pytest

from hispec.adaptation import knowledge, uncalibrated_costs
from hispec.decoding import adaptive
from hispec.decoding.adaptive import AdaptivePolicy, Knowledge, StepCosts, all_teams
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.policies import Draft, Judge
from hispec.decoding.prediction import Logistic, Table
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Drafted, Judged
from tests.toy import ToyStack, exits_of, sampler_of, write

SURE, UNSURE = (9.0,), (0.1,)
GREEDY = Sampler(Sampling())
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
    """It believes little and tries another team all the time."""
    monkeypatch.setattr(adaptive, "FIRST_TRIAL", 1)
    monkeypatch.setattr(adaptive, "LAST_TRIAL", 2)
    monkeypatch.setattr(adaptive, "TRIAL", 1)
    monkeypatch.setattr(adaptive, "PRIOR", 1.0)


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


def test_predictions_are_corrected_by_what_happens():
    trusting, sobered = single(), single()
    for _ in range(20):
        sobered.next_step([1, 1], True)
        sobered.drafted(0, SURE)
        sobered.judged(1, 1, 0, 1, [])
    sobered.next_step([1, 1], True)
    while sobered.team == (1,):  # it took to the target alone; its next trial is soon enough
        sobered.next_step([1, 1], True)
    assert drafted_before_judgement(sobered, SURE) < drafted_before_judgement(trusting, SURE)


def test_the_target_alone_takes_over_where_drafts_are_refused_and_hands_back_later():
    policy, teams = single(), []
    for _ in range(600):
        step = policy.next_step([1, 1], True)
        teams.append(policy.team)
        if step == Draft(1, 1):
            continue  # the target's own token
        policy.drafted(0, SURE)
        policy.judged(1, 1, int(len(teams) > 300), 1, [])
    assert teams[0] == (0, 1)
    assert teams[250:300].count((1,)) > 40
    assert (0, 1) in teams[300:]


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


def test_guesses_are_judged_at_once_and_never_without_the_level_that_steps_in():
    assert set(all_teams(3, ngrams=True)) == {(2,), (1, 2), (0, 1, 2)}
    stack = ToyStack.random(4, 8, 2)
    levels = exits_of(stack, 1, guesses=(3, 4))
    _, events = trace(levels, GREEDY, 150, None)
    waits = [after for before, after in pairwise(events) if isinstance(before, Drafted) and before.level == "guesses"]
    assert waits
    assert {(type(event), event.level) for event in waits} == {(Judged, "exit 1")}


def test_equal_seeds_take_equal_steps_whatever_was_decoded_before():
    stack = ToyStack.random(4, 12, 5)
    hierarchy = Hierarchy(exits_of(stack, 1, 2))
    known = knowledge(hierarchy, None)

    def steps(prompt):
        sampler = sampler_of(hierarchy.levels, Sampling(temperature=1.0), 3)
        _, events = trace(hierarchy.levels, sampler, 80, AdaptivePolicy(known), prompt)
        return [(type(event), getattr(event, "level", None), getattr(event, "proposed", None)) for event in events]

    first = steps((0, 1))
    steps((4, 5))
    assert steps((0, 1)) == first


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
