"""The shipped profiles: each decodes losslessly, and the text of its file is true."""

import json
import re

import pytest

from hispec.api import Engine
from hispec.memory import estimate
from hispec.models import dtypes
from hispec.models.checkpoint import Checkpoint
from hispec.models.checkpoint_files import SHIPPED_CONFIGS
from hispec.precedence import resolve_settings
from hispec.profile import Profile, check_depths, levels_of, list_profiles, models_of, read_profile, shipped_folder

SHIPPED = {name: path for name, path in list_profiles() if path.parent == shipped_folder()}
OF_THE_HUB = sorted(name for name, path in SHIPPED.items() if not name.startswith("tiny"))


def reduced(model, layers, folder):
    """Write the configuration of a model with the same kind of heads, but narrow and shallow; return its folder."""
    values = json.loads((SHIPPED_CONFIGS / f"{model.replace('/', '--')}.json").read_text())
    grouped = values["num_key_value_heads"] < values["num_attention_heads"]
    values |= {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 600}
    values |= {
        "num_hidden_layers": layers,
        "num_key_value_heads": 2 if grouped else 4,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    path = folder / model.replace("/", "--")
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    return str(path)


def of_reduced_models(profile, folder):
    """The profile with narrow models in place of its own."""
    text = profile.model_dump_json(by_alias=True, exclude_unset=True)
    layers = 2 + max((level.exit_layer or 1 for level in levels_of(profile, "hispec")), default=1)
    for model in models_of(profile, "hispec"):
        text = text.replace(json.dumps(model), json.dumps(reduced(model, layers, folder)))
    return Profile.model_validate_json(text)


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_each_writes_what_its_target_alone_writes(name, tmp_path):
    shipped = read_profile(SHIPPED[name])
    for model in models_of(shipped, "hispec"):
        check_depths(shipped, model, Checkpoint(model, dummy=True).config.num_layers)
    profile = of_reduced_models(shipped, tmp_path)
    engine = Engine.from_profile(profile, load_format="dummy", max_new_tokens=24, temperature=0.0, policy="static")
    answer = engine.generate("one two one two one")
    alone = engine.with_settings(mode="autoregressive").generate("one two one two one")
    assert answer.token_ids == alone.token_ids and len(alone.token_ids) == 24
    verifies = [level for level in answer.stats.levels if level.proposed]
    assert len(verifies) >= 1 + (profile.intermediate is not None)


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_a_file_names_the_memory_of_its_estimate(name, monkeypatch):
    monkeypatch.setattr(dtypes, "processor_flags", set)  # a processor with VNNI would add a head
    profile = read_profile(SHIPPED[name])
    settings, _ = resolve_settings({"device": "cpu", "load_format": "dummy"}, profile)
    need = estimate(profile, settings)
    said = re.search(
        r"^# Memory: (.*) of weights in bfloat16(?:, ([0-9.]+) GB of the copy)?", SHIPPED[name].read_text(), re.M
    )
    sizes = [float(size) for size in re.findall(r"([0-9.]+) GB", said[1])]
    known = sorted((model.weights / 1e9 for model in need.models), reverse=True)
    assert sizes == pytest.approx(known, rel=0.01)
    assert float(said[2] or 0) == pytest.approx(need.models[0].copies / 1e9, rel=0.01)


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_a_file_says_its_licence_what_is_unchecked_and_how_to_try_it_first(name):
    lines = SHIPPED[name].read_text().splitlines()
    for begins in ("# Licence", "# Memory: ", "# Unchecked on the hub: "):
        assert sum(line.startswith(begins) for line in lines) == 1, begins
    assert f"#   hispec bench --profile {name} --load-format dummy" in lines
    assert max(map(len, lines)) <= 126


def test_ordinary_models_read_no_exits():
    """Those that were not trained for early exit are made faster by a copy."""
    ordinary = [name for name in OF_THE_HUB if name.startswith(("qwen3", "smollm2", "llama3.", "mistral"))]
    assert len(ordinary) == 12
    for name in ordinary:
        profile = read_profile(SHIPPED[name])
        assert profile.draft.weights == "int4" and profile.draft.exit_layer is None
        assert profile.sampling.temperature is None, "a chat model samples as its generation config says"
