"""The published schema: every report agrees with it, nothing else does."""

import json

import jsonschema
import pytest
from pydantic import ValidationError

from hispec.bench.record import LevelCounts, Measurement, Report, TokenComparison
from hispec.bench.statistics import summarize
from tests.hispec.bench.examples import measurement, report, run, setup

SCHEMA = Report.model_json_schema()


def interrupted():
    """Cut short after the first arm's third row."""
    arms = ("hispec", "single-layer", "autoregressive", "hf")
    return summarize(setup(status="interrupted"), arms, run(arms)[:9], resamples=100)


REPORTS = {
    "full": lambda: report(repeats=2),
    "interrupted": interrupted,
    "interrupted at once": lambda: summarize(setup(status="interrupted"), ["hispec", "hf"], []),
    "one arm": lambda: report(("autoregressive",)),
    "one prompt": lambda: report(rows=1),
    "arms that tell little": lambda: report(("hf", "hf-early-exit", "hf-assisted"), rows=3, synthetic_weights=True),
}


def test_the_schema_is_itself_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] == "hispec.bench/1"
    assert "description" in SCHEMA["$defs"]["ArmFigures"]["properties"]["mean_acceptance_length"]


@pytest.mark.parametrize("name", REPORTS)
def test_reports_agree_with_the_schema(name):
    written = json.loads(REPORTS[name]().to_json())
    jsonschema.validate(written, SCHEMA, jsonschema.Draft202012Validator)


def test_the_promised_keys_are_there():
    written = json.loads(report().to_json())
    assert written["schema"] == "hispec.bench/1"
    assert {"schema", "profile", "dataset", "arms", "environment", "status", "config", "config_hash"} <= written.keys()
    assert {"name", "rows", "sha256", "source"} <= written["dataset"].keys()
    arm = written["arms"][0]
    promised = "name tokens seconds tokens_per_second ci95 speedup tokens_per_target_pass levels phase_seconds"
    assert {*promised.split(), "peak_memory_bytes", "accuracy", "lossless"} <= arm.keys()
    assert arm["speedup"]["autoregressive"].keys() == {"value", "ci95"}
    assert arm["accuracy"].keys() == {"metric", "value", "correct", "of"}
    assert arm["lossless"].keys() == {"identical", "of", "ties", "errors"}


@pytest.mark.parametrize(
    "mend",
    [
        lambda data: data.update(unknown=1),
        lambda data: data["arms"][0].update(tokens=-1),
        lambda data: data["arms"][0].pop("lossless"),
        lambda data: data.update(status="done"),
        lambda data: data.update(schema="hispec.bench/2"),
    ],
)
def test_the_schema_refuses_what_is_not_a_report(mend):
    written = json.loads(report(rows=2).to_json())
    mend(written)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, SCHEMA, jsonschema.Draft202012Validator)


def test_a_measurement_survives_a_line_of_the_journal():
    answer = run(rows=1)[0]
    line = answer.model_dump_json()
    assert "\n" not in line
    assert Measurement.model_validate_json(line) == answer


@pytest.mark.parametrize("changes", [{"seconds": float("nan")}, {"seconds": -1.0}, {"repeat": -1}, {"other": 1}])
def test_impossible_measurements_are_refused(changes):
    with pytest.raises(ValidationError):
        measurement(**changes)


def test_a_difference_is_a_tie_or_an_error_and_identity_neither():
    for broken in ({"identical": True, "kind": "tie"}, {"identical": False}):
        with pytest.raises(ValidationError):
            TokenComparison(**broken)


def test_positions_are_counted_alike():
    with pytest.raises(ValidationError):
        LevelCounts(
            name="draft",
            model="m",
            exit_layer=1,
            proposed=1,
            accepted=0,
            accepted_lengths=[1],
            proposed_at=[1],
            accepted_at=[],
        )
