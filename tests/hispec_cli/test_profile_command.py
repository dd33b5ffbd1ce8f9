"""`hispec profile list|show|validate`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hispec import machine
from hispec.machine import GPU_DRIVERS, Device
from hispec.profile import load_profile, read_profile
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder of profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "hispec" / "profiles"
    folder.mkdir(parents=True)
    return folder


def test_list_names_the_shipped_profiles(hispec):
    outcome = hispec("profile", "list")
    assert outcome.code == 0
    assert any(line.startswith("tiny ") for line in outcome.out.splitlines())
    rows = json.loads(hispec("profile", "list", "--format", "json").out)
    assert {"name", "description", "path", "fits", "needed_bytes", "free_bytes", "device"} <= set(rows[0])


def test_list_has_the_sizes_of_a_model_in_their_order(hispec):
    names = [row["name"] for row in json.loads(hispec("profile", "list", "--format", "json").out)]
    sizes = ["0.6b", "1.7b", "4b", "8b", "14b", "32b"]
    assert [name for name in names if name.startswith("qwen3")] == [f"qwen3-{size}" for size in sizes]
    assert names.index("tiny") + 1 == names.index("tiny-adaptive")


def test_list_marks_what_is_yours_what_is_default_and_what_is_downloaded(hispec, own, monkeypatch):
    (own / "tiny.yaml").write_text("description: mine\ntarget: {model: some-org/not-here}")
    (own / "gone.yaml").write_text("target: {model: /no/such/folder}")
    monkeypatch.setenv("HISPEC_PROFILE", "gone")
    head, *lines = hispec("profile", "list").out.splitlines()
    assert head.split() == ["NAME", "FROM", "WEIGHTS", "MEMORY", "NEEDED", "DESCRIPTION"]
    of = {line.split()[0]: re.split(" {2,}", line)[1:3] for line in lines}
    assert of["tiny"] == ["yours, replaces shipped", "not here"] and of["gone"] == ["yours, default", "not here"]
    assert of["tiny-adaptive"] == ["shipped", "here"] and of["llama-3b-70b"] == ["shipped", "not here"]
    rows = {row["name"]: row for row in json.loads(hispec("profile", "list", "--format", "json").out)}
    marks = ("own", "shadows", "default", "downloaded")
    assert [rows["tiny"][mark] for mark in marks] == [True, True, False, False]
    assert [rows["tiny-adaptive"][mark] for mark in marks] == [False, False, False, True]


def test_list_says_what_the_free_memory_would_hold(hispec, monkeypatch):
    monkeypatch.setattr(machine, "host", lambda name="cpu": Device(name, "", 20 * 10**9, 24 * 10**9))
    monkeypatch.setattr(machine, "_gpus", lambda: [])
    rows = {row["name"]: row for row in json.loads(hispec("profile", "list", "--format", "json").out)}
    fits = {name: row["fits"] for name, row in rows.items()}
    assert fits["tiny"] and fits["layerskip-llama2-7b"] and fits["mistral-7b"]
    assert not fits["qwen3-14b"] and not fits["llama-3b-70b"]
    assert rows["llama-3b-70b"]["needed_bytes"] > 186 * 10**9  # the weights of two models, and a copy
    assert {row["free_bytes"] for row in rows.values()} == {20 * 10**9}
    lines = {line.split()[0]: line for line in hispec("profile", "list").out.splitlines()}
    assert " fits " in lines["tiny"] and " too large " in lines["llama-3b-70b"]


def test_list_tells_what_it_cannot_know(hispec, tmp_path, monkeypatch):
    monkeypatch.setattr("hispec.profile.files.user_folder", lambda: tmp_path)
    (tmp_path / "unknown.yaml").write_text("target: {model: some-org/not-here}")
    (tmp_path / "broken.yaml").write_text("target: 3")
    rows = {row["name"]: row for row in json.loads(hispec("profile", "list", "--format", "json").out)}
    assert rows["unknown"]["fits"] is None and rows["broken"]["fits"] is None
    assert "broken" in rows["broken"]["description"]


@pytest.mark.skipif(any(Path(driver).exists() for driver in GPU_DRIVERS), reason="asks the GPU, through torch")
def test_list_needs_no_torch():
    code = "import sys; from hispec_cli.app import run; run(['profile', 'list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["tiny", "tiny-adaptive", "llama-3b-8b-70b"])
def test_what_show_prints_is_a_valid_profile_equal_to_the_one_shown(hispec, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HISPEC_DRAFT_TOKENS", "7")  # in force, and no part of the profile
    path = tmp_path / "mine.yaml"
    path.write_text(hispec("profile", "show", name, "--origin").out)
    assert read_profile(path) == load_profile(name)
    assert hispec("profile", "validate", path).code == 0


def test_what_a_terminal_would_obey_is_shown_as_escapes_that_read_back(hispec, tmp_path):
    path, shown = tmp_path / "mine.yaml", tmp_path / "shown.yaml"
    path.write_text('target: {model: a/b}\nname: x\ndescription: "\\u202e é"\nchat_template: "\\e[31m"\n')
    out = hispec("profile", "show", path).out
    assert "\u202e" not in out and "\x1b" not in out
    shown.write_text(out)
    assert read_profile(shown) == read_profile(path)


def test_show_has_the_values_in_force_as_comments(hispec, monkeypatch):
    monkeypatch.setenv("HISPEC_DRAFT_TOKENS", "7")
    assert "#   draft_tokens: 7" in hispec("profile", "show", "tiny").out.splitlines()
    assert json.loads(hispec("profile", "show", "tiny", "--format", "json").out)["decoding"]["draft_tokens"] == 7


def test_origin_says_where_each_value_comes_from(hispec, monkeypatch):
    monkeypatch.setenv("HISPEC_DRAFT_TOKENS", "7")
    lines = hispec("profile", "show", "tiny", "--origin").out.splitlines()
    said = {line.split(":")[0].strip("# "): line.rpartition("#")[2].strip() for line in lines if line.count("#") == 2}
    assert said["draft_tokens"] == "environment"
    assert said["validate_every"] == "profile"
    assert said["max_new_tokens"] == "default"
    origin = json.loads(hispec("profile", "show", "tiny", "--origin", "--format", "json").out)["origin"]
    assert origin == said


def test_the_generation_config_counts_below_the_profile(hispec, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text('{"max_new_tokens": 33}')
    path = tmp_path / "mine.yaml"
    path.write_text("target: {model: ./model}")
    shown = json.loads(hispec("profile", "show", path, "--origin", "--format", "json").out)
    assert shown["decoding"]["max_new_tokens"] == 33
    assert shown["origin"]["max_new_tokens"] == "generation config"


def test_validate_reads_the_models_depth_where_it_is_at_hand(hispec, tmp_path, shipped_model):
    path = tmp_path / "mine.yaml"
    path.write_text(f"target: {{model: {shipped_model}}}\ndraft: {{exit_layer: 3}}")
    assert hispec("profile", "validate", path).code == 0
    path.write_text(f"target: {{model: {shipped_model}}}\ndraft: {{exit_layer: 16}}")
    outcome = hispec("profile", "validate", path)
    assert outcome.code == 2 and "has 16 layers" in outcome.err


def test_new_begins_a_profile_with_another_and_says_where(hispec, own):
    outcome = hispec("profile", "new", "mine", "--from", "tiny")
    path = own / "mine.yaml"
    assert (outcome.code, outcome.out) == (0, f"{path}\n")
    assert "hispec profile validate mine" in outcome.err and "--profile mine" in outcome.err
    assert read_profile(path) == load_profile("tiny").model_copy(update={"name": "mine"})
    assert "# Exit 1 writes three of four tokens" in path.read_text()
    assert hispec("profile", "validate", "mine").code == 0
    path.write_text("edited")
    assert_message_and_hint(hispec("profile", "new", "mine"), 2, "there is a profile mine", "--force")
    assert path.read_text() == "edited"
    assert hispec("profile", "new", "mine", "--force").code == 0
    assert load_profile("mine").target.model == "builtin:tiny"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "mine.yaml", "é", "a" * 101])
def test_new_refuses_names_that_would_not_be_found(hispec, own, name):
    assert_message_and_hint(hispec("profile", "new", name), 2, "cannot name a profile", "letters")
    assert not list(own.iterdir())


def test_new_takes_along_files_that_the_other_names_relative_to_itself(hispec, own, tmp_path):
    source = tmp_path / "here" / "source.yaml"
    source.parent.mkdir()
    source.write_text("{name: x, target: {model: ./model}, frequencies: counts.json}")
    assert hispec("profile", "new", "no", "--from", source).code == 0
    assert read_profile(own / "no.yaml") == read_profile(source).model_copy(update={"name": "no"})


def test_a_profile_that_hides_a_shipped_one_says_so_once_when_it_is_loaded(hispec, own):
    said = f"profile tiny is your own, {own / 'tiny.yaml'}: it replaces the shipped one of this name"
    outcome = hispec("profile", "new", "tiny")
    assert "replaces the shipped profile tiny" in outcome.err
    for command in (("profile", "show", "tiny"), ("profile", "validate", "tiny"), ("generate", QUESTION)):
        outcome = hispec(*command)
        assert outcome.code == 0 and outcome.err.splitlines().count(said) == 1
    assert said not in hispec("profile", "show", own / "tiny.yaml").err
    assert "replaces" not in hispec("profile", "show", "tiny-adaptive").err
