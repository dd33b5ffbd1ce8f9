"""Packages that only some commands need: all else works without them, and the error says which extra brings them."""

import io
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from hispec.errors import UnavailableError
from hispec.extras import EXTRAS, require
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def without(monkeypatch):
    """Let packages seem not to be installed; all of the extras by default."""

    def block(*packages):
        for package in packages or [name for names in EXTRAS.values() for name in names if name != "jinja2"]:
            for loaded in [name for name in sys.modules if name.startswith(f"{package}.")]:
                monkeypatch.delitem(sys.modules, loaded)
            monkeypatch.setitem(sys.modules, package, None)

    return block


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"document": QUESTION, "summary": "apples", "id": "1"}) + "\n")
    return path


def test_without_extras_everything_else_works(hispec, without, tmp_path):
    expected = hispec("generate", QUESTION).out
    without()
    assert hispec("generate", QUESTION).out == expected != ""
    assert hispec("chat", stdin=f"{QUESTION}\n").out.strip() == expected.strip()
    arms = ("--arms", "hispec,autoregressive", "--max-new-tokens", "4", "-o", tmp_path / "bench.json")
    outcome = hispec("bench", "--limit", "1", "--warmup", "0", *arms)
    assert outcome.code == 0, outcome.err
    for command in (("profile", "list"), ("calibrate", "--dry-run"), ("doctor",)):
        assert hispec(*command).code == 0


@pytest.mark.parametrize(
    ("command", "name"), [("bench", "matplotlib"), ("calibrate", "matplotlib"), ("bench", "jinja2")]
)
def test_a_report_that_cannot_be_drawn_is_refused_before_the_run(hispec, without, tmp_path, command, name):
    without(name)
    outcome = hispec(command, "--report", tmp_path / "page.html")
    assert_message_and_hint(outcome, 5, f"an HTML report needs {name}", "pip install 'hispec[report]'")


@pytest.mark.parametrize("command", [("bench",), ("calibrate", "--dry-run")])
def test_a_dataset_of_the_hub_needs_its_reader(hispec, without, command):
    without("datasets")
    outcome = hispec(*command, "--dataset", "gsm8k", "--offline")
    assert_message_and_hint(outcome, 5, "the dataset gsm8k needs datasets", "pip install 'hispec[bench]'")


def test_a_parquet_file_needs_its_reader(hispec, without, tmp_path):
    without("datasets")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    outcome = hispec("bench", "--dataset", tmp_path / "rows.parquet")
    assert_message_and_hint(outcome, 5, "parquet (rows.parquet) needs datasets", "pip install 'hispec[bench]'")


@pytest.mark.parametrize("name", ["xsum", "cnn_dailymail"])
def test_summaries_that_cannot_be_scored_are_refused_before_the_run(hispec, without, rows, name):
    without("rouge_score")
    outcome = hispec("bench", "--dataset", rows, "--format-as", name)
    assert_message_and_hint(outcome, 5, f"the score of {name} needs rouge_score", "pip install 'hispec[bench]'")


def test_a_conversation_on_a_terminal_needs_its_line_editor(without, monkeypatch, capfd):
    from hispec_cli.app import run

    class Keyboard(io.StringIO):
        def isatty(self):
            return True

    without("prompt_toolkit")
    monkeypatch.setattr("sys.stdin", Keyboard())
    assert run(["chat"]) == 5
    told = capfd.readouterr().err
    assert "on a terminal needs prompt_toolkit" in told and "pip install 'hispec[chat]'" in told


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_server_needs_its_packages(hispec, without, name):
    without(name)
    assert_message_and_hint(hispec("serve"), 5, f"a server needs {name}", "pip install 'hispec[serve]'")


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_the_fused_stack_quantizes_without_a_library(hispec, without, quantization):
    without("bitsandbytes")
    outcome = hispec("generate", QUESTION, "--quantization", quantization, "--max-new-tokens", "4", "--verify")
    assert outcome.code == 0
    assert "identical to the target's own" in outcome.err


def test_quantization_needs_its_library(hispec, without):
    without("bitsandbytes")
    outcome = hispec("generate", QUESTION, "--quantization", "8bit")
    assert_message_and_hint(outcome, 5, "--quantization 8bit needs bitsandbytes", "pip install 'hispec[quantization]'")


def test_what_is_installed_is_not_asked_for(without):
    require("bench", "this")
    without("datasets")
    require("bench", "this", "rouge_score")
    with pytest.raises(UnavailableError, match="this needs datasets"):
        require("bench", "this")


def test_the_extras_are_those_of_the_package():
    declared = {extra: packages(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
    assert {extra: declared[extra] for extra in EXTRAS} == {extra: {*names} for extra, names in EXTRAS.items()}
    (own,) = [line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("hispec[")]
    assert {*own.removeprefix("hispec[").removesuffix("]").split(",")} == {*EXTRAS, "docs"}
    always = packages(PROJECT["dependencies"])
    assert always & {name for names in EXTRAS.values() for name in names} == {"jinja2"}  # chat templates need it too


def packages(lines):
    return {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}
