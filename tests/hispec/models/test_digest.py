"""Digests of what a profile's figures depend on: they change with every file's contents, and with nothing else."""

import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hispec import files
from hispec.models import digest
from hispec.models.digest import digests_of_profile
from hispec.models.dummy import dummy_tokenizer
from hispec.profile import DraftSection, Profile, TargetSection
from tests.support import random_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """A saved model with all the files that matter."""
    folder = tmp_path / "model"
    random_model(vocab=300).save_pretrained(folder)
    dummy_tokenizer(300).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text("{}")
    (folder / "frequencies.json").write_text('{"ids": [1, 2]}')
    (tmp_path / "own.safetensors").write_bytes(b"translators")
    return folder


def digests(folder, **changes):
    profile = Profile(
        name="mine",
        target=TargetSection(model=str(folder)),
        draft=DraftSection(exit_layer=1),
        translators=str(folder.parent / "own.safetensors"),
        **changes,
    )
    return digests_of_profile(profile, dummy=False)


def test_one_changed_number_of_the_weights_changes_their_digest_alone(folder):
    before = digests(folder)
    path = folder / "model.safetensors"
    size, tensors = path.stat().st_size, load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, path, {"format": "pt"})
    assert path.stat().st_size == size
    after = digests(folder)
    model = str(folder)
    assert after[model].pop("weights") != before[model].pop("weights") and after == before


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "frequencies.json",
        "../own.safetensors",
    ],
)
def test_every_other_file_counts(folder, name):
    before = digests(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert digests(folder) != before
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    os.utime(folder / name, (1, 1))
    assert digests(folder) == before


def test_a_copy_has_the_same_digests_and_so_do_other_files_beside(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("words")
    save_file({"x": torch.ones(1)}, copy / "unused.safetensors")
    assert digests(copy)[str(copy)] == digests(folder)[str(folder)]


def test_a_shard_counts_as_weights(folder):
    model = random_model(vocab=300)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / sorted(set(index["weight_map"].values()))[-1]
    before = digests(folder)[str(folder)]["weights"]
    tensors = load_file(shard)
    next(iter(tensors.values())).view(-1)[-1] += 1
    save_file(tensors, shard, {"format": "pt"})
    assert digests(folder)[str(folder)]["weights"] != before


def test_large_files_are_hashed_once_until_they_change(folder, monkeypatch):
    monkeypatch.setattr(digest, "LARGE", 1)
    hashed = []
    real = digest.hashlib.file_digest

    def counting(file, kind):
        hashed.append(os.path.basename(file.name))  # noqa: PTH119
        return real(file, kind)

    monkeypatch.setattr(digest.hashlib, "file_digest", counting)
    weights = folder / "model.safetensors"
    assert digests(folder) == digests(folder)
    assert hashed.count("model.safetensors") == 2  # it has only just been written: another may follow unnoticed
    os.utime(weights, (time.time() - 60,) * 2)
    assert digests(folder) == digests(folder) == digests(folder)
    assert hashed.count("model.safetensors") == 3
    before, changed = digests(folder), weights.read_bytes()
    weights.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    os.utime(weights, (time.time() - 50,) * 2)
    assert digests(folder) != before


@pytest.mark.parametrize("content", ["", "[]", '{"WEIGHTS": 3}', '{"WEIGHTS": []}', "\0"])
def test_a_damaged_or_read_only_cache_is_done_without(folder, tmp_path, monkeypatch, content):
    monkeypatch.setattr(digest, "LARGE", 1)
    monkeypatch.setattr(digest, "SETTLED_S", -9.0)
    expected = digests(folder)
    (tmp_path / "cache" / "digests.json").write_text(content.replace("WEIGHTS", str(folder / "model.safetensors")))
    assert digests(folder) == expected
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    assert digests(folder) == expected


def test_files_in_the_hubs_cache_go_by_their_name(tmp_path):
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"not what it is named")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert digest._digest_of_file(link) == "a" * 64


def test_random_weights_have_none(folder):
    profile = Profile(name="mine", target=TargetSection(model=str(folder)), draft=DraftSection(exit_layer=1))
    assert "weights" not in digests_of_profile(profile, dummy=True)[str(folder)]
    hub = Profile(
        name="mine", target=TargetSection(model="facebook/layerskip-llama3.2-1B"), draft=DraftSection(exit_layer=1)
    )
    assert list(digests_of_profile(hub, dummy=True)["facebook/layerskip-llama3.2-1B"]) == ["config.json"]
