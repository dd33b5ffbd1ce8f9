"""`hispec profile list|show|validate`."""

import json

import yaml


def test_list_names_the_shipped_profiles(hispec):
    outcome = hispec("profile", "list")
    assert outcome.code == 0
    assert any(line.startswith("tiny ") for line in outcome.out.splitlines())
    rows = json.loads(hispec("profile", "list", "--format", "json").out)
    assert {"name", "description", "path", "fits", "needed_bytes", "free_bytes", "device"} == set(rows[0])


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
