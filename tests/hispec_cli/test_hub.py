"""Checkpoints from a hub are downloaded once, then used offline; every failure is reported."""

import json
import shutil

import pytest

from tests.hispec_cli.conftest import QUESTION
from tests.hub import COMMIT, serve


@pytest.fixture
def hub(tmp_path, shipped_model):
    shutil.copytree(shipped_model, tmp_path / "hub" / "some-org" / "early-exit")
    with serve(tmp_path / "hub") as (endpoint, seen):
        yield {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}, seen


def answer(child):
    out, err = child.communicate(timeout=120)
    return child.returncode, out.decode(), err.decode()


def test_a_model_is_downloaded_once_and_then_used_offline(process, hub):
    environment, seen = hub
    arguments = ("generate", QUESTION, "--model", "some-org/early-exit", "--max-new-tokens", 5, "--format", "json")
    code, out, err = answer(process(*arguments, **environment))
    assert code == 0, err
    assert any(method == "GET" and path.endswith("/model.safetensors") for method, path in seen)
    record = json.loads(out)
    assert record["environment"]["revision"] == COMMIT
    asked = len(seen)
    code, again, err = answer(process(*arguments, "--offline", **environment))
    assert code == 0, err
    assert json.loads(again)["token_ids"] == record["token_ids"]
    assert len(seen) == asked


def test_a_profile_pins_a_hub_model(process, hub, tmp_path):
    environment, _ = hub
    profile = tmp_path / "mine.yaml"
    profile.write_text("target: {model: some-org/early-exit, revision: main}\ndraft: {exit_layer: 3}\n")
    code, out, err = answer(process("generate", QUESTION, "--profile", profile, "--format", "json", **environment))
    assert code == 0, err
    assert json.loads(out)["stats"]["levels"][0]["exit_layer"] == 3


@pytest.mark.parametrize(
    ("model", "extra", "message"),
    [
        ("some-org/other", (), "some-org/other"),
        ("some-org/early-exit", ("--offline",), "some-org/early-exit"),
    ],
)
def test_what_the_hub_does_not_have_exits_5(process, hub, model, extra, message):
    environment, seen = hub
    code, out, err = answer(process("generate", "x", "--model", model, *extra, **environment))
    lines = err.splitlines()
    assert (code, out, len(lines)) == (5, "", 2), err
    assert message in lines[0] and lines[1].startswith("hint: ")
    assert not (extra and seen)


def test_a_hub_out_of_reach_exits_5(process, hub):
    environment, _ = hub
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    code, out, err = answer(process("generate", "x", "--model", "some-org/early-exit", **environment))
    message, hint = err.splitlines()
    assert (code, out) == (5, "")
    assert message.startswith("error: some-org/early-exit is not on this machine and cannot be downloaded: ")
    assert hint == "hint: check the name and the network, or pass a local folder"


def test_exits_of_a_hub_model_are_fitted_for_its_commit(process, hub, tmp_path):
    environment, _ = hub
    text, profile = tmp_path / "text", tmp_path / "fitted.yaml"
    text.write_text("Ben has 12 cards. Mei gives Ben 5 more. How many cards does Ben have?\n" * 30)
    options = ("--row-tokens", 32, "--batch-tokens", 64, "--steps", 1, "--exits", 1, "--out", profile)
    fit = ("fit-exits", "--model", "some-org/early-exit", "--revision", "main", "--text", text, *options)
    code, _, err = answer(process(*fit, **environment))
    assert code == 0, err
    assert f"revision: {COMMIT}" in profile.read_text()
    asked = ("generate", QUESTION, "--profile", profile, "--max-new-tokens", 5, "--offline", "--verify")
    code, _, err = answer(process(*asked, **environment))
    assert code == 0, err
