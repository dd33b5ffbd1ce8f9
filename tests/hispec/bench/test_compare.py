"""A comparison of two reports shows what changed, whether the change is significant, and what else differs."""

import json
import math

import pytest

from hispec.bench.compare import compare, read_report
from hispec.bench.record import DatasetInfo, Estimate
from hispec.errors import UsageError
from tests.hispec.bench.examples import report, setup


@pytest.fixture(scope="module")
def made():
    return report(rows=30)


def with_speed(made, value, ci95):
    first = made.arms[0].model_copy(update={"tokens_per_second": value, "ci95": ci95})
    return made.model_copy(update={"arms": [first, *made.arms[1:]]})


def change(old, new, key="tokens_per_second", arm="hispec"):
    return next(one for one in compare(old, new).changes if (one.arm, one.key) == (arm, key))


def test_a_report_beside_itself_has_not_changed(made):
    same = compare(made, made)
    assert same.warnings == []
    assert {one.direction for one in same.changes} == {"no clear difference", "equal"}
    assert all(one.old == one.new for one in same.changes)


@pytest.mark.parametrize(
    ("value", "ci95", "direction"),
    [(120.0, (115.0, 125.0), "faster"), (80.0, (76.0, 84.0), "slower"), (104.0, (99.0, 109.0), "no clear difference")],
)
def test_a_speed_changed_clearly_or_not(made, value, ci95, direction):
    found = change(with_speed(made, 100.0, (95.0, 105.0)), with_speed(made, value, ci95))
    assert found.direction == direction
    assert found.ratio.value == pytest.approx(value / 100)


def test_the_interval_of_a_ratio_adds_the_variances_of_the_logarithms(made):
    found = change(with_speed(made, 100.0, (90.0, 90.0 * 1.21)), with_speed(made, 100.0, (90.0, 90.0 * 1.21)))
    half = math.sqrt(2) * math.log(1.21) / 2
    assert found.ratio.ci95 == pytest.approx((math.exp(-half), math.exp(half)))


def test_without_an_interval_there_is_no_verdict(made):
    found = change(with_speed(made, 100.0, None), with_speed(made, 200.0, (190.0, 210.0)))
    assert found.direction == "no interval" and found.ratio == Estimate(value=2.0, ci95=None)


def test_figures_without_intervals_are_higher_lower_or_equal(made):
    more = made.arms[0].model_copy(update={"tokens_per_target_pass": 9.0, "peak_memory_bytes": 1})
    new = made.model_copy(update={"arms": [more, *made.arms[1:]]})
    assert change(made, new, "tokens_per_target_pass").direction == "higher"
    assert change(made, new, "peak_memory_bytes").direction == "lower"
    assert change(made, new, "accuracy.value").direction == "equal"


def test_a_figure_that_only_one_report_has_is_not_compared(made):
    bare = made.arms[0].model_copy(update={"peak_memory_bytes": None})
    keys = {one.key for one in compare(made.model_copy(update={"arms": [bare]}), made).changes}
    assert "peak_memory_bytes" not in keys and "tokens_per_second" in keys


def test_what_else_differs_is_named(made):
    other = report(
        ("hispec", "prompt-lookup"),
        rows=30,
        profile="big",
        status="interrupted",
        dataset=DatasetInfo(name="sample", rows=40, sha256="cd" * 32, source="package hispec 0.1.0"),
        environment={**setup().environment, "torch": "2.14.0"},
        config={**setup().config, "sampling": {"temperature": 0.7}},
    )
    warnings = compare(made, other).warnings
    for expected in (
        "profile differs: tiny -> big",
        f"dataset.sha256 differs: {'ab' * 32} -> {'cd' * 32}",
        "environment.torch differs: 2.13.0 -> 2.14.0",
        "config.sampling.temperature differs: 0.0 -> 0.7",
        "the new run was interrupted",
        "only the old report has single-layer, autoregressive, hf",
        "only the new report has prompt-lookup",
    ):
        assert expected in warnings
    assert not any("draft_tokens" in warning for warning in warnings)


def test_a_report_is_read_back(made, tmp_path):
    path = tmp_path / "old.json"
    path.write_text(made.to_json(), encoding="utf-8")
    assert read_report(path) == made


@pytest.mark.parametrize(
    ("mend", "key"),
    [
        (lambda data: data.update(schema="hispec.generate/1"), "schema"),
        (lambda data: data.pop("dataset"), "dataset"),
        (lambda data: data["arms"][1].update(tokens="many"), "arms.1.tokens"),
        (lambda data: data["arms"][0]["speedup"]["hf"].update(ci95=[1]), "arms.0.speedup.hf.ci95"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.update(arms=[]), "arms"),
        (lambda data: data["arms"].append(data["arms"][0]), "twice"),
    ],
)
def test_what_is_not_a_report_is_refused_with_the_key_at_fault(made, tmp_path, mend, key):
    data = json.loads(made.to_json())
    mend(data)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_report(path)
    assert key in caught.value.message and "old.json" in caught.value.message


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path, content):
    path = tmp_path / "old.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_report(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError):
        read_report(tmp_path / "none.json")


def test_a_comparison_is_plain_json(made):
    record = json.loads(json.dumps(compare(made, made).to_record()))
    assert record["schema"] == "hispec.bench.compare/1"
    first = record["changes"][0]
    assert (first["arm"], first["key"], first["direction"]) == ("hispec", "tokens_per_second", "no clear difference")
    assert first["ratio"]["value"] == 1.0 and len(first["ratio"]["ci95"]) == 2
