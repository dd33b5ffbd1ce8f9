"""Figures are folded from events, by hand here."""

import pytest

from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.events import Committed, Drafted, Finished, Prefilled, Verified, to_record
from hispec.metrics import LevelStats, Stats, exit_name
from tests.support import fused_stack, hierarchy_of, random_model

EVENTS = [
    Prefilled(0.5, prompt_tokens=5, seconds=0.5),
    Committed(0.5, (7,), "a"),
    Drafted(0.6, "draft", (8,), seconds=0.1),
    Drafted(0.7, "draft", (9,), seconds=0.1),
    Verified(0.9, "intermediate", 2, 1, 3, seconds=0.2),
    Verified(1.3, "target", 2, 2, None, seconds=0.4),
    Committed(1.3, (8, 3), "bc"),
]


@pytest.fixture
def stats():
    stats = Stats.of(hierarchy_of(random_model(), 1, 2))
    for event in EVENTS:
        stats.see(event)
    return stats


def test_tokens_seconds_and_passes(stats):
    record = stats.to_record()
    assert (record["prompt_tokens"], record["new_tokens"], record["target_passes"]) == (5, 3, 2)
    assert record["seconds"] == pytest.approx(
        {"prefill": 0.5, "draft": 0.2, "intermediate": 0.2, "target": 0.4, "total": 1.3}
    )
    assert record["tokens_per_second"] == pytest.approx(3 / 1.3)
    assert record["tokens_per_target_pass"] == 1.5
    assert record["time_to_first_token_s"] == 0.5


def test_acceptance_is_counted_at_the_level_that_proposed(stats):
    draft, intermediate = stats.to_record()["levels"]
    assert (draft["proposed"], draft["accepted"], draft["acceptance_rate"]) == (2, 1, 0.5)
    assert (intermediate["proposed"], intermediate["accepted"], intermediate["acceptance_rate"]) == (2, 2, 1.0)


def test_no_drafts_are_not_bad_drafts():
    stats = Stats.of(hierarchy_of(random_model(), 1))
    assert stats.to_record()["levels"][0]["acceptance_rate"] is None


def test_a_level_of_a_copy_is_recorded_with_its_weights_and_the_name_of_the_target():
    target = fused_stack(random_model())
    copy = Level("draft", target.quantized("int4"), 2, weights="int4")
    stats = Stats.of(Hierarchy([copy, Level("intermediate", target, 3), Level("target", target, 4)]))
    first, second = stats.to_record()["levels"]
    assert (first["model"], first["exit_layer"], first["weights"]) == ("fused", 2, "int4")
    assert (second["model"], second["exit_layer"], "weights" in second) == ("fused", 3, False)
    assert exit_name(2, "int4") == "exit 2 int4" and exit_name(3) == "exit 3"


def test_records_are_plain_json_objects():
    assert to_record(EVENTS[4]) == {
        "event": "judged",
        "t": 0.9,
        "level": "intermediate",
        "proposed": 2,
        "accepted": 1,
        "correction": 3,
        "seconds": 0.2,
        "correction_text": "",
    }
    assert to_record(Finished(2.0, "eos")) == {"event": "finished", "t": 2.0, "finish_reason": "eos"}


def test_tokens_that_skip_a_level_count_for_the_level_that_wrote_them():
    stats = Stats([LevelStats("draft", "m", 1), LevelStats("intermediate", "m", 2)], "target")
    for event in (
        Drafted(0.0, "draft", (1, 2, 3)),
        Verified(0.0, "target", 3, 2, 9),
        Drafted(0.0, "draft", (4,)),
        Verified(0.0, "intermediate", 1, 1),
        Verified(0.0, "target", 1, 0, 8),
        Drafted(0.0, "intermediate", (5, 6)),
        Verified(0.0, "target", 2, 2),
    ):
        stats.see(event)
    assert [(level.proposed, level.accepted) for level in stats.levels] == [(4, 3), (3, 2)]
