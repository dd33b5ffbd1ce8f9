"""A replay takes the steps that decoding takes, and counts what they run."""

from random import Random

import pytest

from hispec.adaptation import performance_model
from hispec.calibration.recording import LevelSpec
from hispec.calibration.replay import Replay
from hispec.calibration.steps import MeteredStack, fit_steps, time_steps
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Prefilled
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.static import StaticPolicy
from tests.hispec.calibration.conftest import LENGTH, PROMPTS


def decoded(hierarchy, costs, policy, eos=()):
    """(target passes, modelled seconds, tokens) of really decoding all prompts."""
    metered = MeteredStack(hierarchy.stack_of(-1), costs)
    same = Hierarchy([Level(level.name, metered, level.exit_layer) for level in hierarchy.levels])
    passes = tokens = 0
    for prompt in PROMPTS:
        state = DecodingState(same, list(prompt), len(prompt) + LENGTH)
        for event in decode(state, policy(), Sampler(Sampling()), StopCriteria(LENGTH, eos)):
            passes += isinstance(event, Prefilled) or getattr(event, "level", None) == "target"
        tokens += state.committed - len(prompt)
    return passes, metered.modelled, tokens


def replayed(hierarchy, costs, recorded, policy, eos=()):
    outcome = Replay(hierarchy, recorded, costs, eos, Random(0)).run_all(recorded.texts, policy)
    return outcome.target_passes, outcome.seconds, outcome.tokens


@pytest.mark.parametrize("exits", [(), (1,), (3,), (5,)])
@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_of_one_drafter_it_is_exact(exits, length, hierarchy_at, costs, recorded, static):
    hierarchy = hierarchy_at(*exits)
    policy = static(*(1, length)[: len(hierarchy)])
    real, copy = decoded(hierarchy, costs, policy), replayed(hierarchy, costs, recorded, policy)
    assert copy[0] == real[0]
    assert copy[2] == real[2]
    assert copy[1] == pytest.approx(real[1], rel=1e-9)


def test_mistakes_are_verified_by_the_level_between_as_in_decoding_when_each_is_verified_at_once(
    hierarchy_at, costs, recorded, static
):
    hierarchy, policy = hierarchy_at(1, 3), static(1, 1, 1)
    assert replayed(hierarchy, costs, recorded, policy) == pytest.approx(decoded(hierarchy, costs, policy), rel=1e-9)


@pytest.mark.parametrize("periods", [(1, 2, 4), (1, 3, 6), (1, 1, 8)])
@pytest.mark.parametrize("exits", [(1, 3), (2, 4), (3, 5)])
def test_off_the_path_it_is_near(exits, periods, hierarchy_at, costs, recorded, static):
    hierarchy, policy = hierarchy_at(*exits), static(*periods)
    real, copy = decoded(hierarchy, costs, policy), replayed(hierarchy, costs, recorded, policy)
    assert copy[2] == real[2]
    assert copy[1] == pytest.approx(real[1], rel=0.12)


def test_policies_that_want_to_know_are_told_what_decoding_tells_them(hierarchy_at, costs, recorded):
    hierarchy = hierarchy_at(2)

    class Listening(StaticPolicy):
        features = ("margin",)

        def __init__(self, heard):
            super().__init__((1, 3))
            self.heard = heard

        def on_draft(self, level, confidence):
            self.heard.append((level, round(confidence[0], 4)))
            return True

        def on_verification(self, level, proposed, accepted, passed, confidence):
            self.heard.append((level, proposed, accepted, len(confidence)))

    real, copy = [], []
    decoded(hierarchy, costs, lambda: Listening(real))
    replayed(hierarchy, costs, recorded, lambda: Listening(copy))
    verdicts = [entry for entry in real if len(entry) == 4]
    assert [entry for entry in copy if len(entry) == 4] == verdicts
    sure = {entry for entry in real if len(entry) == 2}
    own = [entry for entry in copy if len(entry) == 2]
    assert sum(entry in sure for entry in own) > 0.5 * len(own), "on the path they hear the very numbers"


def test_an_end_of_text_ends_it(hierarchy_at, costs, recorded, stack):
    ends = {text.tokens[17] for text in recorded.texts}
    cut = [text for text in recorded.texts if text.tokens[-1] in ends]
    hierarchy = hierarchy_at(2)
    replay = Replay(hierarchy, recorded, costs, ends, Random(0))
    for text in cut:
        assert replay.run(text, StaticPolicy((1, 4))).tokens == len(text.tokens)


def test_the_adaptive_policy_replays(hierarchy_at, costs, recorded):
    hierarchy = hierarchy_at(1, 3)
    known = performance_model(hierarchy, None)
    _, seconds, tokens = decoded(hierarchy, costs, lambda: AdaptivePolicy(known))
    copy = replayed(hierarchy, costs, recorded, lambda: AdaptivePolicy(known))
    assert copy[2] == tokens
    assert copy[1] == pytest.approx(seconds, rel=0.12)


def test_recording_is_what_levels_say_when_they_decode(recorded, hierarchy_at, stack):
    """The first token that an exit drafts after a prompt and the target's first token is the recorded one."""
    for text in recorded.texts:
        for exit_ in (1, 4):
            state = DecodingState(hierarchy_at(exit_), [*text.prompt, text.tokens[0]], 64)
            state.write(0, 1, ())
            assert state.tokens[-1] == text.predictions[LevelSpec("random", exit_)].argmax[1]


def test_branches_begin_with_a_mistake_and_go_on_as_their_drafter_would(recorded, hierarchy_at):
    known = recorded.branches[LevelSpec("random", 1)]
    assert len(known) > 10
    assert all(branch.predictions[LevelSpec("random", 1)].argmax == branch.tokens for branch in known)
    others = [branch.predictions[LevelSpec("random", 6)].argmax != branch.tokens for branch in known]
    assert any(others), "the whole model would not have gone on so"


def test_events_of_decoding_are_steps(hierarchy_at, costs, stack):
    levels = hierarchy_at(1, 3).levels
    timed = time_steps(levels, costs, (1, 2, 4), PROMPTS[0], 30)
    kinds = {step.kind for step in timed}
    assert kinds == {"prefill", "draft", "verify", "target verifies"}
    assert all(step.seconds > 0 and step.modelled > 0 for step in timed)
    assert fit_steps(timed).keys() == kinds
