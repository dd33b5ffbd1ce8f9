"""A calibration considers levels that read quantized copies of the target, which share its cache."""

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch

from hispec import Engine
from hispec.budget import Budget
from hispec.calibration import job as jobs
from hispec.calibration import run as sessions
from hispec.calibration.costs import WIDTHS, Costs, SpanCost
from hispec.calibration.job import copies_here, formats_below, space_of
from hispec.calibration.recording import WINDOW, LevelSpec, Recorder, record_all
from hispec.calibration.replay import Replay
from hispec.calibration.result import baselines_among
from hispec.calibration.run import CalibrationJob, CalibrationRun
from hispec.calibration.search import PLAIN, Configuration
from hispec.calibration.steps import MeteredStack
from hispec.curve import Curve
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.policies.static import StaticPolicy
from tests.hispec.calibration.conftest import LENGTH, PROMPTS
from tests.support import decode_ids, fused_stack, random_model

DEPTH = 6
READERS = [
    *(LevelSpec("random", exit_) for exit_ in range(1, DEPTH + 1)),
    *(LevelSpec("random", exit_, weights="int4") for exit_ in (1, 2, DEPTH)),
]


@pytest.fixture(scope="module")
def target():
    stack = fused_stack(random_model(seed=3, layers=DEPTH))
    stack.name = "random"
    return stack


def recorded(stacks, specs=READERS):
    last = Level("target", stacks["random"], DEPTH)

    def write(prompt):
        return decode_ids(Hierarchy([last]), (1,), prompt=list(prompt), max_new_tokens=LENGTH)

    return record_all(Recorder(stacks, specs, {}, "random"), PROMPTS, write, Random(0), branches=20)


@pytest.fixture(scope="module")
def equal(target):
    """The target, a second stack with the same weights that acts as a lossless copy, and traces of both."""
    stacks = {"random": target, "random int4": target._beside(target._weights, "random int4")}
    return stacks, recorded(stacks)


def level(name, stacks, exit_layer, weights=None):
    return Level(name, stacks[f"random {weights}" if weights else "random"], exit_layer, weights=weights)


@pytest.fixture
def costs():
    """A copy's layers cost a third; all more than one row."""

    def span(layer):
        return SpanCost(
            tuple(Curve((0,), (0.25,)) for _ in WIDTHS),
            tuple(Curve((0,), (layer * at,)) for at in range(1, len(WIDTHS) + 1)),
        )

    heads = {(name, 0): Curve(WIDTHS, tuple(0.5 * width for width in WIDTHS)) for name in ("random", "random int4")}
    return Costs({"random": span(1.0), "random int4": span(0.3)}, heads)


def decoded(stacks, costs, levels, periods):
    """(target passes, modelled seconds) of really decoding all prompts."""
    metered = {name: MeteredStack(stack, costs) for name, stack in stacks.items()}
    hierarchy = Hierarchy([replace(one, stack=metered[one.stack.name]) for one in levels])
    passes = 0
    for prompt in PROMPTS:
        state = DecodingState(hierarchy, list(prompt), len(prompt) + LENGTH)
        for event in decode(state, StaticPolicy(periods), Sampler(Sampling()), StopCriteria(LENGTH, ())):
            passes += type(event).__name__ == "Prefilled" or getattr(event, "level", None) == "target"
    return passes, sum(stack.modelled for stack in metered.values())


@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("exit_layer", [1, 2, DEPTH])
def test_a_replay_counts_what_a_copy_runs_and_that_the_target_overwrites_it(equal, costs, exit_layer, length):
    stacks, recorded = equal
    levels = [level("draft", stacks, exit_layer, "int4"), level("target", stacks, DEPTH)]
    real = decoded(stacks, costs, levels, (1, length))
    outcome = Replay(Hierarchy(levels), recorded, costs, (), Random(0)).run_all(
        recorded.texts, lambda: StaticPolicy((1, length))
    )
    assert outcome.target_passes == real[0]
    # The call of a prompt is counted for each level of the target's own stack alone.
    assert outcome.seconds == pytest.approx(real[1], rel=1e-9)


@pytest.mark.parametrize("draft", [(1, None), (2, "int4")])
def test_a_replay_of_a_copy_that_verifies_is_near(equal, costs, draft):
    stacks, recorded = equal
    levels = [level("draft", stacks, *draft), level("copy", stacks, DEPTH, "int4"), level("target", stacks, DEPTH)]
    real = decoded(stacks, costs, levels, (1, 2, 8))
    outcome = Replay(Hierarchy(levels), recorded, costs, (), Random(0)).run_all(
        recorded.texts, lambda: StaticPolicy((1, 2, 8))
    )
    assert outcome.seconds == pytest.approx(real[1], rel=0.12)


@pytest.fixture(scope="module")
def copied(target):
    stacks = {"random": target} | {f"random {each}": target.quantized(each) for each in ("int8", "int4")}
    return stacks, recorded(stacks, [*READERS, LevelSpec("random", 3, weights="int8")])


def test_what_is_recorded_of_a_copy_is_what_it_says_after_tokens_of_the_target(copied):
    stacks, recorded = copied
    differing = 0
    for text in recorded.texts:
        for spec in (spec for spec in READERS if spec.weights):
            for at in (0, WINDOW, 2 * WINDOW):
                levels = [level("copy", stacks, spec.exit_layer, "int4"), level("target", stacks, DEPTH)]
                known = [*text.prompt, *text.tokens[:at]]
                state = DecodingState(Hierarchy(levels), known, len(known) + 4)
                with torch.inference_mode():
                    state.logits(1, len(known) - 2, len(known) - 1)  # the target has run all but the last
                    state.write(0, 1, ())
                assert text.predictions[spec].argmax[at] == state.tokens[-1]
                differing += text.tokens[at] != state.tokens[-1]
    assert differing, "or the target would have been recorded in its place"


def test_no_pass_that_records_a_copy_is_so_wide_that_it_reads_the_full_weights(target):
    copy, widths, tokens = target.quantized("int4"), [], [*range(20)]

    class Watched:
        narrow = 3

        def run(self, hidden, *rest, **named):
            widths.append(len(hidden))
            return copy.run(hidden, *rest, **named)

        def __getattr__(self, name):
            return getattr(copy, name)

    wide, thin = (
        Recorder({"random": target, "random int4": one}, READERS, {}, "random").record(PROMPTS[0], tokens).predictions
        for one in (copy, Watched())
    )
    assert max(widths) == 3
    assert thin.keys() == wide.keys()
    assert sum(a == b for a, b in zip(wide[READERS[-1]].argmax, thin[READERS[-1]].argmax, strict=True)) > 15


def test_after_recording_the_cache_holds_the_rows_of_the_target(copied):
    stacks, recorded = copied
    text = recorded.texts[0]
    Recorder(stacks, READERS, {}, "random").record(text.prompt, text.tokens)
    ids = [*text.prompt, *text.tokens][:-1]
    held = [layer[..., : len(ids), :].clone() for layer in stacks["random"].cache.layers]
    with torch.inference_mode():
        stacks["random"].run(stacks["random"].embed(ids), 0, DEPTH, 0)
    for layer, own in zip(stacks["random"].cache.layers, held, strict=True):
        torch.testing.assert_close(layer[..., : len(ids), :], own)


def test_a_mistake_of_a_copy_is_followed_by_what_the_copy_writes(copied):
    _, recorded = copied
    spec = READERS[-2]
    assert spec.weights and recorded.branches[spec]
    for branch in recorded.branches[spec]:
        same = sum(a == b for a, b in zip(branch.predictions[spec].argmax, branch.tokens, strict=True))
        assert same >= len(branch.tokens) - 1, "but for near ties, which passes of other widths may decide otherwise"


def is_published_hierarchy(one):
    return not one.quantized and not one.adaptive and one.ngram is None and len(one.specs) == 2


def test_a_whole_calibration_looks_at_copies_that_pay_and_leaves_the_others(target, tmp_path, monkeypatch):
    space = space_of("random", DEPTH, [1, 2, 3], ["int4", "int8"])
    stacks = {"random": target} | {f"random {each}": target.quantized(each) for each in ("int4", "int8")}
    prompts = [[3, 1, 4, at] for at in range(12)]
    job = CalibrationJob(stacks, "random", {}, replace(space, ngrams=()), prompts, frozenset(), 24, budget=Budget(6.0))
    monkeypatch.setattr(sessions, "seconds_alone", lambda costs, stack, *_: (0.0, 1e-4 if "int4" in stack else 1e-3))
    result = CalibrationRun(job, tmp_path).run()
    asked = {spec.weights for text in result.scorer.recorded.texts for spec in text.predictions}
    assert asked == {"", "int4"}
    chains = [score.configuration.specs for score in result.found.scores]
    assert (LevelSpec("random", 1, weights="int4"), LevelSpec("random", DEPTH, weights="int4")) in chains
    most = max(score.texts for score in result.found.scores)  # on a busy machine few or none get that far
    exact = [score.configuration for score in result.found.scores if score.texts == most]
    published = {one for one in exact if is_published_hierarchy(one)}
    assert not published or published & set(result.timings.configurations)
    assert result.timings.differing() == result.check.differing() == 0
    again = CalibrationRun(job, tmp_path, resume=True)
    assert again.recorded().texts == result.scorer.recorded.texts


def test_copies_are_looked_at_whole_and_at_shallow_exits():
    space = space_of("m", 16, [*range(1, 13)], ["int4"])
    assert [spec.exit_layer for spec in space.copies] == [1, 2, 3, 4]
    assert space.whole == (LevelSpec("m", 16, weights="int4"),)
    chains = list(space.chains())
    assert len(chains) == len(set(chains)) == 12 + 4 + 1 + 66 + (12 + 4)
    assert space.without({"int4"}).specs == space.exits
    assert [spec.exit_layer for spec in space_of("m", 16, [9, 12], ["int8"]).copies] == [9]


def test_published_baselines_have_exits_of_the_full_weights():
    full, copy = LevelSpec("m", 2), LevelSpec("m", 2, weights="int4")
    bench = SimpleNamespace(target="m")
    single, quick = Configuration((full,), (4,)), Configuration((copy,), (6,))
    chain = Configuration((LevelSpec("m", 1), full), (2, 8))
    whole = Configuration((copy, LevelSpec("m", 16, weights="int4")), (2, 8))
    assert baselines_among([whole, quick, single, chain, PLAIN], bench) == {
        "single-layer": quick,
        "single-layer-published": single,
        "hispec-published": chain,
        "autoregressive": PLAIN,
    }
    assert "single-layer-published" not in baselines_among([single, quick, PLAIN], bench)


def engine_with(**settings):
    return Engine.from_profile("tiny", mode="autoregressive", **settings)


@pytest.mark.parametrize(
    ("settings", "formats"),
    [
        ({}, ["int4", "int8"]),
        ({"stack": "transformers"}, []),
        ({"quantization": "int8"}, ["int4"]),
        ({"quantization": "int4"}, []),
    ],
)
def test_copies_are_made_where_they_can_be(settings, formats):
    found = copies_here(engine_with(**settings))
    assert list(found) == formats
    assert [stack.name for stack in found.values()] == [f"builtin:tiny {each}" for each in formats]


def test_copies_that_do_not_fit_are_no_candidates(monkeypatch):
    engine = engine_with()
    monkeypatch.setattr(jobs, "chosen_device", lambda settings: SimpleNamespace(free=3_000_000))
    assert list(copies_here(engine)) == ["int4"]


def test_formats_that_take_less_memory_than_the_target():
    assert formats_below("none") == ["int4", "int8"]
    assert formats_below("8bit") == ["int4"]
    assert formats_below("4bit") == []
