"""The job of a calibration, and the state that an interrupted calibration resumes from."""

from types import SimpleNamespace

import pytest

from hispec import Engine
from hispec.adaptation import levels_key
from hispec.calibration.job import defaults_of, fingerprint
from hispec.calibration.search import HierarchyBuilder
from hispec.errors import UnavailableError
from hispec.profile import copies_of, profile_for_model


@pytest.fixture(scope="module")
def engine():
    return Engine.from_profile("tiny")


@pytest.mark.parametrize(
    ("changes", "equal"),
    [({"intermediate_top_k": 3}, False), ({"draft_tokens": 7}, True), ({"temperature": 0.5, "seed": 1}, True)],
)
def test_a_fingerprint_tells_calibrations_apart_whose_figures_would_differ(engine, changes, equal):
    job = SimpleNamespace(space=(), prompts=[], eos_ids=frozenset(), max_new_tokens=8, seed=0)
    other = engine.with_settings(**changes)
    assert (fingerprint(engine, job, "", 1) == fingerprint(other, job, "", 1)) is equal


@pytest.mark.parametrize("formats", [("int4", "int8"), ()])
def test_the_defaults_are_the_levels_that_the_model_has_without_a_profile(engine, formats, monkeypatch):
    if not formats:
        monkeypatch.setattr("hispec.loading.check_profile", _no_memory)
    model = engine.profile.target.model
    alone = Engine.from_profile(profile_for_model(model, 16, None, None)).hierarchy
    found = defaults_of(engine, formats)
    own = engine.stacks[model]
    stacks = {model: own} | {spec.stack: own.quantized(spec.weights) for spec in found.specs if spec.weights}
    built = HierarchyBuilder(stacks, model).hierarchy(found)
    assert found.uncalibrated and found.adaptive
    assert levels_key(built, range(len(built))) == levels_key(alone, range(len(alone)))
    assert built.ngrams == alone.ngrams
    assert any(spec.weights for spec in found.specs) == bool(formats)


def _no_memory(profile, *_):
    if copies_of(profile, "hispec", 16):
        raise UnavailableError("no memory for copies", "")
