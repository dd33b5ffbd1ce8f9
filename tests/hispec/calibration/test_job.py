"""The job of a calibration, and the state that an interrupted calibration resumes from."""

from types import SimpleNamespace

import pytest

from hispec import Engine
from hispec.calibration.job import fingerprint


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
