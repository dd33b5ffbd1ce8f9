"""Help pages and shell completion."""

import os
import subprocess
import sys

import pytest

from hispec_cli.app import run
from hispec_cli.completion import with_shell

COMMANDS = ("generate", "chat", "bench", "calibrate", "doctor", "fit-exits", "serve", "pull")


@pytest.fixture
def page(hispec, monkeypatch):
    """The help of a command, its line breaks undone."""
    monkeypatch.setenv("COLUMNS", "80")

    def read(*command):
        outcome = hispec(*command, "--help")
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out

    return read


@pytest.mark.parametrize("command", COMMANDS)
def test_types_are_those_of_a_person_and_an_example_can_be_typed(page, command):
    text = page(command)
    assert not [name for name in ("<str>", "<int", "<float", "<path>", "2147483647") if name in text]
    _, _, examples = text.partition("Examples:\n")
    assert examples.strip() and all(line.startswith(f"    hispec {command}") for line in examples.splitlines() if line)


@pytest.mark.parametrize(
    ("command", "sections"),
    [
        ("generate", ["Model", "Text", "Decoding", "Sampling", "Weights and devices", "Output", "Options"]),
        ("bench", ["What is measured", "Model", "Decoding", "Sampling", "Weights and devices", "Output", "Options"]),
        ("calibrate", ["Model", "Search", "Weights and devices", "Output", "Options"]),
        ("serve", ["Model", "Server", "Decoding", "Sampling", "Weights and devices", "Options"]),
        ("doctor", ["Model", "Decoding", "Weights and devices", "Output", "Options"]),
    ],
)
def test_options_stand_in_sections_and_the_general_ones_last(page, command, sections):
    titles = [line[:-1] for line in page(command).splitlines() if line.endswith(":") and not line.startswith(" ")]
    found = [title for title in titles if title not in ("Arguments", "Commands")]
    assert sorted(found) == sorted(sections) and found[-1] == "Options"


def test_defaults_are_shown_where_they_come_from_elsewhere_too(page):
    text = " ".join(page("generate").split())
    for shown in (
        "(HISPEC_PROFILE, else tiny, the shipped model)",
        "(the profile's, the checkpoint's, else 256)",
        "[default: auto]",
    ):
        assert shown in text
    assert "[default: 32; x>=0]" in " ".join(page("bench").split())


@pytest.mark.parametrize(
    ("shell", "first"),
    [("zsh", "#compdef hispec"), ("bash", "_hispec_completion() {"), ("fish", "complete --command hispec")],
)
def test_the_script_is_that_of_the_shell_that_is_named(capfd, shell, first):
    with pytest.raises(SystemExit) as ended:
        run(["--show-completion", shell])
    assert not ended.value.code and capfd.readouterr().out.startswith(first)


def test_a_script_without_a_name_is_for_the_users_own_shell(monkeypatch, hispec):
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert with_shell(["--show-completion"]) == ["--show-completion", "zsh"]
    assert with_shell(["--show-completion", "fish"]) == ["--show-completion", "fish"]
    monkeypatch.setenv("SHELL", "/bin/csh")
    assert hispec("--show-completion").code == 2
    assert hispec("--show-completion", "csh").code == 2


def test_names_are_completed_without_torch(tmp_path):
    """The shell asks a process of its own, which must answer at once."""
    sessions = tmp_path / "hispec" / "sessions"
    sessions.mkdir(parents=True)
    for name in ("cooking", "maths"):
        (sessions / f"{name}.json").write_text("{}")
    script = """
import os, sys
sys.modules["torch"] = sys.modules["transformers"] = None
from hispec_cli.app import run
for line in sys.stdin.read().splitlines():
    os.environ |= {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    try:
        run([])
    except SystemExit:
        print("--")
"""
    asked = {
        "hispec generate --profile tin": ["tiny", "tiny-adaptive"],
        "hispec doctor --profile llama-3b-8": ["llama-3b-8b-70b"],
        "hispec chat --profile qwen3-1": ["qwen3-1.7b", "qwen3-14b"],
        "hispec chat --session co": ["cooking"],
        "hispec bench --dataset mt": ["mt_bench"],
        "hispec calibrate --dataset gs": ["gsm8k"],
        "hispec bench --format-as prom": ["prompts"],
        "hispec bench --arms hf,hispec,hf-": ["hf,hispec,hf-early-exit", "hf,hispec,hf-assisted"],
        "hispec generate --dtype fl": ["float32", "float16"],
        "hispec fit-exits --device cu": ["cuda"],
        "hispec gen": ["generate"],
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(asked),
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "_HISPEC_COMPLETE": "complete_bash"},
    )
    assert done.returncode == 0, done.stderr
    answers = [answer.split() for answer in done.stdout.split("--\n")[:-1]]
    assert dict(zip(asked, answers, strict=True)) == asked
