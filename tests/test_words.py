"""The private words that the glossary replaces are refused: codespell finds them in names and in prose."""

import subprocess

import pytest

from tests.mutations import ROOT

REFUSED = ("judge", "guesses", "likeliest", "cure", "pace", "team", "dice", "manieth", "reckoned", "detours")


def codespell(text, folder):
    """Return the output of codespell, with the project's configuration, for a text."""
    path = folder / "text.py"
    path.write_text(text, encoding="utf-8")
    command = ["codespell", "--toml", str(ROOT / "pyproject.toml"), str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.parametrize("word", REFUSED)
def test_a_private_word_is_refused_in_prose_and_in_names(word, tmp_path):
    assert word in codespell(f"# what a {word} is\n", tmp_path)
    assert word in codespell(f"best_{word}_of = 1\n", tmp_path)


def test_the_glossarys_words_and_the_names_on_the_wire_are_accepted(tmp_path):
    text = 'level.verify(draft)  # throughput of the active levels\nrecord["judged"] = record["guesses"]\n'
    assert codespell(text, tmp_path) == ""
