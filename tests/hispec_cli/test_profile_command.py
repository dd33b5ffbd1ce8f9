"""`hispec profile list|show|validate`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hispec import machine
from hispec.machine import GPU_DRIVERS, Device


def test_list_names_the_shipped_profiles(hispec):
    outcome = hispec("profile", "list")
    assert outcome.code == 0
    assert any(line.startswith("tiny ") for line in outcome.out.splitlines())
    rows = json.loads(hispec("profile", "list", "--format", "json").out)
    assert {"name", "description", "path", "fits", "needed_bytes", "free_bytes", "device"} == set(rows[0])


def test_list_says_what_the_free_memory_would_hold(hispec, monkeypatch):
    monkeypatch.setattr(machine, "host", lambda name="cpu": Device(name, "", 20 * 10**9, 24 * 10**9))
    monkeypatch.setattr(machine, "_gpus", lambda: [])
    rows = {row["name"]: row for row in json.loads(hispec("profile", "list", "--format", "json").out)}
    fits = {name: row["fits"] for name, row in rows.items()}
    assert fits["tiny"] and fits["layerskip-llama3-8b"]
    assert not fits["layerskip-llama2-13b"] and not fits["llama-3b-70b"]
    assert rows["llama-3b-70b"]["needed_bytes"] > 143 * 10**9
    assert {row["free_bytes"] for row in rows.values()} == {20 * 10**9}
    lines = {line.split()[0]: line for line in hispec("profile", "list").out.splitlines()}
    assert " fits " in lines["tiny"] and " too large " in lines["llama-3b-70b"]


def test_list_tells_what_it_cannot_know(hispec, tmp_path, monkeypatch):
    monkeypatch.setattr("hispec.profile.user_folder", lambda: tmp_path)
    (tmp_path / "unknown.yaml").write_text("target: {model: some-org/not-here}")
    (tmp_path / "broken.yaml").write_text("target: 3")
    rows = {row["name"]: row for row in json.loads(hispec("profile", "list", "--format", "json").out)}
    assert rows["unknown"]["fits"] is None and rows["broken"]["fits"] is None
    assert "broken" in rows["broken"]["description"]


@pytest.mark.skipif(any(Path(driver).exists() for driver in GPU_DRIVERS), reason="asks the GPU, through torch")
def test_list_needs_no_torch():
    code = "import sys; from hispec_cli.app import run; run(['profile', 'list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_show_is_yaml_with_the_values_in_force(hispec, monkeypatch):
    monkeypatch.setenv("HISPEC_DRAFT_TOKENS", "7")
    shown = yaml.safe_load(hispec("profile", "show", "tiny").out)
    assert shown["target"]["model"] == "builtin:tiny"
    assert shown["decoding"]["draft_tokens"] == 7


def test_origin_says_where_each_value_comes_from(hispec, monkeypatch):
    monkeypatch.setenv("HISPEC_DRAFT_TOKENS", "7")
    lines = hispec("profile", "show", "tiny", "--origin").out.splitlines()
    said = {line.split(":")[0].strip(): line.partition("#")[2].strip() for line in lines if "#" in line}
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
