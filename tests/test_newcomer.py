"""A newcomer's tasks take one file each: `tests/newcomer` has them, and a copy of the package gets nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hispec import Engine
from hispec.errors import ProfileError
from hispec.profile import resolve_model
from tests.support import random_model

ROOT = Path(__file__).parents[1]
FILES = {
    "riddles.py": "datasets",
    "ministral.py": "models/families",
    "doubling.py": "decoding/ngram_drafters",
}
"""Folders of `core/hispec` by the file that is added there."""


PROFILE = """\
target: {model: ./model}
draft: {ngram: {max: 2, tokens: 1, drafter: doubling}, exit_layer: 1}
intermediate: {exit_layer: 2}
decoding: {draft_tokens: 2, validate_every: 4}
"""


@pytest.fixture
def source(tmp_path):
    """A copy of the package with the newcomer's files in it."""
    package = tmp_path / "core" / "hispec"
    shutil.copytree(ROOT / "core" / "hispec", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    for name, folder in FILES.items():
        assert not (package / folder / name).exists()
        shutil.copy(ROOT / "tests" / "newcomer" / name, package / folder / name)
    return package.parent


@pytest.fixture
def checkpoint(tmp_path):
    """A random model of the new family, with the shipped model's tokenizer."""
    folder = tmp_path / "model"
    random_model("ministral", vocab=1319, sliding_window=64).save_pretrained(folder)
    shipped = Path(resolve_model("builtin:tiny"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(shipped / name, folder)
    return folder


def test_a_dataset_a_drafter_and_a_family_are_new_files_and_nothing_else(source, checkpoint, tmp_path):
    (tmp_path / "riddles.jsonl").write_text(json.dumps({"riddle": "It has hands.", "thing": "clock"}) + "\n")
    (tmp_path / "mine.yaml").write_text(PROFILE)
    command = (
        "bench --profile ./mine.yaml --stack fused --dtype float32 --dataset riddles.jsonl --format-as riddles"
        " --warmup 0 --arms hispec,autoregressive -o report.json"
    )
    done = subprocess.run(
        [sys.executable, "-m", "hispec_cli", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(source), str(ROOT))), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dataset"]["name"] == "riddles" and report["environment"]["stack"] == "fused"
    assert report["arms"][0]["lossless"] | {"errors": 0} == {"identical": 1, "of": 1, "ties": 0, "errors": 0}
    assert report["arms"][0]["accuracy"]["metric"] == "exact_match"
    ngrams = next(level for level in report["arms"][0]["levels"] if level["name"] == "guesses")
    assert ngrams["proposed"] > 0


def test_a_drafter_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: {model: 'builtin:tiny'}\ndraft: {ngram: {max: 2, tokens: 1, drafter: doubling}}\n")
    with pytest.raises(ProfileError, match=r"no n-gram drafter 'doubling'") as caught:
        Engine.from_profile(str(path))
    assert "cache" in caught.value.hint
