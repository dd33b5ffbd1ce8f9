"""Costs of steps are measured if no calibration has measured them, and once for each model and machine."""

import json
from itertools import count

import pytest

from hispec import Engine, step_timing
from hispec.adaptation import performance_model
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampling
from hispec.step_timing import measure, step_costs
from tests.toy import ToyStack, exits_of, sampler_of, write

NAMES = ["guesses", "1", "2", "4"]


@pytest.fixture
def hierarchy():
    return Hierarchy(exits_of(ToyStack.random(4, 8, 1), 1, 2, ngrams=(3, 4)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_: tmp_path)
    return tmp_path


@pytest.fixture
def measured(monkeypatch, folder):
    """The number of measurements; every part of a step takes one second."""
    calls = []

    def counting(hierarchy, clock=None):
        calls.append(hierarchy)
        return measure(hierarchy, count().__next__)

    monkeypatch.setattr(step_timing, "measure", counting)
    return calls


def test_a_step_costs_the_spans_that_are_not_done_yet_and_a_head(hierarchy, measured):
    costs = step_costs(hierarchy, NAMES)
    assert costs.draft == [step_timing.NGRAM_SECONDS, 2, 3, 4], "its own span, those below it, and a head"
    one = {pair: rows[0] for pair, rows in costs.verify.items()}
    assert one == {(0, 1): 2, (0, 2): 3, (0, 3): 4, (1, 2): 2, (1, 3): 3, (2, 3): 2}


def test_another_model_runs_all_of_its_layers(measured):
    other = ToyStack.random(3, 8, 2, 0.5)
    other.name = "other"
    costs = step_costs(Hierarchy([Level("small", other, 3), *exits_of(ToyStack.random(4, 8, 1), 2)]), NAMES[1:])
    assert costs.draft == [2, 2, 3]
    assert costs.verify[0, 2][0] == 3, "the exit below the target is not run yet"


def test_it_is_measured_once(hierarchy, measured, folder):
    first = step_costs(hierarchy, NAMES)
    assert step_costs(hierarchy, NAMES) == first
    assert len(measured) == 1
    step_costs(hierarchy, ["guesses", "1/256", "2", "4"])
    assert len(measured) == 2, "another head costs otherwise"
    assert len(json.loads((folder / step_timing.FILE).read_text())) == 2


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_what_is_damaged_is_measured_again(hierarchy, measured, folder, content):
    step_costs(hierarchy, NAMES)
    file = folder / step_timing.FILE
    known = json.loads(file.read_text())
    file.write_text(json.dumps({key: [[[]]] for key in known}) if content is None else content)
    step_costs(hierarchy, NAMES)
    assert len(measured) == 2


def test_a_slow_machine_times_few_rows_and_estimates_the_rest(hierarchy):
    slow = iter(range(0, 10**6, 10))
    spans = [curve.at for curve, _ in measure(hierarchy, slow.__next__)]
    assert spans == [(), (1, 2), (1, 2), (1, 2)]


def test_what_was_measured_leaves_nothing_behind(hierarchy):
    levels = hierarchy.levels
    sampler = sampler_of(levels, Sampling(temperature=1.0), 3)
    before = write(levels, sampler, [0, 1], 40)
    measure(hierarchy)
    assert write(levels, sampler_of(levels, Sampling(temperature=1.0), 3), [0, 1], 40) == before


def test_only_what_no_calibration_has_measured_is_measured(hierarchy, measured):
    assert performance_model(hierarchy, None).costs.draft[0] == 0.1
    assert measured == []
    assert performance_model(hierarchy, None, measured=True).costs.draft[0] == step_timing.NGRAM_SECONDS


def test_answers_share_what_they_have_learned(folder):
    engine = Engine.from_profile("tiny", policy="adaptive", max_new_tokens=30)
    engine.generate("How much is 3 plus 4?")
    (known,) = engine.models.performance_model.values()
    seen = {pair: acceptance.mean for pair, acceptance in known.acceptance.items()}
    again = engine.with_settings(max_new_tokens=40)
    again.generate("Tom has 5 apples and buys 7 more. How many has he?")
    assert list(engine.models.performance_model.values()) == [known]
    assert {pair: acceptance.mean for pair, acceptance in known.acceptance.items()} != seen
