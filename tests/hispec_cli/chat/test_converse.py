"""The loop around a chat, with Ctrl-C where no keyboard could place it surely."""

import signal
from types import SimpleNamespace

from hispec_cli.chat.chat import converse


def test_ctrl_c_between_answers_does_nothing_and_in_one_stops_it(capsys):
    inputs, taken = iter(["slow", "quick"]), []

    def read():
        signal.raise_signal(signal.SIGINT)  # as the line editor begins
        text = next(inputs, None)
        if text is None:
            raise EOFError
        return text

    def take(text):
        taken.append(text)
        if text == "slow":
            signal.raise_signal(signal.SIGINT)
            taken.append("not stopped")

    before = signal.getsignal(signal.SIGINT)
    converse(SimpleNamespace(take=take, interrupted=False), read)
    assert taken == ["slow", "quick"]
    assert "stopped at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
