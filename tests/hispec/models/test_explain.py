"""Errors of the loading libraries are told apart by what the model is, not by how they are worded."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from hispec.errors import UnavailableError, UsageError
from hispec.models.explain import explain

CONFIGS = {
    "unknown": ({"model_type": "made_up"}, "architecture that is not known here"),
    "no text": ({"model_type": "vit"}, "architecture that is not known here"),
    "no type": ({"hidden_size": 8}, "architecture that is not known here"),
    "own code": ({"model_type": "made_up", "auto_map": {"AutoConfig": "code.Config"}}, "wants to run code of its own"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_is_judged_by_the_configuration(name, tmp_path):
    config, cause = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for error in (ValueError("worded otherwise some day"), KeyError("made_up")):
        found = explain(error, str(tmp_path))
        assert isinstance(found, UsageError) and cause in found.cause
    with pytest.raises((ValueError, KeyError)) as caught:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path, trust_remote_code=False))
    assert cause in explain(caught.value, str(tmp_path)).cause


@pytest.mark.parametrize("error", [ValueError("the model type of custom code"), KeyError("rope_theta")])
def test_a_known_architecture_is_not_called_unknown(error, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "c.C"}}))
    found = explain(error, str(tmp_path))
    assert isinstance(found, UnavailableError) and "cannot be loaded" in found.cause
