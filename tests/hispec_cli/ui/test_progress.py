"""The times of plain progress lines, and their estimate of the time left."""

import pytest

from hispec_cli.ui import progress
from hispec_cli.ui.progress import Display, LineTimer, time_left


@pytest.fixture
def clock(monkeypatch):
    times = {"now": 0.0}
    monkeypatch.setattr(progress, "monotonic", lambda: times["now"])
    return times


def test_a_line_is_due_after_every_tenth(clock):
    line_timer = LineTimer()
    due = [percent for percent in range(1, 101) if line_timer.due(percent / 100)]
    assert due == list(range(10, 101, 10))


def test_a_line_is_due_after_thirty_seconds_whatever_is_done(clock):
    line_timer, due = LineTimer(), []
    for second in range(100):
        clock["now"] = second
        if line_timer.due():
            due.append(second)
    assert due == [30, 60, 90]


def test_news_are_due_at_once_and_begin_the_timer_again(clock):
    line_timer = LineTimer()
    clock["now"] = 29
    assert line_timer.due(0.05, news=True)
    clock["now"] = 58
    assert not line_timer.due(0.14)
    assert line_timer.due(0.15)


def test_the_end_is_due_once_however_small_the_last_step_was(clock):
    line_timer = LineTimer(0.95)
    assert not line_timer.due(0.99)
    assert line_timer.due(1.0)
    assert not line_timer.due(1.0)
    assert not LineTimer(1.0).due(1.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "time left unknown"),
        (0.4, "about 0 s left"),
        (59.4, "about 59 s left"),
        (59.6, "about 1 min 00 s left"),
        (3725, "about 62 min 05 s left"),
    ],
)
def test_the_time_left_in_words(seconds, said):
    assert time_left(seconds) == said


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")


def test_what_is_drawn_is_stopped_by_an_error_too():
    drawn = Recorder()
    with pytest.raises(KeyboardInterrupt), Display(drawn):
        assert drawn.calls == ["start"]
        raise KeyboardInterrupt
    assert drawn.calls == ["start", "stop"]
    with Display(None):
        pass
