"""`hispec bench` from the outside: what it prints and writes, its exit codes, and that it can be cut off at any time."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jsonschema
import pytest
from safetensors.torch import load_file, save_file

from hispec.decoding.engine import DecodeLoop
from hispec.profile import resolve_model
from tests.hispec_cli.conftest import assert_message_and_hint
from tests.hub import gsm8k_repository, serve

QUICK = ("bench", "--limit", 3, "--warmup", 1, "--max-new-tokens", 12)


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Ben has {n} cards. Mei gives Ben 5 more. How many has he?"} for n in range(2, 12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report_of(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def answers_in(folder):
    """The content of the journals in a folder, without the times."""
    found = []
    for path in folder.glob("*.rows.jsonl"):
        for line in path.read_text().splitlines()[1:]:
            found += [
                (m["arm"], m["row"], m["repeat"], m["token_ids"], m["score"]) for m in json.loads(line)["answers"]
            ]
    return sorted(found)


def test_all_of_our_arms_on_the_shipped_dataset(hispec):
    report = report_of(hispec(*QUICK, "--format", "json"))
    assert (report["schema"], report["status"], report["dataset"]["rows"]) == ("hispec.bench/1", "complete", 3)
    assert [arm["name"] for arm in report["arms"]] == ["hispec", "single-layer", "autoregressive"]
    for arm in report["arms"]:
        low, high = arm["ci95"]
        assert low <= arm["tokens_per_second"] <= high
        assert arm["accuracy"]["of"] == 3
    for arm in report["arms"][:2]:
        assert arm["lossless"] == {"identical": 3, "of": 3, "ties": 0, "errors": 0}
        assert arm["speedup"]["autoregressive"]["ci95"]
    schema = json.loads(hispec("bench", "--schema").out)
    jsonschema.validate(report, schema)


def test_transformers_arms_and_every_file_format(hispec, tmp_path):
    outcome = hispec(
        *QUICK, "--arms", "hispec,hf,hf-early-exit,prompt-lookup", "-o", tmp_path / "r.json", "-o", tmp_path / "r.csv",
        "-o", tmp_path / "r.md", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert all(arm["lossless"]["identical"] == 3 for arm in report["arms"])
    assert set(report["arms"][0]["speedup"]) == {"hf"}  # nothing is compared with what was not measured
    assert "hf-early-exit" in outcome.out == (tmp_path / "r.md").read_text()
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 5
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert hispec("bench", "compare", tmp_path / "r.json", tmp_path / "r.json").code == 0


@pytest.mark.parametrize(
    ("gates", "code", "outcome"),
    [
        (("lossless.errors>0", "tokens_per_target_pass<1.5"), 0, "passed"),
        (("speedup>0.01",), 3, "failed"),
        (("tokens_per_target_pass<1.5", "lossless.identical<99"), 3, "failed"),
    ],
)
def test_gates(hispec, gates, code, outcome):
    options = [part for gate in gates for part in ("--fail-if", gate)]
    done = hispec(*QUICK, "--arms", "hispec,autoregressive", *options)
    assert done.code == code, done.err
    assert f"gate {gates[-1]}: {outcome}" in done.err


def test_an_inconclusive_gate_fails_nothing_and_says_so(hispec, tmp_path):
    first = report_of(hispec(*QUICK, "--arms", "hispec,autoregressive", "--format", "json", "-o", tmp_path / "a.json"))
    low, high = first["arms"][0]["speedup"]["autoregressive"]["ci95"]
    done = hispec(*QUICK, "--arms", "hispec,autoregressive", "--fail-if", "speedup<1e9", "--limit", 1)
    assert done.code == 0 and "inconclusive" in done.err  # one prompt gives no interval
    again = hispec(
        *QUICK, "--arms", "hispec,autoregressive", "-o", tmp_path / "a.json", "--resume",
        "--fail-if", f"speedup<{(low + high) / 2}",
    )  # fmt: skip
    assert again.code == 0 and "inconclusive" in again.err  # the same answers, and a limit within their interval


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "chat_template.jinja"])
def test_a_model_whose_files_were_replaced_is_another(hispec, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("builtin:tiny"), folder)
    common = (
        "bench", "--model", folder, "--dataset", tmp_path / "a.jsonl", "--warmup", 0, "--max-new-tokens", 4,
        "--arms", "hispec", "--format", "json",
    )  # fmt: skip
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n')
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert hispec(*common, "-o", old).code == 0
    assert hispec(*common, "-o", old, "--resume").code == 0  # nothing was replaced
    if name.endswith("safetensors"):
        weights = load_file(folder / name)
        weights["model.layers.3.mlp.up_proj.weight"][0] += 0.5
        save_file(weights, folder / name, {"format": "pt"})
        name = "weights"
    else:
        (folder / name).write_text((folder / name).read_text() + " ")
    assert_message_and_hint(hispec(*common, "-o", old, "--resume"), 2, f"{name} was", "without --resume")
    assert hispec(*common, "-o", new).code == 0
    assert f"config.files.{folder}.{name} differs" in hispec("bench", "compare", old, new).err


@pytest.mark.parametrize("target", ["| true", "--format jsonl | true", ">/dev/full", "2>/dev/full"])
def test_no_closed_or_full_stream_hides_a_verdict(tmp_path, target):
    options = " ".join(map(str, (*QUICK, "--limit", 2, "--arms", "hispec,autoregressive")))
    command = f"{sys.executable} -m hispec_cli {options} -o {tmp_path}/r.json --fail-if 'tokens_per_target_pass<100'"
    done = subprocess.run(["bash", "-c", f"{command} {target}; exit ${{PIPESTATUS[0]}}"], capture_output=True)
    assert done.returncode == 3 and json.loads((tmp_path / "r.json").read_text())["status"] == "complete"


def test_prompts_that_do_not_fit_are_replaced_by_the_next(hispec, tmp_path):
    path = tmp_path / "prompts.jsonl"
    prompts = ["word " * 3000] * 3 + [f"Ben has {n} cards." for n in range(5)]
    path.write_text("".join(json.dumps({"id": None, "prompt": prompt}) + "\n" for prompt in prompts))
    arguments = ("bench", "--max-new-tokens", 4, "--arms", "hispec", "--format", "json", "--dataset", path)
    two, again = (report_of(hispec(*arguments, "--limit", 2, "--warmup", n)) for n in (1, 3))
    assert two["dataset"]["rows"] == 2 and two["config_hash"] == again["config_hash"]


def test_what_changed_is_told(hispec, tmp_path):
    arguments = (*QUICK, "--limit", 2, "--arms", "hispec")
    assert hispec(*arguments, "-o", tmp_path / "old.json").code == 0
    done = hispec(*arguments, "--repeats", 2, "--compare", tmp_path / "old.json", "--format", "json")
    assert done.code == 0 and "note: " in done.err and "hispec tokens" in done.err


def test_broken_losslessness_exits_4(hispec, monkeypatch):
    monkeypatch.setattr(DecodeLoop, "accepted", lambda self, level, waiting, *_: len(waiting))
    done = hispec(*QUICK, "--arms", "hispec,autoregressive", "--draft-exit", 1, "--fail-if", "speedup>0")
    assert done.code == 4 and "losslessness is broken" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arms", "hispec,hfx"), "no arm 'hfx'"),
        (("--arms", "hispec,hispec"), "--arms is"),
        (("--arms", "hf-assisted"), "needs a draft model"),
        (("--fail-if", "speedupp<1"), "speedupp"),
        (("--fail-if", "speedup<fast"), "speedup<fast"),
        (("-o", "report.txt"), "report.txt"),
        (("-o", "/nowhere/report.json"), "/nowhere"),
        (("--compare", "nowhere.json"), "nowhere.json"),
        (("--dataset", "gsm9k"), "gsm9k"),
        (("--dataset", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--step-summary",), "GITHUB_STEP_SUMMARY"),
        (("--resume", "-o", "none.json"), "nothing to resume"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(hispec, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert_message_and_hint(hispec(*QUICK, *options), 2, message)


def test_a_file_of_ones_own_and_the_step_summary(hispec, questions, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    done = hispec(*QUICK, "--dataset", questions, "--step-summary", "--format", "jsonl", "--arms", "hispec")
    *answers, report = map(json.loads, done.out.splitlines())
    assert [answer["row"] for answer in answers] == list(dict.fromkeys(answer["row"] for answer in answers))
    assert len(answers) == 3 and report["arms"][0]["accuracy"] is None
    assert "hispec" in (tmp_path / "summary.md").read_text()


def test_gsm8k_from_a_hub_then_from_its_cache_then_not_at_all(process, tmp_path):
    arguments = (
        *QUICK, "--dataset", "gsm8k", "--limit", 20, "--arms", "hispec,autoregressive", "--format", "json",
        "--max-new-tokens", 4,
    )  # fmt: skip
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

    def bench(*more, **environment):
        child = process(*arguments, *more, **environment)
        out, err = child.communicate(timeout=120)
        return child.returncode, out.decode(), err.decode()

    with serve(gsm8k_repository(tmp_path / "hub")) as (endpoint, seen):
        code, out, err = bench(HF_ENDPOINT=endpoint, **home)
        assert code == 0, err
        report = json.loads(out)
        assert report["dataset"]["rows"] == report["arms"][0]["accuracy"]["of"] == 20
        assert report["dataset"]["source"].startswith("openai/gsm8k@")
        asked = len(seen)
        code, again, err = bench("--offline", "--limit", 2, HF_ENDPOINT=endpoint, **home)
        assert (code, len(seen)) == (0, asked), err
        assert json.loads(again)["dataset"]["source"] == report["dataset"]["source"]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    code, out, err = bench(HF_ENDPOINT=nowhere, HF_HOME=str(tmp_path / "empty"), HF_HUB_OFFLINE="0")
    assert (code, out) == (5, "") and len(err.splitlines()) == 2 and "Traceback" not in err


def wait_for(journal, lines, child):
    while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
        time.sleep(0.01)


def test_a_killed_run_is_resumed_and_ends_as_an_undisturbed_one(process, hispec, tmp_path, questions):
    def arguments(folder):
        folder.mkdir(exist_ok=True)
        return (*QUICK, "--limit", 8, "--dataset", questions, "-o", folder / "r.json")

    assert hispec(*arguments(tmp_path / "whole")).code == 0
    killed, rng = tmp_path / "killed", random.Random(3)
    for attempt, lines in enumerate((2, 5)):
        child = process(*arguments(killed), *(["--resume"] if attempt else []))
        wait_for(killed / "r.json.rows.jsonl", lines, child)
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (killed / "r.json").exists()
    assert hispec(*arguments(killed), "--resume").code == 0
    assert answers_in(killed) == answers_in(tmp_path / "whole")
    tokens = [
        [arm["tokens"] for arm in json.loads((folder / "r.json").read_text())["arms"]]
        for folder in (killed, tmp_path / "whole")
    ]
    assert tokens[0] == tokens[1]
    assert_message_and_hint(hispec(*arguments(killed), "--resume", "--repeats", 2), 2, "measured something else")


def test_ctrl_c_reports_what_was_measured(process, tmp_path):
    path = tmp_path / "r.json"
    child = process("bench", "--limit", 0, "-o", path)
    wait_for(tmp_path / "r.json.rows.jsonl", 3, child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and b"--resume" in err and b"Traceback" not in err
    report = json.loads(path.read_text())
    assert report["status"] == "interrupted" and 2 <= report["arms"][0]["answers"] < 100


def test_two_processes_give_the_rows_ids_and_scores_of_one(hispec, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [str(part) for part in (*QUICK, "--limit", 5, "--arms", "hispec,autoregressive")]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    assert hispec(*arguments, "-o", tmp_path / "one" / "r.json").code == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "hispec_cli",
    ]
    done = subprocess.run(
        [*launch, *arguments, "-o", str(tmp_path / "two" / "r.json")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert answers_in(tmp_path / "two") == answers_in(tmp_path / "one")
    one, two = (json.loads((tmp_path / folder / "r.json").read_text()) for folder in ("one", "two"))
    assert two["environment"]["processes"] == 2
    for a, b in zip(one["arms"], two["arms"], strict=True):
        for key in ("name", "answers", "tokens", "accuracy", "lossless", "tokens_per_target_pass"):
            assert a[key] == b[key], key
