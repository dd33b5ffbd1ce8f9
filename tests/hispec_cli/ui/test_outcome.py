"""The line on a finished answer says how it went, and whether speculation paid."""

import pytest

from hispec.metrics import LevelStats, Stats
from hispec_cli.ui.panels import outcome

DRAFT = LevelStats("draft", "model", 2)


@pytest.mark.parametrize(
    ("levels", "tokens", "passes", "told"),
    [([DRAFT], 60, 60, True), ([DRAFT], 60, 20, False), ([DRAFT], 8, 8, False), ([], 60, 60, False)],
    ids=["alone", "paid", "too short to tell", "asked for"],
)
def test_it_says_where_the_target_wrote_alone(levels, tokens, passes, told):
    line = outcome(Stats(levels, "target", new_tokens=tokens, target_passes=passes))
    assert ("speculation did not pay here: the target wrote alone" in line) == told
    assert f"{tokens} tokens" in line and f"{tokens / passes:.2f} tokens per target pass" in line
