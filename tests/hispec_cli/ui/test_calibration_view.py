"""The screen of a calibration, for made-up progress."""

import io
import random
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from hispec.budget import Budget
from hispec.calibration.recording import LevelSpec
from hispec.calibration.replay import Outcome
from hispec.calibration.run import Phase, Planned, Replayed, Timed
from hispec.calibration.search import PLAIN, Configuration, Score, SearchSpace
from hispec.calibration.timing import TimedAnswer, Timings
from hispec_cli.ui import calibration_view as calibration
from hispec_cli.ui.calibration_panels import (
    ASCII,
    FULL,
    SIXTEEN,
    UNICODE,
    agreement_rows,
    brief,
    finalist_rows,
    heat_map,
    joined,
    phases_row,
    row_name,
    screen,
)
from hispec_cli.ui.calibration_state import (
    ADAPTIVE,
    CandidateStatus,
    CellKey,
    DraftExit,
    TimedProgress,
    cell_of,
    initial,
    reduce,
)
from hispec_cli.ui.calibration_view import CalibrationView, summary

EVIL = "org/\x1b[2J\u202eevil\r"


def exit_(layer, head_size=0, model="m"):
    return LevelSpec(model, layer, head_size)


def space(exits=4, periods=(2, 8)):
    return SearchSpace(tuple(exit_(layer) for layer in range(1, exits + 1)), validate_every=tuple(periods))


def single(layer, period, head_size=0):
    return Configuration((exit_(layer, head_size),), (period,))


def scored(configuration, speed, texts=1):
    return Replayed(Score(configuration, Outcome(1000, 1000 / speed, 10), texts))


def told(*progress):
    return [TimedProgress(float(at), each) for at, each in enumerate(progress)]


def answers(speeds, prompts=6):
    """Timings of configurations at some speeds; every prompt takes its own time, the same for all."""
    timings = Timings(list(speeds))
    for one, speed in enumerate(speeds.values()):
        for prompt in range(prompts):
            timings.answers.append(TimedAnswer(one, prompt, 0, 10 + prompt, (10 + prompt) / speed, 0))
    return timings


def standings(state):
    return {
        (place.drafter.exit_layer, place.period): state.status(place)
        for place in (CellKey(drafter, period) for drafter in state.drafters for period in state.periods)
    }


REPLAYED = told(
    Phase("replay", 0.0),
    scored(PLAIN, 20),
    scored(single(1, 2), 50), scored(single(1, 8), 90), scored(single(2, 2), 60), scored(single(2, 8), 100),
    scored(single(3, 2), 30),
    scored(single(2, 8), 80, 4), scored(single(1, 8), 79, 4), scored(single(2, 2), 60, 4),
    scored(single(2, 8), 81, 10), scored(single(1, 8), 80, 10),
)  # fmt: skip


def test_cells_are_pruned_when_the_search_has_gone_on_without_them():
    state = reduce(initial(space(), 100), *REPLAYED[:6])
    known = standings(state)
    assert known[2, 8] is CandidateStatus.best and known[1, 2] is known[1, 8] is CandidateStatus.scored
    assert known[3, 2] is known[4, 8] is known[1, ADAPTIVE] is CandidateStatus.pending

    state = reduce(state, *REPLAYED[6:8])  # the second round has begun: nothing is pruned before it is over
    assert standings(state)[1, 8] is standings(state)[2, 2] is CandidateStatus.scored

    state = reduce(state, *REPLAYED[8:])
    known = standings(state)
    assert (known[2, 8], known[1, 8]) == (CandidateStatus.best, CandidateStatus.tied)
    assert known[2, 2] is CandidateStatus.scored  # of the second round, and the third goes on
    assert known[1, 2] is known[3, 2] is CandidateStatus.pruned

    state = reduce(state, TimedProgress(50, Phase("timing", 0.0)))
    assert standings(state)[2, 2] is CandidateStatus.pruned


def test_a_cell_shows_the_fastest_of_those_replayed_on_the_most_texts():
    other = Configuration((exit_(1), exit_(3)), (2, 8))
    smaller_head = single(1, 8, head_size=256)
    state = reduce(
        initial(space(), 100), *told(scored(single(1, 8), 90), scored(other, 95), scored(single(1, 8), 70, 4))
    )
    assert state.cells[cell_of(other)].speed == pytest.approx(70)
    state = reduce(state, *told(scored(smaller_head, 75, 4), scored(other, 60, 4)))
    assert state.cells[cell_of(other)].configuration == smaller_head
    assert state.scored == 5 and len(state.scores) == 3


def test_progress_told_together_or_one_by_one_gives_the_same_state():
    rng = random.Random(1)
    seen = told(
        Phase("costs", 0.0), Phase("costs", 1.0), Phase("traces", 0.5), *(each.progress for each in REPLAYED),
        Phase("timing", 0.0), Timed(answers({single(1, 8): 70, single(2, 8): 80}), [0, 1]), Phase("check", 1.0),
    )  # fmt: skip
    together = reduce(initial(space(), 100), *seen)
    state, at = initial(space(), 100), 0
    while at < len(seen):
        step = rng.randint(1, 3)
        before = state
        kept = (dict(before.cells), before.scored)
        state, at = reduce(state, *seen[at : at + step]), at + step
        assert (before.cells, before.scored) == kept
    assert state == together


def test_timing_decides_as_soon_as_there_is_some():
    finalists = {single(1, 8): 100.0, single(2, 8): 80.0, single(2, 2): 99.9, PLAIN: 20.0}
    state = reduce(initial(space(), 100), *REPLAYED, TimedProgress(60, Phase("timing", 0.0)))
    empty = reduce(
        state, TimedProgress(61, Timed(Timings(list(finalists)), [0, 1, 2, 3]))
    )  # several processes: none to see yet
    assert standings(empty)[2, 8] is CandidateStatus.best
    assert [one.speed for one in empty.finalists] == [None] * 4

    timings = answers(finalists)
    for at, answer in enumerate(timings.answers):
        if answer.configuration == 2:  # noise: it may be as fast
            seconds = answer.seconds * (0.9 if at % 2 else 1.1)
            timings.answers[at] = TimedAnswer(2, answer.prompt, 0, answer.tokens, seconds, 0)
    state = reduce(state, TimedProgress(62, Timed(timings, [0, 1, 2])))
    order = [(one.configuration, one.status) for one in state.finalists]
    assert order[-2:] == [(single(2, 8), CandidateStatus.scored), (PLAIN, CandidateStatus.pruned)]
    assert {status for _, status in order[:2]} == {CandidateStatus.best, CandidateStatus.tied}
    known = standings(state)
    assert known[2, 8] is CandidateStatus.scored and known[1, 2] is CandidateStatus.pruned
    assert {known[1, 8], known[2, 2]} == {CandidateStatus.best, CandidateStatus.tied}


def test_one_that_was_dropped_is_not_the_best_however_easy_its_prompts_were():
    timings = answers({single(1, 8): 100.0, single(2, 8): 80.0})
    state = reduce(initial(space(), 100), *REPLAYED, *told(Phase("timing", 0.0), Timed(timings, [1])))
    assert state.finalists[0].configuration == single(2, 8)
    assert [one.status for one in state.finalists] == [CandidateStatus.best, CandidateStatus.pruned]


def test_a_state_does_not_change_with_what_is_timed_later():
    timings, left = answers({single(1, 8): 100.0, single(2, 8): 80.0}, prompts=2), [0, 1]
    state = reduce(initial(space(), 100), *told(Phase("timing", 0.0), Timed(timings, left)))
    timings.answers.append(TimedAnswer(0, 2, 0, 10, 5.0, 0))
    left.pop()
    assert [one.answers for one in state.finalists] == [2, 2] and state.alive == (0, 1)


def timed_state(**changes):
    state = reduce(initial(space(**changes), 100), *REPLAYED, TimedProgress(60, Phase("timing", 0.0)))
    return reduce(
        state, TimedProgress(62, Timed(answers({single(1, 8): 100.0, single(2, 8): 80.0, PLAIN: 20.0}), [0, 1]))
    )


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize(("width", "height"), [(59, 23), (79, 23), (139, 30), (40, 12)])
def test_every_screen_fits_and_reads_without_colour(width, height, glyphs):
    for state in (
        initial(space(), 100), reduce(initial(space(), 100), *REPLAYED), timed_state(),
        timed_state(exits=48, periods=(2, 8, *range(20, 60))),
    ):  # fmt: skip
        rows = screen(state, 62.0, "m", width, height, glyphs, FULL)
        assert len(rows) <= height and all(cell_len(row.plain) <= width for row in rows)
        if glyphs is ASCII:
            assert all(row.plain.isascii() for row in rows)
    text = "\n".join(row.plain for row in screen(timed_state(), 62.0, "m", width, height, glyphs, FULL))
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith(("timed", glyphs.best)))
    assert lines[glyphs.best].startswith(("fastest", "exit 1"))
    cells = heat_map(reduce(initial(space(), 100), *REPLAYED), "m", width, 20, glyphs, FULL)
    by_exit = {row.plain[:6]: row.plain[6:].split() for row in cells[1:5]}
    assert by_exit["exit 1"] == [f"62{glyphs.pruned}", f"99{glyphs.tied}", glyphs.pending]
    assert by_exit["exit 2"] == ["74", f"100{glyphs.best}", glyphs.pending]
    assert by_exit["exit 4"] == [glyphs.pending] * 3
    assert ("the target alone: 25%" in cells[-1].plain) == (width >= 79)


def test_where_neighbours_share_a_cell_the_better_one_is_shown():
    state = reduce(
        initial(space(exits=40, periods=range(1, 41)), 100), *told(scored(single(37, 31), 50), scored(single(3, 3), 10))
    )
    rows = [row.plain for row in heat_map(state, "m", 59, 12, UNICODE, FULL)]
    assert len(rows) <= 12
    assert next(row for row in rows if "100★" in row).startswith("exit 37-40")
    assert any(" 20 " in row for row in rows)


@pytest.mark.parametrize("ramp", [FULL, SIXTEEN], ids=["full", "sixteen"])
def test_the_fastest_is_told_apart_without_colour_and_colours_follow_speed(ramp):
    text = joined(heat_map(reduce(initial(space(), 100), *REPLAYED), "m", 79, 20, UNICODE, ramp))
    grounds = {
        text.plain[span.start : span.end].strip(): span.style.bgcolor for span in text.spans if span.style.bgcolor
    }
    assert grounds["99="] == grounds["100★"] == ramp.styles[4].bgcolor
    assert grounds["37↓"] == ramp.styles[0].bgcolor and grounds["62↓"] == ramp.styles[1].bgcolor
    out = io.StringIO()
    Console(file=out, force_terminal=True, no_color=True, width=80).print(text)
    assert "100★" in out.getvalue() and "[38;" not in out.getvalue() and "[48;" not in out.getvalue()


@pytest.mark.parametrize("style", FULL.styles, ids=str)
def test_figures_stand_out_from_their_cells(style):
    def luminance(color):
        parts = [part / 255 for part in color.get_truecolor()]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_phases_and_the_time_that_is_left():
    state = reduce(
        initial(space(), 100),
        TimedProgress(0, Phase("costs", 0.0)),
        TimedProgress(12, Phase("traces", 0.0)),
        TimedProgress(20, Phase("traces", 0.5)),
    )
    assert phases_row(state, 20, 79, UNICODE).plain == "✓ costs 12 s  ▸ traces 50%  · replay  · timing  · check"
    assert state.progress_of("traces", 33) == pytest.approx(0.75)  # 12 s to 40 s are its: it will be cut off then
    shown = [row.plain for row in screen(state, 33, "m", 79, 23, UNICODE, FULL)]
    assert shown[0] == "0:33 of 1:40, at most 1:07 left · recording exits"
    assert "beyond the budget" in screen(state, 101, "m", 79, 23, UNICODE, FULL)[0].plain


def test_names_from_outside_are_harmless():
    specs = (LevelSpec(EVIL, 1), LevelSpec(EVIL, 2))
    chosen = Configuration((LevelSpec(EVIL, 1),), (8,))
    state = reduce(
        initial(SearchSpace(specs), 10),
        *told(Phase("timing", 0), scored(chosen, 9), Timed(answers({chosen: 9.0}), [0])),
    )
    rows = screen(state, 1.0, "m", 139, 40, UNICODE, FULL)
    rows += agreement_rows({**dict.fromkeys(specs, 0.5), LevelSpec("m", 4): 1.0}, "m", 79, UNICODE)
    text = "\n".join(row.plain for row in rows)
    assert "evil" in text and text.replace("\n", "").isprintable()


def test_configurations_in_few_words():
    chain = (exit_(1), exit_(2, 256))
    assert brief(Configuration(chain, (2, 12)), "m") == "exit 1 (2) > exit 2/256 (12)"
    assert brief(Configuration(chain, (), (3, 4)), "m") == "n-grams (4) > exit 1 > exit 2/256, adaptive"
    assert brief(Configuration((), (4,), (3, 8)), "m") == "n-grams (8) > target (4)"
    assert brief(PLAIN, "m") == "the target alone"
    copies = (LevelSpec("m", 1, 256, "int4"), LevelSpec("m", 16, weights="int4"))
    assert brief(Configuration(copies, (2, 12)), "m") == "exit 1 int4/256 (2) > exit 16 int4 (12)"
    assert brief(Configuration((LevelSpec("org/other", 6),), (4,)), "m") == "exit 6 of org/other (4)"


def test_agreement_is_drawn_by_exit_with_a_column_for_each_head():
    agreement = {exit_(1): 0.5, exit_(1, 256): 0.45, exit_(2): 1.0, exit_(2, 256): 0.9, exit_(4): 1.0}
    head, first, second = (row.plain for row in agreement_rows(agreement, "m", 79, UNICODE))
    assert head.split()[-3:] == ["whole", "256", "tokens"]
    assert first.split()[-2:] == ["50.0%", "45.0%"] and second.split()[-2:] == ["100.0%", "90.0%"]
    assert second.count("━") == pytest.approx(2 * first.count("━"), abs=1) and second.count("━") > 20


def test_exits_of_copies_have_rows_of_their_own():
    copy = LevelSpec("m", 2, weights="int4")
    agreement = {exit_(2): 0.75, copy: 0.5, exit_(4): 1.0, LevelSpec("m", 4, weights="int4"): 0.98}
    rows = [row.plain.split("━")[0].strip() for row in agreement_rows(agreement, "m", 79, UNICODE)]
    assert rows[1:] == ["exit 2", "exit 2 int4", "exit 4 int4"]
    drafters = [DraftExit.of(spec) for spec in (exit_(2), exit_(3), copy, LevelSpec("m", 4, weights="int4"))]
    assert row_name(drafters[:2], "m", UNICODE) == "exit 2-3"
    assert row_name(drafters[2:3], "m", UNICODE) == "exit 2 int4"
    assert row_name(drafters[2:], "m", UNICODE) == "exit 2-4 int4"
    assert row_name(drafters[1:3], "m", UNICODE) == "exit 3-2 int4"
    state = reduce(initial(replace(space(2), copies=(copy,)), 10), *told(scored(Configuration((copy,), (8,)), 9.0)))
    assert state.cells[CellKey(DraftExit.of(copy), 8)].speed == pytest.approx(9.0)
    assert DraftExit.of(exit_(2)) != DraftExit.of(copy)


def test_the_finalists_show_prediction_and_interval():
    rows = [row.plain for row in finalist_rows(timed_state().finalists, "m", 99, UNICODE)]
    assert rows[0].split() == ["timed", "tokens/s", "95", "%", "replay"]
    assert rows[1].startswith("★ exit 1") and rows[1].split()[-3:] == ["100.0", "100-100", "80.0"]
    assert rows[3].startswith("↓ the target alone")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(calibration, "monotonic", clock := Clock())
    for module in ("hispec.budget", "hispec_cli.ui.progress"):
        monkeypatch.setattr(f"{module}.monotonic", clock)
    return clock


JOB = SimpleNamespace(space=space(), budget=Budget(100.0, began=0.0), target="m")


def test_without_a_terminal_it_is_a_line_for_each_phase_and_one_every_half_minute(clock, capfd):
    with CalibrationView(JOB) as view:
        for at, progress in (
            (0, Phase("costs", 0.0)), (31, Phase("costs", 0.5)), (32, Phase("costs", 0.6)), (40, Phase("replay", 0.0)),
            (41, scored(PLAIN, 20)), (42, scored(single(2, 8), 80)), (60, Phase("timing", 0.0)),
            (65, Timed(answers({single(2, 8): 80.0, PLAIN: 20.0}), [0])), (80, Phase("check", 0.0)),
        ):  # fmt: skip
            clock.now = float(at)
            view.see(progress)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" s  ")[0].strip() for line in lines] == ["0", "31", "40", "60", "60", "80", "80"]
    assert "2 replays of 2 configurations, the fastest: exit 2 drafts 8, 80 tokens/s" in lines[3]
    assert "12 answers timed, 1 of 2 configurations left, the fastest: exit 2 drafts 8" in lines[5]
    assert summary(view.state, "m")


def test_other_processes_say_nothing(capfd):
    with CalibrationView(JOB, quiet=True) as view:
        view.see(Phase("costs", 0.0))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("spent", "plan", "said"),
    [
        (0, Planned(256, 9.0), []),
        (0, Planned(None, 9.0), []),
        (60, Planned(None, 99.0), ["budget of 100 s cannot be kept: 60 s have gone by, and the least"]),
        (0, Planned(93, 9.0), ["answers are cut to 93 tokens"]),
        (
            50,
            Planned(16, 99.0),
            ["budget of 100 s cannot be kept: 50 s have gone by, and the least", "cut to 16 tokens"],
        ),
        (
            130,
            Planned(16, 99.0),
            ["budget of 100 s cannot be kept: 130 s have gone by; the minimum", "cut to 16 tokens"],
        ),
    ],
)
def test_what_a_budget_costs_is_said_once_and_before_it_is_spent(clock, capfd, spent, plan, said):
    clock.now = float(spent)
    with CalibrationView(SimpleNamespace(**vars(JOB), max_new_tokens=256)) as view:
        view.see(plan)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True)), lines


def test_on_a_terminal_it_draws_seldom_and_only_when_told(clock, monkeypatch):
    screen_ = io.StringIO()
    monkeypatch.setattr(calibration, "stderr", lambda: Console(file=screen_, force_terminal=True, width=80, height=24))
    drawn = []
    real = calibration.screen

    def draw(*arguments):
        drawn.append(clock.now)
        clock.now += 0.03  # what it costs
        return real(*arguments)

    monkeypatch.setattr(calibration, "screen", draw)
    with CalibrationView(JOB) as view:
        view.see(Phase("replay", 0.0))
        written = screen_.tell()
        for _ in range(2000):
            clock.now += 0.005
            view.see(scored(single(1, 8), 50))
        assert screen_.tell() > written
        assert all(b - a >= calibration.INTERVAL for a, b in pairwise(drawn))
        assert 2 <= len(drawn) <= calibration.SHARE * clock.now / 0.03 + 2
        view.see(Phase("timing", 0.0))  # a new phase is shown at once
        assert drawn[-1] == pytest.approx(clock.now - 0.03)
        assert view.state.scored == 2000
    assert "exit 1" in screen_.getvalue()


def test_a_phase_beyond_its_time_is_as_far_as_it_says():
    state = reduce(
        initial(space(), 100), TimedProgress(50.0, Phase("costs", 0.0)), TimedProgress(51.0, Phase("costs", 0.3))
    )
    assert state.progress_of("costs", 54.0) == pytest.approx(4 / 7.5)  # 15 % of what loading has left
    assert state.progress_of("costs", 70.0) == 0.3
