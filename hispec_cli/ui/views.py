"""The choice of the view of an answer."""

import os
import stat
import sys
from typing import TYPE_CHECKING, Any, TextIO

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.events import Event
from hispec.metrics import Stats
from hispec_cli.options import Format, ViewOptions
from hispec_cli.ui.console import say, stderr
from hispec_cli.ui.live import SHARE, LiveView
from hispec_cli.ui.output import write
from hispec_cli.ui.panels import glyphs_for, outcome
from hispec_cli.ui.plain import JsonLinesView, JsonView, PlainView, View
from hispec_cli.ui.theme import Palette

if TYPE_CHECKING:
    from hispec.answer import Generation


def choose_view(options: ViewOptions, stats: Stats, share: float = SHARE, *, keep: bool = True) -> View:
    """Return the view that options ask for.

    Without them it is the live view where stderr is a terminal and stdout is one or a file, else plain text. What reads
    from a pipe may itself write to the terminal (`| tee`, `| less`), so there the live view has to be asked for.

    Args:
        options: the view options; see `ViewOptions`.
        stats: empty figures of the hierarchy.
        share: the largest share of the time that drawing may take.
        keep: whether the answer stays on the terminal; without it, the caller writes it there at the end.

    Raises:
        UsageError: the options contradict each other, as for `check_view`.
    """
    check_view(options)
    auto, live = options.format is Format.auto, options.live
    if auto and live is not False and _on_terminal() and (live or not _is_pipe(sys.stdout)):
        return LiveAnswer(options.palette, stats, share, keep)
    if not keep:
        return View()
    views: dict[Format, type[View]] = {Format.json: JsonView, Format.jsonl: JsonLinesView}
    return views.get(options.format, PlainView)()


def check_view(options: ViewOptions) -> None:
    """Refuse a live view where there cannot be one.

    Raises:
        UsageError: another format was asked for, or there is no terminal.
    """
    if options.live and options.format is not Format.auto:
        raise UsageError(f"--live and --format {options.format} exclude each other", "leave out one of them")
    if options.live and not _on_terminal():
        raise UsageError("--live needs a terminal at standard error", "leave out --live")


def report(stats: Stats) -> None:
    """Print a summary of the answer in one line, on a terminal only."""
    if sys.stderr.isatty():
        say(outcome(stats, glyphs_for(sys.stderr.encoding)))


def warn_if_cut_off(generation: "Generation") -> None:
    """Warn if an answer reached the maximum number of tokens before it matched its grammar."""
    if generation.complete is not False or generation.finish_reason != "length":
        return
    assert generation.grammar is not None
    what = "JSON" if generation.grammar.kind == "JSON schema" else generation.grammar.kind
    length = counted(len(generation.token_ids), "token")
    say(f"the answer was cut off at {length}, before its {what} was complete: raise --max-new-tokens", "yellow")


class LiveAnswer(View):
    """The live view on stderr, and the answer on stdout: the same terminal, or something else.

    Args:
        palette: the styles of tokens.
        stats: empty figures of the hierarchy.
        share: the largest share of the time that drawing may take.
        keep: whether the answer stays.
    """

    draft_text = True

    def __init__(self, palette: Palette, stats: Stats, share: float, keep: bool = True) -> None:
        together = _same_terminal()
        self._plain = PlainView() if keep and not together else View()
        answer = write if together else None
        self.live = LiveView(stderr(), stats, palette, answer=answer if keep else _nowhere, share=share)

    @property
    def stream(self) -> TextIO:
        """Return the terminal."""
        return sys.stderr

    def __enter__(self) -> "LiveAnswer":
        self.live.__enter__()
        return self

    def see(self, event: Event) -> None:
        """Write what became final, show what did not."""
        self._plain.see(event)
        self.live.see(event)

    def sleep(self, seconds: float) -> None:
        """Wait, after showing all events so far."""
        self.live.sleep(seconds)

    def finish(self, result: Any) -> None:
        """End the answer."""
        self._plain.finish(result)

    def break_off(self) -> None:
        """End the view of an answer that will not be complete."""
        self._plain.break_off()

    def __exit__(self, *_: object) -> None:
        self.live.close()


def _nowhere(_: str) -> None:
    """Write rows nowhere."""


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _same_terminal() -> bool:
    return sys.stdout.isatty() and os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())


def _is_pipe(stream: Any) -> bool:
    mode = os.fstat(stream.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
