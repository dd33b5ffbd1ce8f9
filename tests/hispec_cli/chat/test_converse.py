"""The loop around a chat, with Ctrl-C where no keyboard could place it surely."""

import signal

from hispec_cli.commands.chat.loop import converse


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
        return False

    before = signal.getsignal(signal.SIGINT)
    converse(take, read)
    assert taken == ["slow", "quick"]
    assert "stopped at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
