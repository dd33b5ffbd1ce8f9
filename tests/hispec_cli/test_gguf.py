"""GGUF files as models of every command: from a path, a folder, a profile and a hub."""

import json

import pytest

from tests.gguf_files import small_model, write
from tests.hispec_cli.conftest import assert_message_and_hint
from tests.hispec_cli.test_hub_checkpoints import hispec as from_hub  # noqa: F401
from tests.hispec_cli.test_hub_checkpoints import ids_of
from tests.hub import COMMIT, serve

SHORT = ("--max-new-tokens", "8", "--format", "json")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf", small_model())


def answer(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_file_a_folder_and_a_profile_name_the_same_model(hispec, path, tmp_path):
    (path.parent / "own.yaml").write_text("target: {model: ./small.gguf}\ndraft: {exit_layer: 1}\n")
    named = [("--model", path), ("--model", path.parent), ("--profile", path.parent / "own.yaml")]
    answers = [answer(hispec("generate", "Hello", *model, *SHORT)) for model in named]
    assert len({tuple(found["token_ids"]) for found in answers}) == 1
    assert all(found["environment"]["gguf"] == {"Q4_0": 28, "F32": 9, "Q8_0": 2} for found in answers)


def test_profile_show_and_validate_and_doctor_say_what_a_file_holds(hispec, path, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(f"target: {{model: {path}}}\ndraft: {{exit_layer: 1}}\n")
    kinds = {"Q4_0": 28, "F32": 9, "Q8_0": 2}
    assert f"# {path} holds 28 x Q4_0, 9 x F32, 2 x Q8_0: all dequantized" in hispec("profile", "show", own).out
    shown = answer(hispec("profile", "show", own, "--format", "json"))
    assert shown["gguf"] == {str(path): {"gguf": kinds, "packed": []}}
    four = tmp_path / "four.yaml"
    four.write_text(f"target: {{model: {path}, quantization: int4}}\ndraft: {{exit_layer: 1}}\n")
    assert "2 x Q8_0: Q4_0 packed, the others dequantized" in hispec("profile", "show", four).out
    environment = answer(hispec("generate", "Hello", "--profile", four, "--verify", *SHORT))["environment"]
    assert (environment["gguf"], environment["packed"], environment["quantization"]) == (kinds, ["Q4_0"], "int4")
    assert hispec("profile", "validate", own).code == 0
    checked = answer(hispec("doctor", "--model", path, "--json"))["profile"]
    (model,) = checked["models"]
    assert checked["runs"] and (model["source"], model["dtype"], model["download_bytes"]) == ("gguf", "float32", 0)
    assert model["parameters"] == sum(one.numel() for one in small_model().parameters())


def test_chat_bench_and_fit_exits_run_on_a_file(hispec, path, tmp_path):
    chat = hispec("chat", "--model", path, "--max-new-tokens", "8", stdin="Hello\nAnd you?\n")
    assert chat.code == 0, chat.err
    bench = hispec("bench", "--model", path, "--limit", "1", "--max-new-tokens", "8", "--format", "json")
    assert answer(bench)["environment"]["gguf"]["Q4_0"] == 28
    text = tmp_path / "text.txt"
    text.write_text("Tom has 12 apples and eats one of them every day. " * 200)
    out = tmp_path / "fitted.yaml"
    fitted = hispec("fit-exits", "--model", path, "--text", text, "--exits", "1", "--steps", "2", "--out", out)
    assert fitted.code == 0, fitted.err
    assert str(path) in out.read_text()
    assert hispec("generate", "Hello", "--profile", out, *SHORT).code == 0


@pytest.mark.parametrize("command", ["generate", "chat", "doctor"])
def test_faults_are_told_by_message_and_hint(hispec, path, tmp_path, command):
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-100])
    words = ["Hello"] if command == "generate" else []
    for model, message in ((tmp_path / "cut.gguf", "cut short"), (tmp_path / "none.gguf", "no GGUF file")):
        outcome = hispec(command, *words, "--model", model)
        assert outcome.code in (2, 5)
        if command != "doctor" or outcome.err:
            assert_message_and_hint(outcome, outcome.code, message)
        else:
            assert message in outcome.out
    outcome = hispec("generate", "Hello", "--profile", path)
    assert_message_and_hint(outcome, 2, "is a model, not a profile")


def test_a_file_of_a_hub_is_downloaded_once(from_hub, path, tmp_path):  # noqa: F811
    for name in ("small.gguf", "other.gguf", "large-00001-of-00002.gguf"):
        write(tmp_path / "org" / "files" / name, small_model())

    def ask(file, *extra):
        return ["generate", "Hello", "--model", f"org/files:{file}", *SHORT, *extra]

    doctor = ["doctor", "--model", "org/files:other.gguf", "--json"]
    commands = [ask("small.gguf"), ask("small.gguf"), ask("none.gguf"), ask("large-00001-of-00002.gguf"), doctor]
    commands.append(["generate", "Hello", "--model", "org/files"])
    with serve(tmp_path) as (endpoint, seen):
        local = ["generate", "Hello", "--model", str(path), *SHORT]
        first, again, none, part, checked, whole, here = from_hub(endpoint, *commands, local)
        asked = len(seen)
        offline, absent = from_hub(endpoint, ask("small.gguf", "--offline"), ask("other.gguf", "--offline"))
        assert len(seen) == asked
    assert ids_of(first) == ids_of(again) == ids_of(offline) == ids_of(here)
    assert json.loads(first[1])["environment"]["revision"] == COMMIT
    assert "downloading 1 file" in first[2] and again[2] == ""
    assert none[0] == 2 and "org/files has no file none.gguf" in none[2] and "other.gguf, small.gguf" in none[2], none
    assert part[0] == 2 and "one of 2 files" in part[2], part
    assert whole[0] == 2 and "other.gguf, small.gguf" in whole[2] and "org/files:other.gguf" in whole[2], whole
    assert absent[0] == 5 and "is not on this machine" in absent[2], absent
    found = json.loads(checked[1])["profile"]
    (model,) = found["models"]
    assert found["runs"] and found["weights"] == {"org/files:other.gguf": "to download"}, checked
    assert model["download_bytes"] > 50_000 and model["source"] == "gguf"
