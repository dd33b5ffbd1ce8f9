"""Counts in sentences."""

import pytest

from hispec.counts import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "token", "0 tokens"),
        (1, "token", "1 token"),
        (2, "token", "2 tokens"),
        (1319, "row", "1,319 rows"),
        (2, "pass", "2 passes"),
        (2, "row of text", "2 rows of text"),
        (-1, "token", "-1 tokens"),
    ],
)
def test_the_noun_is_in_the_number_of_the_count(count, noun, said):
    assert counted(count, noun) == said
