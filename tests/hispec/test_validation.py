"""`check_at_hand` refuses what decoding a profile would refuse, from the files on this machine."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hispec.errors import HispecError
from hispec.models.translator import Provenance, Translator, save_translators
from hispec.profile import read_profile
from hispec.validation import check_at_hand

LEVELS = "draft: {exit_layer: 1}\nintermediate: {exit_layer: 2}\n"


@pytest.fixture
def model(tmp_path, shipped_model):
    return shutil.copytree(shipped_model, tmp_path / "model")


@pytest.fixture
def check(tmp_path):
    def check(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return check_at_hand(read_profile(path))

    return check


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_can_be_decoded_passes(check, model):
    assert check("target: {model: ./model}\n" + LEVELS) == []
    assert check("target: {model: 'builtin:tiny'}\ndraft: {model: ./model, head: 64}\n") == []


def test_what_is_not_here_is_named_and_left_alone(check, model):
    assert check("target: {model: some/model}\n" + LEVELS) == ["some/model"]
    assert check("target: {model: ./model}\ndraft: {model: some/other}\nintermediate: {exit_layer: 2}\n") == [
        "some/other"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: {model: ./nothing}", "no model at"),
        ("target: {model: ./model}\ndraft: {model: ./nothing}", "no model at"),
        ("target: {model: a b}", "'a b' is neither a folder nor an id"),
        ("target: {model: a/b, revision: main}\ndraft: {model: -x}", "'-x' is neither"),
        ("target: {model: 'builtin:huge'}", "no model named builtin:huge"),
        ("target: {model: ./model}\ndraft: {exit_layer: 16}", "has 16 layers"),
        ("target: {model: ./model}\nsingle_layer: {exit_layer: 99, draft_tokens: 2}", "single_layer.exit_layer is 99"),
        ("target: {model: a/b}\ndraft: {model: ./model}\nintermediate: {model: ./model, exit_layer: 17}", "16 layers"),
        (
            "target: {model: a/b}\ndraft: {model: ./model}\nintermediate: {model: ./model, exit_layer: 9}",
            "out of order",
        ),
        ("target: {model: a/b}\ndraft: {exit_layer: 1, head: 99}", "no token frequencies at"),
        (
            "target: {model: ./model}\ndraft: {exit_layer: 1, head: 99}\nfrequencies: none.json",
            "no token frequencies at",
        ),
        ("target: {model: ./model}\ndraft: {exit_layer: 1, head: 99}\nfrequencies: mine.yaml", "not a file of token"),
        ("target: {model: ./model}\ndraft: {exit_layer: 1, head: 1000000}", "a level's head is 1000000"),
        ("target: {model: ./model}\ntranslators: none.safetensors", "there are no translators at"),
        ("target: {model: a/b}\ntranslators: mine.yaml", "are damaged"),
        ("target: {model: ./model}\nchat_template: '{{ messages'", "the chat template fails"),
        ("target: {model: ./model}\nchat_template: '{% for %}'", "the chat template fails"),
        ("target: {model: ./model}\nchat_template: '{{ raise_exception(1) }}'", "the chat template fails"),
        ("target: {model: a/b}\nchat_template: '{{ messages'", "the chat template fails: line 1"),
    ],
)
def test_what_cannot_be_decoded_is_refused(check, model, text, message):
    with pytest.raises(HispecError) as caught:
        check(text)
    assert message in caught.value.message


def test_a_template_that_only_the_tokenizer_could_verify_is_left_alone(check):
    assert check("target: {model: a/b}\nchat_template: '{{ bos_token + messages[0].content + strange }}'") == ["a/b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_digest": "0" * 64}, "not for these of"),
        ({"num_layers": 15}, "15 layers"),
        ({"model_digest": None}, None),
    ],
)
def test_translators_of_another_model_are_refused(check, model, tmp_path, changes, message):
    hidden = json.loads((model / "config.json").read_text())["hidden_size"]
    known = {"model": "org/other", "revision": None, "hidden_size": hidden, "num_layers": 16, "exits": (1,), "made": {}}
    translator = Translator(torch.zeros(hidden, hidden), torch.zeros(hidden))
    provenance = Provenance(**{"model_digest": None} | known | changes)
    save_translators(tmp_path / "mine.safetensors", {1: translator}, provenance)
    text = "target: {model: ./model}\ntranslators: mine.safetensors\n" + LEVELS
    if message is None:
        assert check(text) == []
        return
    with pytest.raises(HispecError) as caught:
        check(text)
    assert message in caught.value.message


def break_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def misshape_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def break_the_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def swap_two_tokens(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(tokenizer))


def change_the_family(folder):
    edit(folder / "config.json", model_type="mamba", architectures=["MambaForCausalLM"])


def break_the_config(folder):
    (folder / "config.json").write_text("{")


def break_the_template(folder):
    (folder / "chat_template.jinja").write_text("{% if %}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "are damaged"),
        (lose_weights, "has no weights"),
        (lose_a_tensor, "model.layers.3.mlp.up_proj.weight is missing or misshapen"),
        (misshape_a_tensor, "model.norm.weight is missing or misshapen"),
        (break_the_tokenizer, "cannot be loaded"),
        (swap_two_tokens, "do not share a vocabulary"),
        (change_the_family, ""),
        (break_the_config, ""),
        (break_the_template, "the chat template fails"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_that_cannot_be_loaded_are_refused(check, model, damage, message):
    damage(model)
    text = "target: {model: ./model}\n" + LEVELS
    if damage is swap_two_tokens:
        text = "target: {model: 'builtin:tiny'}\ndraft: {model: ./model}\n"
    with pytest.raises(HispecError) as caught:
        check(text)
    assert message in caught.value.message
