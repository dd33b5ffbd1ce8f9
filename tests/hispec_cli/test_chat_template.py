"""`--chat-template FILE` works for every command that encodes prompts; mistakes are found before loading."""

import json
import shutil

import pytest

from hispec.session import read_session
from tests.hispec_cli.conftest import QUESTION, assert_message_and_hint

TERSE = "{% for m in messages %}<|user|>\n{{ m.content | trim }}<|end|>\n{% endfor %}<|assistant|>\n"
LOUD = "{% for m in messages %}<|user|>\n{{ m.content | upper }}<|end|>\n{% endfor %}<|assistant|>\n"
FAILURES = {
    "missing": (None, "cannot be read: No such file"),
    "empty": (b" \n", "is empty"),
    "bytes": (b"\xff\xfe{{ messages }}", "it is not UTF-8 text"),
    "syntax": (b"{% for m in messages %}{{ m.content }}", "fails: line 1: Unexpected end of template"),
    "filter": (b"\n\n{{ messages | nofilter }}", "fails: line 3: No filter named 'nofilter'"),
    "nested": (b"{% if 1 %}" * 120 + b"{% endif %}" * 120, "the chat template fails"),
}


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def write(tmp_path):
    """Write a template; returns its file."""

    def to(name, template):
        path = tmp_path / name
        path.write_text(template)
        return path

    return to


@pytest.fixture
def base_model(tmp_path, shipped_model):
    """The shipped model without its chat template."""
    folder = shutil.copytree(shipped_model, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


def prompt_ids(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["stats"]["prompt_tokens"]


@pytest.mark.parametrize("command", ["generate", "chat", "bench", "calibrate"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_template_that_cannot_be_used_is_refused_before_anything_is_loaded(
    hispec, tmp_path, monkeypatch, command, failure
):
    def loads(*_, **__):
        raise AssertionError("a model was opened")

    monkeypatch.setattr("hispec.api.Engine.load", loads)
    content, message = FAILURES[failure]
    path = tmp_path / "template.jinja"
    if content is not None:
        path.write_bytes(content)
    stdin = "x\n" if command == "chat" else None
    prompt = ["x"] if command == "generate" else []
    assert_message_and_hint(hispec(command, *prompt, "--chat-template", path, stdin=stdin), 2, message)
    monkeypatch.setenv("HISPEC_CHAT_TEMPLATE", str(path))
    assert_message_and_hint(hispec(command, *prompt, stdin=stdin), 2, message)


def test_a_folder_is_no_template(hispec, tmp_path):
    assert_message_and_hint(hispec("generate", "x", "--chat-template", tmp_path), 2, "Is a directory", "a file")


def test_it_goes_with_no_raw(hispec, write):
    outcome = hispec("generate", "x", "--raw", "--chat-template", write("t", TERSE))
    assert_message_and_hint(outcome, 2, "--chat-template and --raw exclude each other")


def test_option_before_environment_before_profile_before_tokenizer(hispec, write, tmp_path, monkeypatch):
    lengths = {}
    for length in (1, 20, 40, 60):
        template = "word " * length + "{{ messages[-1].content }}"
        lengths[length] = write(f"{length}.jinja", template)
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"target: {{model: 'builtin:tiny'}}\nchat_template: {json.dumps(lengths[20].read_text())}\n")
    command = ("generate", "x", "--max-new-tokens", 1, "--format", "json")
    found = [prompt_ids(hispec(*command)), prompt_ids(hispec(*command, "--profile", profile))]
    monkeypatch.setenv("HISPEC_CHAT_TEMPLATE", str(lengths[40]))
    found.append(prompt_ids(hispec(*command, "--profile", profile)))
    found.append(prompt_ids(hispec(*command, "--profile", profile, "--chat-template", lengths[60])))
    assert found[0] < 20 <= found[1] < found[2] < found[3]
    monkeypatch.setenv("HISPEC_CHAT_TEMPLATE", "")
    assert prompt_ids(hispec(*command)) == found[0]


def test_a_base_model_answers_as_the_model_with_that_template(hispec, write, base_model, shipped_model):
    template = ("--chat-template", write("own.jinja", (shipped_model / "chat_template.jinja").read_text()))
    whole, base = ("--model", shipped_model), ("--model", base_model)
    asked = ("generate", QUESTION, "--system", "Be brief.")
    assert hispec(*asked, *base, *template).out == hispec(*asked, *whole).out
    assert_message_and_hint(hispec(*asked, *base), 2, "needs a chat template", "--chat-template")
    assert (
        hispec("chat", *base, *template, stdin=f"{QUESTION}\n").out == hispec("chat", *whole, stdin=f"{QUESTION}\n").out
    )


def test_a_session_keeps_its_template(hispec, write, base_model, tmp_path, monkeypatch):
    terse = write("terse.jinja", TERSE)
    common = ("chat", "--session", "talk")
    assert hispec(*common, "--model", base_model, "--chat-template", terse, stdin="Hello\n").code == 0
    terse.unlink()
    again = hispec(*common, stdin="Hello\n")
    assert again.code == 0, again.err
    saved = read_session(tmp_path / "data" / "hispec" / "sessions" / "talk.json")
    assert (saved.chat_template, len(saved.turns)) == (TERSE, 2)
    assert hispec(*common, "--chat-template", write("loud.jinja", LOUD), stdin="Hello\n").code == 0
    saved = read_session(tmp_path / "data" / "hispec" / "sessions" / "talk.json")
    assert (saved.chat_template, saved.model.model, len(saved.turns)) == (LOUD, str(base_model), 3)
    monkeypatch.setenv("HISPEC_CHAT_TEMPLATE", str(write("other.jinja", TERSE)))
    assert hispec("chat", "--model", base_model, "--session", "other", stdin="Hello\n").code == 0
    assert read_session(tmp_path / "data" / "hispec" / "sessions" / "other.json").chat_template == TERSE


def test_a_benchmark_with_another_template_is_another(hispec, write, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n')
    report = tmp_path / "a.json"
    common = (
        "bench", "--dataset", tmp_path / "a.jsonl", "--warmup", 0, "--max-new-tokens", 4, "--arms", "hispec,hf",
        "-o", report,
    )  # fmt: skip
    terse = ("--chat-template", write("terse.jinja", TERSE))
    assert hispec(*common, *terse).code == 0
    recorded = json.loads(report.read_text())
    assert recorded["config"]["profile"]["chat_template"] == TERSE
    assert hispec(*common, *terse, "--resume").code == 0
    refused = hispec(*common, "--resume")
    assert refused.code == 2 and "chat_template" in refused.err


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[-1].content }}", "no place for a system message"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x", "fails: no system"),
    ],
)
def test_a_system_message_that_a_template_drops_is_refused_before_weights_are_had(
    hispec, write, monkeypatch, command, template, message
):
    def loads(*_, **__):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("hispec.loading.fetch_weights", loads)
    words = ("generate", "x") if command == "generate" else ("chat",)
    given = ("--system", "Be brief.", "--chat-template", write("t.jinja", template))
    outcome = hispec(*words, *given, stdin="x\n" if command == "chat" else None)
    assert_message_and_hint(outcome, 2, message, "leave out --system")


def test_a_system_message_that_is_dropped_is_refused_in_a_chat(hispec, write):
    given = ("--chat-template", write("t.jinja", "{{ messages[-1].content }}"))
    outcome = hispec("chat", *given, stdin="/system Be brief.\n")
    assert_message_and_hint(outcome, 2, "no place for a system message", "--chat-template")


@pytest.mark.parametrize("template", ["{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ missing.name }}", "{{ '\\ud800' }}"])
@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
def test_a_template_that_fails_is_no_bug_of_ours(hispec, write, command, template):
    words = ("generate", "x") if command == "generate" else (command,)
    given = ("--chat-template", write("t.jinja", template))
    outcome = hispec(*words, *given, stdin="x\n" if command == "chat" else None)
    assert outcome.code == 2 and "chat template" in outcome.err and "Traceback" not in outcome.err


def test_a_special_token_ends_answers_of_a_checkpoint_that_does_not_name_it(hispec, shipped_model, tmp_path):
    folder = shutil.copytree(shipped_model, tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "eos_token_id": 0}))
    given = ("--model", folder, "--draft-exit", 1, "--intermediate-exit", 2, "--stop", "<|end|>")
    assert hispec("generate", QUESTION, *given).out == hispec("generate", QUESTION).out
    assert (
        hispec("chat", *given, stdin=f"{QUESTION}\n{QUESTION}\n").out
        == hispec("chat", stdin=f"{QUESTION}\n{QUESTION}\n").out
    )
