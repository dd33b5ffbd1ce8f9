"""The estimate of every shipped profile, dtype and stack is that of `estimates.json`; see `--write-estimates`."""

import json
from itertools import product
from pathlib import Path

import pytest

from hispec import machine
from hispec.memory import estimate
from hispec.precedence import resolve_settings
from hispec.profile import list_profiles, load_profile, shipped_folder
from hispec.settings import SETTINGS

TABLE = Path(__file__).with_name("estimates.json")
FIGURES = ("parameters", "weights", "copies", "kv_cache", "workspace", "download")
PROFILES = sorted(name for name, path in list_profiles() if path.parent == shipped_folder())


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """Estimates on a CPU, on which nothing is downloaded: a line of text for each model.

    The dtype that `auto` takes depends on the processor, so that there is a column with and without bfloat16.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    table = {}
    for flags, (name, dtype, stack) in product(
        ("", "avx512_bf16"), product(PROFILES, SETTINGS["dtype"].choices, SETTINGS["stack"].choices)
    ):
        if flags and dtype != "auto":
            continue
        monkeypatch.setattr(machine, "CPU_INFO", tmp_path / f"cpuinfo{flags}")  # which is read once
        machine.CPU_INFO.write_text(f"flags : {flags}\n")
        profile = load_profile(name)
        settings, _ = resolve_settings({"dtype": dtype, "stack": stack, "device": "cpu"}, profile)
        table[" ".join((name, dtype, stack, flags)).strip()] = [
            f"{need.role} {need.dtype}: " + ", ".join(f"{figure} {getattr(need, figure)}" for figure in FIGURES)
            for need in estimate(profile, settings).models
        ]
    return table


def test_estimates_of_shipped_profiles_are_those_of_the_table(computed, request):
    if request.config.getoption("--write-estimates"):
        TABLE.write_text(json.dumps(computed, indent=1) + "\n", encoding="utf-8")
    assert computed == json.loads(TABLE.read_text(encoding="utf-8"))
