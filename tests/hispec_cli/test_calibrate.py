"""`hispec calibrate` from the outside. One small calibration of the shipped model serves most tests: it is cut off, goes
on in a terminal, and leaves a profile and a page.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hispec.profile import calibration_digest, read_profile
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint
from tests.hispec_cli.test_report import Page
from tests.hispec_cli.ui.terminal import Terminal

SMALL = (
    "calibrate", "--budget", "15s", "--limit", "12", "--exit-layers", "1:4", "--periods", "2,4,8,16",
    "--max-new-tokens", "24",
)  # fmt: skip
PATIENCE = 150
"""Seconds after which a small calibration is taken for stuck, on however slow a machine."""


@dataclass
class Run:
    """A calibration that was cut off and resumed."""

    folder: Path
    code: int
    err: str
    kept: dict[str, bytes]
    terminal: Terminal
    resumed_code: int
    seen_map: str
    after: dict[str, bytes]

    @property
    def profile(self):
        return self.folder / "out.yaml"


def _kept(state):
    return {path.name: path.read_bytes() for path in state.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    state = folder / "state"
    outputs = ("--write", str(folder / "out.yaml"), "--report", str(folder / "out.html"))
    child = subprocess.Popen(
        [sys.executable, "-m", "hispec_cli", *SMALL, *outputs],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(state)},
    )
    said = []
    for line in child.stderr:
        said.append(line)
        if "recording" in line:
            child.send_signal(signal.SIGINT)
            break
    _, rest = child.communicate(timeout=PATIENCE)
    kept = _kept(state)

    terminal = Terminal(*SMALL, *outputs, "--resume", rows=40, XDG_STATE_HOME=str(state))
    terminal.DEADLINE = PATIENCE
    terminal.until(lambda seen: "by replay" in seen.text or "left behind" in seen.text)
    seen_map = terminal.text
    code = terminal.end()
    return Run(folder, child.returncode, "".join(said) + rest, kept, terminal, code, seen_map, _kept(state))


def test_ctrl_c_keeps_what_was_measured_and_says_how_to_go_on(run):
    assert run.code == 130
    assert "measuring what spans, heads and steps cost" in run.err and "--resume" in run.err
    assert "Traceback" not in run.err
    assert "costs.json" in run.kept and json.loads(run.kept["costs.json"])["spans"]


def test_it_goes_on_from_there(run):
    assert run.resumed_code == 0, run.terminal.text
    assert run.after["costs.json"] == run.kept["costs.json"]
    assert {"traces.json.gz", "timing.answers.jsonl", "check.answers.jsonl"} <= set(run.after)


def test_the_terminal_shows_a_map_on_the_way_and_the_result_at_the_end(run):
    assert "0:15" in run.seen_map and "exit 4" in run.seen_map and "left behind" in run.seen_map
    text = run.terminal.text
    for expected in (
        "left behind",
        "agreement with the target",
        "winner",
        "autoregressive",
        " prompts that were set aside",  # on a busy machine, which has no time for all, not all of them
    ):
        assert expected in text, text
    assert f"written: {run.profile}"[:60] in text.replace("\n", "")
    assert not any(line.startswith(("0:", "1:")) for line in text.splitlines()), "the live screen is gone"
    assert b"\x1b[?25h" in run.terminal.sent, "the cursor is back"
    assert "Warning" not in text and "Traceback" not in text


def test_the_profile_is_whole_commented_and_says_where_it_came_from(run):
    text = run.profile.read_text()
    profile = read_profile(run.profile)
    assert text.startswith("# Written by `hispec calibrate`") and "# Where this comes from." in text
    told = profile.calibrated
    assert told["sha256"] == calibration_digest(profile)
    assert (told["budget_s"], told["dataset"]["prompts"], told["device"]) == (15.0, 12, "cpu")
    low, high = told["tokens_per_second"]["ci95"]
    assert low <= told["tokens_per_second"]["value"] <= high
    assert yaml.safe_load(text)["target"]["model"] == "builtin:tiny"


def test_the_profile_generates_what_the_target_would(run, hispec):
    mode = () if read_profile(run.profile).draft else ("--mode", "autoregressive")
    outcome = hispec("generate", QUESTION, "--profile", run.profile, "--max-new-tokens", 12, "--verify", *mode)
    assert outcome.code == 0, outcome.err
    assert "identical to the target's own" in outcome.err and "calibrated elsewhere" not in outcome.err
    assert hispec("profile", "validate", run.profile).code == 0


def test_the_page_tells_the_run(run):
    parsed = Page((run.folder / "out.html").read_text())
    for expected in ("What was searched", "exit 4", "Agreement by depth", "hispec calibrate --budget 15s"):
        assert parsed.sees(expected), expected


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A folder to run in, with a state of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_dry_run_says_what_would_be_done_and_does_nothing(hispec, nowhere):
    outcome = hispec(*SMALL, "--dry-run")
    assert outcome.code == 0 and outcome.out == ""
    for expected in ("builtin:tiny, 16 layers", "exits: 1, 2, 3, 4", "12 prompts of", "budget: 15 s", "nothing was"):
        assert expected in outcome.err, outcome.err
    assert [path.name for path in nowhere.iterdir()] == ["here"] and not any((nowhere / "here").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "0"), "--budget is '0'"),
        (("--budget", "-5m"), "--budget is '-5m'"),
        (("--budget", "10x"), "--budget is '10x'"),
        (("--exit-layers", "4:1"), "holds no exit"),
        (("--exit-layers", "0:3"), "--exit-layers is '0:3'"),
        (("--exit-layers", "1:8:0"), "--exit-layers is '1:8:0'"),
        (("--exit-layers", "a,b"), "--exit-layers is 'a,b'"),
        (("--exit-layers", "1:16"), "exit 16 was asked for, and builtin:tiny has 16 layers"),
        (("--periods", "0,2"), "--periods is '0,2'"),
        (("--periods", ","), "--periods is ','"),
        (("--limit", "3"), "--limit"),
        (("--dataset", "nothing"), "nothing"),
        (("--write", "profile.txt"), "profile.txt does not say what to write"),
        (("--write", "missing/profile.yaml"), "the folder missing does not exist"),
        (("--write", "folder.yaml"), "folder.yaml is a folder"),
        (("--report", "page.pdf"), "page.pdf does not say what to write"),
        (("--report", "missing/page.html"), "the folder missing does not exist"),
        (("--profile", "no-such"), "there is no profile named 'no-such'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_refused_before_anything_is_done(hispec, nowhere, arguments, message):
    (nowhere / "here" / "folder.yaml").mkdir()
    assert_message_and_hint(hispec("calibrate", *arguments, "--dry-run"), 2, message)


def test_too_deep_an_exit_is_refused_without_a_dry_run_too(hispec, nowhere):
    assert_message_and_hint(hispec("calibrate", "--exit-layers", "3,20"), 2, "exit 20 was asked for", "from 1 to 15")


def test_there_may_be_nothing_to_resume(hispec, nowhere):
    assert_message_and_hint(hispec(*SMALL, "--resume"), 2, "there is nothing to resume", "without --resume")
