"""Errors of the loading libraries are told apart by the state of the model, not by their wording."""

import json

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM

from hispec.errors import UnavailableError, UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.explain import explain, explain_tokenizer
from hispec.models.tokenizer import load_tokenizer

CONFIGS = {
    "unknown": ({"model_type": "made_up"}, "has an unknown architecture"),
    "no text": ({"model_type": "vit"}, "has an unknown architecture"),
    "no type": ({"hidden_size": 8}, "has an unknown architecture"),
    "own code": (
        {"model_type": "made_up", "auto_map": {"AutoConfig": "code.Config"}},
        "needs code from its checkpoint",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_is_verified_by_the_configuration(name, tmp_path):
    config, message = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for error in (ValueError("worded otherwise some day"), KeyError("made_up")):
        found = explain(error, Checkpoint(str(tmp_path)))
        assert isinstance(found, UsageError) and message in found.message
    with pytest.raises((ValueError, KeyError)) as caught:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path, trust_remote_code=False))
    assert message in explain(caught.value, Checkpoint(str(tmp_path))).message


@pytest.mark.parametrize("error", [ValueError("the model type of custom code"), KeyError("rope_theta")])
def test_a_known_architecture_is_not_called_unknown(error, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "c.C"}}))
    found = explain(error, Checkpoint(str(tmp_path)))
    assert isinstance(found, UnavailableError) and "cannot be loaded" in found.message


@pytest.mark.parametrize("text", ["{", "{}", "[]", ""])
@pytest.mark.parametrize("model_type", ["llama", "vit", "made_up"])
def test_a_broken_tokenizer_is_called_a_broken_tokenizer(text, model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UnavailableError) as caught:
        load_tokenizer(Checkpoint(str(tmp_path)))
    assert caught.value.message.startswith(f"the tokenizer of {tmp_path} cannot be loaded: ")


def test_a_tokenizer_with_code_of_its_own_is_said_to_be_one(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["t.T", None]}}))
    assert "needs code from its checkpoint" in explain_tokenizer(ValueError("x"), Checkpoint(str(tmp_path))).message


def test_offline_the_network_is_not_to_be_checked(monkeypatch):
    for offline, hint in ((True, "run once without --offline"), (False, "check the name and the network")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        found = explain(LocalEntryNotFoundError("no"), Checkpoint("some-org/some-model"))
        assert isinstance(found, UnavailableError) and hint in found.hint and ("network" in found.hint) != offline


def test_a_configuration_is_named_where_it_is_no_json(tmp_path):
    for text in ("{", "[]", ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UnavailableError, match=r"config\.json of .* is not a JSON object"):
            _ = Checkpoint(str(tmp_path)).config


@pytest.mark.parametrize("files", [(), ("tokenizer_config.json",)])
def test_a_folder_without_a_tokenizer_is_said_to_have_none(files, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnavailableError, match=r"has no tokenizer: neither tokenizer\.json nor"):
        load_tokenizer(Checkpoint(str(tmp_path)))
