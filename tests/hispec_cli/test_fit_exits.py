"""`hispec fit-exits`: from an ordinary checkpoint and a text to a profile that every command takes."""

import json
import os
import signal

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from hispec.errors import UnavailableError
from hispec.models.dummy import dummy_tokenizer
from hispec.profile import files as profiles
from hispec_cli.ui.fit_progress import FitProgress
from tests.hispec.models.test_families import SMALL
from tests.hispec_cli.conftest import assert_message_and_hint
from tests.hispec_cli.ui.terminal import Terminal
from tests.support import random_model

VOCAB = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model of bytes with four layers."""
    folder = tmp_path_factory.mktemp("models") / "Plain"
    random_model(vocab=VOCAB).save_pretrained(folder)
    dummy_tokenizer(VOCAB).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    rng = torch.Generator().manual_seed(0)
    path.write_bytes(bytes(torch.randint(32, 127, (12_000,), generator=rng).tolist()))
    return path


@pytest.fixture
def fit(hispec, model, text, tmp_path):
    """Run `fit-exits` on the model and the text, quickly."""

    def call(*arguments, out=tmp_path / "made" / "plain.yaml", **given):
        options = {"--model": model, "--text": text, "--row-tokens": 64, "--batch-tokens": 256, "--steps": 30}
        options |= {f"--{name.replace('_', '-')}": value for name, value in given.items()}
        flat = [part for option in options.items() for part in option]
        return hispec("fit-exits", *flat, *(("--out", out) if out else ()), *arguments)

    return call


@pytest.fixture(scope="module")
def fitted(model, text, tmp_path_factory):
    """A profile that a run has written."""
    from hispec_cli.app import run

    path = tmp_path_factory.mktemp("fitted") / "plain.yaml"
    arguments = ["--row-tokens", "64", "--batch-tokens", "256", "--steps", "30", "--out", str(path)]
    assert run(["fit-exits", "--model", str(model), "--text", str(text), "--exits", "1,2", *arguments]) == 0
    return path


def test_it_tells_what_it_did_and_writes_a_profile_with_its_translators(fit, tmp_path, model):
    outcome = fit("--exits", "2,1", "--format", "json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["schema"] == "hispec.fit-exits/1" and record["ended"] == "steps"
    assert [row["exit_layer"] for row in record["exits"]] == [1, 2]
    for row in record["exits"]:
        assert row["agreement"]["after"] > row["agreement"]["before"]
        assert row["kl"]["after"] < row["kl"]["before"]
    made = tmp_path / "made"
    assert sorted(path.name for path in made.iterdir()) == ["plain.safetensors", "plain.yaml"]
    profile = yaml.safe_load((made / "plain.yaml").read_text())
    assert (profile["draft"], profile["intermediate"]) == ({"exit_layer": 1}, {"exit_layer": 2})
    assert profile["target"]["model"] == str(model) and profile["translators"] == "plain.safetensors"
    assert "divergence in nats" in outcome.err  # progress


def test_in_words_and_by_default_among_the_users_own_profiles(fit, hispec, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "user_folder", lambda: tmp_path / "own")
    monkeypatch.setattr("hispec.exits.request.user_folder", lambda: tmp_path / "own")
    outcome = fit(out=None)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("exit 1: agreement with the whole model 0.")
    assert f"wrote {tmp_path / 'own' / 'plain-exits.yaml'}" in outcome.out
    assert hispec("generate", "x", "--profile", "plain-exits", "--max-new-tokens", 4).code == 0


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_generate_takes_the_profile_and_writes_what_the_target_would(hispec, fitted, model, stack):
    common = (
        "generate",
        "some text",
        "--stack",
        stack,
        "--max-new-tokens",
        40,
        "--policy",
        "static",
        "--format",
        "json",
    )
    outcome = hispec(*common, "--profile", fitted, "--verify")
    assert outcome.code == 0, outcome.err
    with_translators = json.loads(outcome.out)
    plain = json.loads(hispec(*common, "--model", model, "--draft-exit", 1, "--intermediate-exit", 2).out)
    assert with_translators["verified"] and with_translators["token_ids"] == plain["token_ids"]
    assert with_translators["stats"]["levels"] != plain["stats"]["levels"]  # they do take part


def test_bench_and_validate_take_it(hispec, fitted, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    outcome = hispec(
        "bench", "--profile", fitted, "--dataset", rows, "--warmup", 0, "--max-new-tokens", 16, "--format", "json"
    )
    assert outcome.code == 0, outcome.err
    arms = json.loads(outcome.out)["arms"]
    assert all(arm["lossless"]["identical"] == 2 for arm in arms if arm["lossless"])
    assert hispec("profile", "validate", fitted).code == 0


def test_translators_that_were_fitted_again_are_others(hispec, fit, fitted, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("plain.yaml", "plain.safetensors"):
        (tmp_path / name).write_bytes((fitted.parent / name).read_bytes())
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one"}\n')
    bench = (
        "bench", "--profile", tmp_path / "plain.yaml", "--dataset", tmp_path / "rows.jsonl", "--warmup", 0,
        "--max-new-tokens", 4, "--arms", "hispec",
    )  # fmt: skip
    assert hispec(*bench).code == hispec(*bench, "--resume").code == 0
    assert fit("--exits", "1,2", "--force", "--seed", 5, "--steps", 3, out=tmp_path / "plain.yaml").code == 0
    assert_message_and_hint(hispec(*bench, "--resume"), 2, "files.profile.translators was", "same options and files")


def test_damaged_translators_are_refused_by_every_command(hispec, fitted, tmp_path):
    for name in ("plain.yaml", "plain.safetensors"):
        (tmp_path / name).write_bytes((fitted.parent / name).read_bytes())
    path = tmp_path / "plain.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    for command in (("generate", "x", "--profile"), ("profile", "validate")):
        assert_message_and_hint(hispec(*command, tmp_path / "plain.yaml"), 5, "are damaged", "hispec fit-exits")
    path.unlink()
    outcome = hispec("generate", "x", "--profile", tmp_path / "plain.yaml")
    assert_message_and_hint(outcome, 2, "there are no translators at", "hispec fit-exits")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"exits": "0,2"}, "--exits names 0, and", "from 1 to 3"),
        ({"exits": "4"}, "--exits names 4, and", "from 1 to 3"),
        ({"exits": "a,b"}, "--exits is 'a,b'", "--exits 4,8"),
        ({"exits": ""}, "--exits is ''", "--exits 4,8"),
        ({"budget": "soon"}, "--budget is 'soon'", "90s, 10m"),
        ({"budget": "0m"}, "--budget is '0m'", "90s, 10m"),
        ({"text": "/does/not/exist"}, "/does/not/exist cannot be read", "--text"),
        ({"model": "/does/not/exist"}, "no model at /does/not/exist", "folder"),
        ({"model": "builtin:none"}, "builtin:none", "builtin:tiny"),
        ({"device": "abacus"}, "'abacus' is not a device", "cpu"),
        ({"dtype": "int4"}, "'--dtype'", "--help"),
        ({"steps": 0}, "--steps", "--help"),
        ({"out": "mine.json"}, "--out is mine.json", ".yaml"),
        ({"out": "/dev/null/mine.yaml"}, "cannot be made", "--out"),
    ],
)
def test_mistakes_exit_2_before_any_weights_are_read(fit, monkeypatch, arguments, message, hint):
    monkeypatch.setattr("hispec.exits.job.load_stack", None)
    assert_message_and_hint(fit(**arguments), 2, message, hint)


def test_a_text_that_is_too_short_is_refused(fit, tmp_path):
    (tmp_path / "short").write_text("a few words")
    assert_message_and_hint(fit(text=tmp_path / "short"), 2, "has 11 tokens", "500,000")


def test_nothing_is_replaced_unless_it_is_asked_for(fit, tmp_path):
    (tmp_path / "plain.safetensors").write_text("precious")
    assert_message_and_hint(fit(out=tmp_path / "plain.yaml"), 2, "plain.safetensors exists", "--force")
    assert (tmp_path / "plain.safetensors").read_text() == "precious"
    assert fit("--force", "--steps", 1, out=tmp_path / "plain.yaml").code == 0


def test_a_full_disk_is_told_and_what_was_there_stays(fit, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "made" / "plain.safetensors"
    assert fit().code == 0
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = fit("--force", "--steps", 1)
    assert outcome.code == 5 and "plain.safetensors cannot be written: No space left" in outcome.err
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))


def test_a_model_that_is_no_llama_is_fitted_and_recognized(hispec, text, tmp_path):
    """GPT-NeoX names its head, its norm and its layers otherwise."""
    config = AutoConfig.for_model("gpt_neox", **SMALL | {"vocab_size": VOCAB})
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "other")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        dummy_tokenizer(VOCAB).save_pretrained(folder)
    made = tmp_path / "made.yaml"
    options = ("--row-tokens", 64, "--batch-tokens", 256, "--steps", 10, "--exits", "1,2", "--out", made)
    outcome = hispec("fit-exits", "--model", tmp_path / "one", "--text", text, *options)
    assert outcome.code == 0, outcome.err
    short = ("--max-new-tokens", 12)
    alone = hispec("generate", "Hello", "--model", tmp_path / "one", "--mode", "autoregressive", *short)
    outcome = hispec("generate", "Hello", "--profile", made, "--verify", *short)
    assert outcome.code == 0 and outcome.out == alone.out, outcome.err
    made.write_text(made.read_text().replace(str(tmp_path / "one"), str(tmp_path / "other")))
    assert_message_and_hint(hispec("generate", "Hello", "--profile", made), 2, "not for these of", "fit-exits")


def test_ctrl_c_keeps_what_was_fitted(fit, monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def see(_, so_far):
        if so_far.step == 7 and so_far.looked is None and so_far.ended is None:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FitProgress, "see", see)
    outcome = fit("--format", "json")
    assert outcome.code == 130 and outcome.err.endswith("error: interrupted\n")
    assert "ending with what was found so far; Ctrl-C again ends at once" in outcome.err
    record = json.loads(outcome.out)
    assert (record["ended"], record["steps"]) == ("interrupted", 7)
    assert (tmp_path / "made" / "plain.yaml").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_plain_exits_are_measured_ends_at_once(fit, monkeypatch, tmp_path):
    def see(_, so_far):
        assert not so_far.before
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FitProgress, "see", see)
    outcome = fit()
    assert outcome.code == 130 and "Ctrl-C again" in outcome.err and outcome.out == ""
    assert not any((tmp_path / "made").iterdir())


def test_a_second_ctrl_c_does_not_wait(fit, monkeypatch):
    def see(_, so_far):
        if so_far.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FitProgress, "see", see)
    outcome = fit()
    assert outcome.code == 130 and outcome.err.count("Ctrl-C again ends at once") == 1 and outcome.out == ""


def test_a_budget_that_cannot_be_kept_is_said_before_the_weights_are_read(fit, monkeypatch):
    def none(*_, **__):
        raise UnavailableError("there are no weights", "get some")

    monkeypatch.setattr("hispec.exits.job.load_stack", none)
    outcome = fit(budget="0.001s")
    assert outcome.code == 5 and "the budget of 0.001 s cannot be kept" in outcome.err


def test_a_budget_that_is_over_still_gives_a_result_and_says_so(fit):
    outcome = fit("--format", "json", budget="0.001s")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert (record["ended"], record["steps"], record["budget_s"]) == ("budget", 1, 0.001)
    assert record["text"]["tokens_held_out"] == 64
    lines = outcome.err.splitlines()
    assert "the budget of 0.001 s cannot be kept" in lines[1] and "measuring the plain exits" in lines[2]
    assert outcome.err.count("cannot be kept") == 1


def test_an_exit_that_is_too_weak_to_pay_is_told_and_not_recommended(fit, monkeypatch):
    outcome = fit("--steps", 1, "--exits", "3", "--learning-rate", 1e-8)
    assert "too weak to gain speed" in outcome.out and "more --steps, or on more text" in outcome.err
    assert "try it" not in outcome.err
    monkeypatch.setattr(
        "hispec.exits.job.best_speedup", lambda agreement, exit_layer, _: 1.31 if exit_layer == 2 else 0.9
    )
    outcome = fit("--force", "--steps", 1, "--exits", "1,2,3")
    assert "at best 1.3 times the target's speed" in outcome.out.splitlines()[1]
    assert "too weak to gain speed: exit 1 and 3" in outcome.err and "try it" in outcome.err


def test_the_verdict_is_in_the_record(fit):
    (one, three) = json.loads(fit("--exits", "1,3", "--format", "json").out)["exits"]
    for row in (one, three):
        assert row["pays"] == (row["best_speedup"] >= 1.05)


def test_ctrl_c_while_loading_ends_at_once_and_gives_the_cursor_back(model, text, tmp_path):
    terminal = Terminal("fit-exits", "--model", model, "--text", text, "--row-tokens", 64, "--out", tmp_path / "a.yaml")
    terminal.until(lambda seen: "loading the model" in seen.text)
    terminal.child.send("\x03")
    assert terminal.end() == 130
    assert "error: interrupted" in terminal.text and "loading" not in terminal.text
    assert b"\x1b[?25h" in terminal.sent.rpartition(b"\x1b[?25l")[2]
