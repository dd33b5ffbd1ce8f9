"""Ctrl-C is handled for a while, and restored afterwards."""

import signal

import pytest

from hispec_cli.ui.signals import ctrl_c, end_on_request, handled


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def ignored():
    """Ctrl-C is ignored outside, as where a shell starts a program in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_raises_while_it_is_wanted():
    with pytest.raises(KeyboardInterrupt), ctrl_c():
        press_ctrl_c()
    press_ctrl_c()


def test_the_first_ctrl_c_asks_and_the_second_raises():
    asked = []
    with pytest.raises(KeyboardInterrupt), ctrl_c(lambda: asked.append(True)):
        press_ctrl_c()
        assert asked == [True]
        press_ctrl_c()
    assert asked == [True]


def test_one_wish_to_end_is_no_error():
    asked = []
    with ctrl_c(lambda: asked.append(True)):
        press_ctrl_c()
    assert asked == [True]


def test_signals_are_handled_as_before_whatever_happened():
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as ended,
        handled({signal.SIGTERM: end_on_request, signal.SIGINT: signal.default_int_handler}),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
