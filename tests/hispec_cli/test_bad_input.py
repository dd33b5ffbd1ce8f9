"""Every mistake gives its exit code, one line of message and one of hint."""

import json
import os
import shutil

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("generate",), "no prompt", "pass one"),
        (("generate", ""), "the prompt is empty", "pass one"),
        (("generate", " \n"), "the prompt is empty", "pass one"),
        (("generate", "@/does/not/exist"), "/does/not/exist cannot be read", "after @"),
        (("generate", "@/"), "/ cannot be read", "after @"),
        (("generate", "x", "--profile", "tinny"), "no profile named 'tinny'", "did you mean tiny?"),
        (("generate", "x", "--profile", "/none.yaml"), "no profile at /none.yaml", "hispec profile list"),
        (("generate", "x", "--profile", "tiny", "--model", "m"), "both given", "one of them"),
        (("generate", "x", "--draft-exit", "4"), "deeper than the draft exit (4)", ""),
        (("generate", "x", "--draft-exit", "5", "--intermediate-exit", "5"), "deeper than the draft exit", ""),
        (("generate", "x", "--draft-exit", "2", "--intermediate-exit", "16"), "has 16 layers", "from 1 to 15"),
        (("generate", "x", "--draft-exit", "0"), "--draft-exit", "hispec generate --help"),
        (("generate", "x", "--max-new-tokens", "0"), "--max-new-tokens is 0", "at least 1"),
        (("generate", "x", "--max-new-tokens", "-5"), "--max-new-tokens is -5", "at least 1"),
        (("generate", "x", "--max-new-tokens", "many"), "--max-new-tokens", "hispec generate --help"),
        (("generate", "x", "--draft-tokens", "0"), "--draft-tokens is 0", "at least 1"),
        (("generate", "x", "--temperature", "-1"), "--temperature is -1", "at least 0"),
        (("generate", "x", "--temperature", "1e-40"), "--temperature: 1e-40 is too close to 0", "0.0001"),
        (("generate", "x", "--temperature", "inf"), "--temperature is inf", "at most"),
        (("generate", "x", "--temperature", "nan"), "--temperature is nan", "accepted"),
        (("generate", "x", "--repetition-penalty", "1e-300"), "--repetition-penalty is 1e-300", "at least"),
        (("generate", "bad\udcff"), "the prompt is not UTF-8", "UTF-8"),
        (("generate", "x", "--system", "bad\udcff"), "the system message is not UTF-8", "UTF-8"),
        (("generate", "@a\0b"), "cannot be read", "after @"),
        (("generate", "x", "--device", "meta"), "'meta' is not a device", "cpu"),
        (("generate", "x", "--top-p", "0"), "--top-p is 0", "more than 0"),
        (("generate", "x", "--top-k", "-1"), "--top-k is -1", "at least 0"),
        (("generate", "x", "--mode", "fast"), "'--mode': 'fast' is not one of", "--help"),
        (("generate", "x", "--stack", "tall"), "'--stack': 'tall' is not one of", "--help"),
        (("generate", "x", "--dtype", "int4"), "'--dtype': 'int4' is not one of 'auto', 'float32'", "--help"),
        (("generate", "x", "--device", "abacus"), "'abacus' is not a device", "cpu"),
        (("generate", "x", "--stop", ""), "a stop text is empty", "--stop"),
        (("generate", "x", "--raw", "--system", "s"), "a system message needs a chat template", "--raw"),
        (("generate", "x", "--trace", "/does/not/exist.jsonl"), "cannot be written", "--trace"),
        (("generate", "x", "--trace", "/"), "cannot be written", "--trace"),
        (("generate", "word " * 2100), "tokens, and the context", "shorten the prompt"),
        (("generate", "x", "--model", "/does/not/exist"), "no model at /does/not/exist", "folder"),
        (("generate", "x", "--nonsense"), "--nonsense", "hispec generate --help"),
        (("nonsense",), "nonsense", "hispec --help"),
        (("profile", "show", "tinny"), "no profile named 'tinny'", "did you mean tiny?"),
        (("profile", "validate"), "NAME", "--help"),
    ],
)
def test_wrong_usage_exits_2(hispec, arguments, message, hint):
    assert_message_and_hint(hispec(*arguments), 2, message, hint)


@pytest.mark.parametrize("arguments", [(), ("profile",)])
def test_without_a_command_the_help_is_shown(hispec, arguments):
    outcome, help_ = hispec(*arguments), hispec(*arguments, "--help")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == help_.out and "Commands:\n" in outcome.err


def test_a_file_that_is_named_like_a_profile_is_hinted_at(hispec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("target: {model: builtin:tiny}\n")
    assert_message_and_hint(
        hispec("profile", "validate", "mine"), 2, "no profile named 'mine'", "did you mean the file ./mine?"
    )
    assert hispec("profile", "validate", "./mine").code == 0


def test_text_that_is_not_utf8_is_refused(hispec, tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    assert_message_and_hint(hispec("generate", f"@{tmp_path / 'latin.txt'}"), 2, "is not UTF-8 text (byte 3)", "iconv")
    assert_message_and_hint(hispec("generate", stdin=b"\xff\xfe"), 2, "standard input is not UTF-8", "iconv")


def test_a_malformed_profile_names_line_and_key(hispec, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: {model: x\ndraft: [")
    assert_message_and_hint(hispec("generate", "x", "--profile", path), 2, "line 2", "mend")
    path.write_text("target: {model: x, quantized: true}")
    assert_message_and_hint(hispec("generate", "x", "--profile", path), 2, "unknown key target.quantized", "revision")
    path.write_text('target: {model: "builtin:nothing"}')
    assert_message_and_hint(hispec("generate", "x", "--profile", path), 2, "builtin:nothing", "builtin:tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat_template: '{{ bad'", "the chat template fails"),
        ("chat_template: '{{ messages[5].content }}'", "the chat template fails"),
        ("chat_template: '{{ raise_exception(\"no\") }}'", "the chat template fails: no"),
        ("draft: {model: 'builtin:tiny'}", "draft.model is the target itself"),
        ("draft: {exit_layer: 4}\nintermediate: {model: 'builtin:tiny'}", "intermediate.model is the target itself"),
        ("draft: {1: 2}", "a key that is not text"),
        ("name: ''", "name is empty"),
        ("description: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_profiles_that_only_decoding_would_find_out_exit_2(hispec, tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f'target: {{model: "builtin:tiny"}}\n{text}\n')
    assert_message_and_hint(hispec("generate", "x", "--profile", path), 2, message)


def test_an_empty_chat_template_leaves_the_tokenizers_own(hispec, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('target: {model: "builtin:tiny"}\nchat_template: ""\n')
    assert hispec("generate", QUESTION, "--profile", path).out == hispec("generate", QUESTION).out


def test_a_refused_command_leaves_an_earlier_trace_alone(hispec, tmp_path):
    (tmp_path / "trace").write_text("dear")
    assert hispec("generate", "x", "--trace", tmp_path / "trace", "--max-new-tokens", 0).code == 2
    assert (tmp_path / "trace").read_text() == "dear"


def test_a_device_that_is_not_there_exits_5(hispec):
    assert_message_and_hint(hispec("generate", "x", "--device", "cuda:7"), 5, "no usable device 'cuda:7'", "cpu")


def test_damaged_weights_exit_5(hispec, tmp_path, shipped_model):
    model = shutil.copytree(shipped_model, tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    for damaged in (weights[: len(weights) // 2], weights[:100], b""):
        (model / "model.safetensors").write_bytes(damaged)
        assert_message_and_hint(hispec("generate", "x", "--model", model), 5, "weights", "download or save")
    (model / "model.safetensors").unlink()
    assert_message_and_hint(hispec("generate", "x", "--model", model), 5, "model.safetensors", "complete")


def test_weights_that_lack_a_layer_exit_5(hispec, tmp_path, shipped_model):
    model = shutil.copytree(shipped_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 17}))
    assert_message_and_hint(hispec("generate", "x", "--model", model), 5, "incomplete", "download or save")


def test_a_broken_config_or_tokenizer_is_told(hispec, tmp_path, shipped_model):
    model = shutil.copytree(shipped_model, tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    assert_message_and_hint(hispec("generate", "x", "--model", model), 5, "tokenizer", "complete")
    (model / "config.json").write_text("{")
    assert_message_and_hint(hispec("generate", "x", "--model", model), 5, "config.json", "download or save")


def test_a_configuration_with_a_wrong_value_is_refused_by_the_key(hispec, tmp_path, shipped_model):
    model = shutil.copytree(shipped_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": None, "rope_theta": None}))
    assert_message_and_hint(hispec("generate", "x", "--model", model), 2, "rope_theta", "correct config.json")
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": "small"}))
    assert_message_and_hint(hispec("generate", "x", "--model", model), 2, "rms_norm_eps", "correct config.json")


def test_an_unsupported_architecture_exits_2(hispec, tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    assert_message_and_hint(hispec("generate", "x", "--model", tmp_path), 2, "'gpt2' model", "llama")
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    assert_message_and_hint(hispec("generate", "x", "--model", tmp_path), 2, "architecture", "Llama")


def test_a_hub_model_offline_exits_5(hispec):
    assert_message_and_hint(hispec("generate", "x", "--model", "no-such-org/model"), 5, "no-such-org/model", "folder")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_trace_that_fills_its_disk_does_not_cost_the_answer(hispec):
    outcome = hispec("generate", QUESTION, "--trace", "/dev/full")
    assert outcome.code == 5 and "is incomplete" in outcome.err
    assert "####" in outcome.out


def test_debug_shows_the_traceback(hispec):
    outcome = hispec("generate", "x", "--profile", "tinny", "--debug")
    assert outcome.code == 2 and "Traceback" in outcome.err


def test_a_bug_exits_1_and_says_so(hispec, monkeypatch):
    monkeypatch.setattr("hispec.api.Engine.stream", lambda *_, **__: 1 / 0)
    assert_message_and_hint(hispec("generate", "x"), 1, "this is a bug in hispec: ZeroDivisionError", "--debug")
