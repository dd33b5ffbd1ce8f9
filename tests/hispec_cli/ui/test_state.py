"""The reducer: what the view shows at known points of a recorded run, and of runs of other shapes."""

import random

import pytest

from hispec.events import Committed, Drafted, Finished, Prefilled, Verified
from hispec.metrics import LevelStats, Stats
from hispec_cli.ui.replay import read_trace
from hispec_cli.ui.state import TokenStatus, ViewState, reduce
from tests.hispec_cli.ui.conftest import ANSWER, TRACE

SIGNS = {TokenStatus.draft: "?", TokenStatus.accepted: "+", TokenStatus.correction: "!", TokenStatus.struck: "-"}


def begin(*levels):
    return ViewState(Stats([LevelStats(name, "model", number + 1) for number, name in enumerate(levels)], "target"))


def shown(state):
    """Settled text, then every recent token with the sign of its standing."""
    return state.settled, [token.text + SIGNS.get(token.status, "") for token in state.recent]


@pytest.fixture(scope="module")
def recording():
    return read_trace(TRACE)


@pytest.mark.parametrize(
    ("count", "settled", "recent", "cycle"),
    [
        (2, "6", [], ()),
        (4, "6", [" *?", " ?"], ("pp", "", "")),
        (5, "6", [" *+", " +"], ("pp", "aa", "")),
        (
            *(14, "6", [" *+", " +", "2+", "4+", " =+", " +", "1+", "8-", "2!"]),
            ("pppppppp", "aaaaaaac", ""),
        ),
        (
            *(25, "6 * 24 = 1", ["2-", "4-", "\n-", "2-", "4-", " +-", "4!"]),
            ("pppppppppppppp", "aaaaaaaccdacaa", "aaaaaaacddddd"),
        ),
        (26, "6 * 24 = 1", ["2-", "4-", "\n-", "2-", "4-", " +-", "4!", "\n?"], ("p", "", "")),
        (48, "6 * 24 = 144\n24 + 144 = 1", [], ("pppppppppppppp", "cdacaaacacaacd", "aaaaaaaaaaaa")),
        (68, ANSWER, [], ("ppppppppppp", "cdcdaaaaaaa", "aaaaaaaaa")),
    ],
)
def test_known_points_of_a_recorded_run(recording, count, settled, recent, cycle):
    state = reduce(ViewState(recording.stats), *recording.events[:count])
    assert shown(state) == (settled, recent)
    assert state.cycle == cycle


def test_the_figures_are_the_engines_own(recording):
    state = reduce(ViewState(recording.stats), *recording.events)
    assert state.stats.to_record() == recording.result.record["stats"]
    assert (state.validated, state.finish_reason) == (recording.result.record["text"], "eos")


def test_one_by_one_or_together_gives_the_same_and_changes_no_earlier_state(recording):
    states = [ViewState(recording.stats)]
    for event in recording.events:
        states.append(reduce(states[-1], event))
    rng = random.Random(0)
    for _ in range(50):
        start, end = sorted(rng.choices(range(len(states)), k=2))
        assert reduce(states[start], *recording.events[start:end]) == states[end]
    assert states[0] == ViewState(recording.stats) and states[0].stats.new_tokens == 0


def test_validated_text_only_grows_and_settled_text_is_part_of_it(recording):
    state, before = ViewState(recording.stats), ""
    for event in recording.events:
        state = reduce(state, event)
        assert state.validated.startswith(before) and state.validated.startswith(state.settled)
        before = state.validated


def test_struck_tokens_vanish_after_a_quarter_of_a_second():
    events = [Drafted(0.0, "draft", (1,), texts=("a",)), Verified(0.1, "middle", 1, 0, 2, correction_text="b")]
    state = reduce(begin("draft", "middle"), *events)
    assert shown(state) == ("", ["a-", "b!"])
    assert shown(reduce(state, Drafted(0.3, "draft", (3,), texts=("c",)))) == ("", ["a-", "b!", "c?"])
    assert shown(reduce(state, Drafted(0.4, "draft", (3,), texts=("c",)))) == ("", ["b!", "c?"])


def test_the_targets_own_correction_is_marked_for_a_while_although_it_is_final():
    events = [Drafted(0.0, "draft", (1,), texts=("a",)), Verified(0.1, "target", 1, 0, 2, correction_text="b")]
    state = reduce(begin("draft"), *events, Committed(0.1, (2,), "b"))
    assert shown(state) == ("", ["a-", "b!"]) and state.validated == "b"
    assert shown(reduce(state, Drafted(0.5, "draft", (3,), texts=("c",)))) == ("b", ["c?"])


def test_four_exits():
    state = reduce(
        begin("one", "two", "three"),
        Drafted(0, "one", (1,), texts=("a",)),
        Drafted(0, "one", (2,), texts=("b",)),
        Verified(0, "two", 2, 1, 3, correction_text="c"),
        Verified(0, "three", 2, 2),
        Drafted(0, "one", (4,), texts=("d",)),
    )
    assert shown(state) == ("", ["a+", "b-", "c+", "d?"])
    assert state.cycle == ("ppp", "ac", "aa", "")
    state = reduce(state, Verified(0, "target", 3, 3), Committed(0, (1, 3, 4), "acd"))
    assert state.validated == "acd" and state.closed and state.cycle[-1] == "aaa"


def test_n_grams_and_a_target_that_writes_alone():
    state = reduce(begin("guesses"), Prefilled(0, 5), Committed(0, (1,), "a"))
    state = reduce(state, Drafted(0, "target", (2,), texts=("b",)), Committed(0, (2,), "b"))
    assert shown(state) == ("ab", []) and state.stats.target_passes == 2
    state = reduce(state, Drafted(0, "guesses", (3, 4), texts=("c", "d")), Verified(0, "target", 2, 2))
    assert state.cycle == ("pp", "aa")
    alone = reduce(begin(), Prefilled(0, 5), Committed(0, (1,), "a"), Drafted(0, "target", (2,), texts=("b",)))
    assert reduce(alone, Committed(0, (2,), "b")).cycle == ("p",)


def test_text_that_may_become_a_stop_text_is_held_and_then_cut():
    events = [Drafted(0, "draft", (1, 2), texts=("a#", "#")), Verified(0, "target", 2, 2), Committed(0, (1, 2), "a")]
    state = reduce(begin("draft"), *events)
    assert (state.validated, state.held) == ("a", "##")
    freed = reduce(
        state, Drafted(0, "draft", (3,), texts=("b",)), Verified(0, "target", 1, 1), Committed(0, (3,), "##b")
    )
    assert (freed.validated, freed.held) == ("a##b", "")
    cut = reduce(state, Drafted(0, "draft", (3,), texts=("#",)), Verified(0, "target", 1, 1), Committed(0, (3,), ""))
    assert reduce(cut, Finished(0, "stop")).validated == "a"


def test_a_verifiers_bonus_stands_as_what_it_accepted():
    drafted = Drafted(0, "draft", (1,), texts=("a",))
    state = reduce(begin("draft", "middle"), drafted, Verified(0, "middle", 1, 1, 5, correction_text="b"))
    assert shown(state) == ("", ["a+", "b+"])
    state = reduce(state, Verified(0, "target", 2, 2, 6, correction_text="c"), Committed(0, (1, 5, 6), "abc"))
    assert state.validated == "abc"
    assert tuple(state.cycle) == ("p", "aa", "aaa")


def test_the_engines_text_wins_over_the_texts_of_drafts():
    events = [Drafted(0, "draft", (1, 2), texts=("x", "y")), Verified(0, "target", 2, 2), Committed(0, (1, 2), "é")]
    assert reduce(begin("draft"), *events).validated == "é"


def test_an_interrupted_run_shows_nothing_that_was_not_validated():
    state = reduce(begin("draft"), Committed(0, (1,), "a"), Drafted(0, "draft", (2,), texts=("b",)))
    state = reduce(state, Finished(0, "interrupted"))
    assert (state.settled, state.recent, state.finish_reason) == ("a", (), "interrupted")


@pytest.mark.parametrize(
    "events",
    [
        [Drafted(0, "nobody", (1,), texts=("a",))],
        [Drafted(0, "draft", (1, 2), texts=("a",))],
        [Verified(0, "target", 1, 1)],
        [Drafted(0, "draft", (1,), texts=("a",)), Verified(0, "target", 1, 2)],
        [Drafted(0, "draft", (1,), texts=("a",)), Verified(0, "target", 1, -1, 5)],
        [Drafted(0, "draft", (1,), texts=("a",)), Verified(0, "target", 1, 0)],
        [Drafted(0, "draft", (1,), texts=("a",)), Verified(0, "target", 0, 0)],
        [Drafted(0, "draft", (1,), texts=("a",)), Committed(0, (1, 2), "ab")],
        [Finished(0, "eos"), Committed(0, (1,), "a")],
    ],
)
def test_events_that_cannot_follow_are_refused(events):
    with pytest.raises(ValueError, match=r"."):
        state = begin("draft")
        for event in events:
            state = reduce(state, event)
