"""The list of mutations keeps up with the code: each still changes what it names, and may be noticed by tests that exist."""

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT

SOURCES, TESTS = ROOT / "core" / "hispec" / "decoding", ROOT / "tests" / "hispec" / "decoding"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_the_code_that_it_names(mutation):
    text = (SOURCES / mutation.file).read_text(encoding="utf-8")
    assert mutation.old in text
    ast.parse(text.replace(mutation.old, mutation.new))
    assert mutation.new != mutation.old
    assert (TESTS / mutation.tests).is_file()
