"""stderr: messages for people, coloured where a person sees them. Rich reads NO_COLOR and FORCE_COLOR itself."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.text import Text

from hispec_cli.ui.safe_text import visible


def choose_color(choice: str) -> str:
    """Make every console obey `--color`: never and always win over the environment, auto leaves it alone."""
    if choice == "never":
        os.environ["NO_COLOR"] = "1"
        os.environ.pop("FORCE_COLOR", None)
    elif choice == "always":
        os.environ["FORCE_COLOR"] = "1"
        os.environ.pop("NO_COLOR", None)
    return choice


def forget_impossible_size() -> None:
    """Drop values of COLUMNS and LINES that no terminal has, so that rich uses the terminal's own size."""
    for name, least in (("COLUMNS", 10), ("LINES", 2)):
        text = os.environ.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text) >= least):
            os.environ.pop(name, None)


class _Stderr(Console):
    def on_broken_pipe(self) -> None:
        """Do nothing: the answer and the exit code are unaffected."""
        self.quiet = True

    def _check_buffer(self) -> None:
        """Write the buffer; a full disk behind stderr is ignored like a closed pipe."""
        try:
            super()._check_buffer()
        except OSError:
            self.quiet = True
            self._buffer.clear()


class _SteadyStderr(_Stderr):
    def show_cursor(self, show: bool = True) -> bool:
        """Keep the cursor visible: a process that is killed for lack of memory could not restore it."""
        return False


def stderr(*, steady: bool = False) -> Console:
    """Return a console on stderr that marks nothing up by itself; a steady one never hides the cursor."""
    kind = _SteadyStderr if steady else _Stderr
    return kind(file=sys.stderr, markup=False, highlight=False, soft_wrap=True)


def breaking_width(console: Console) -> int | None:
    """Return the width at which the terminal breaks rows if it is the width that rows are made for, else None."""
    with suppress(OSError, ValueError):
        if os.get_terminal_size(console.file.fileno()).columns == console.width:
            return console.width
    return None


def say(message: str, style: str = "dim", console: Console | None = None) -> None:
    """Print one message for the person at the terminal.

    Args:
        message: the text of the message.
        style: its colour.
        console: the console on which something is being drawn, which continues below the message.
    """
    (console or stderr()).print(Text(visible(message), style))


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of Python on one line, without the source line that it comes from."""
    say(_one_line(f"warning: {message}"), "yellow")


def report_error(message: str, hint: str | None) -> None:
    """Print the message on one line, and the hint on the next."""
    lines = Text.assemble(("error: ", "bold red"), _one_line(message))
    if hint is not None:
        lines.append_text(Text.assemble("\n", ("hint: ", "bold"), _one_line(hint)))
    stderr().print(lines)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))
