"""Measures the cost of the live view: decoding with the view on and off, on the same loaded weights.

Both write to a pseudo-terminal of 100 columns that a process of its own empties, as a terminal would: the view its
frames, the other one plain validated text. Every question is answered both ways before the next, the order turning,
round by round. Three clocks are compared: the wall's, around the whole answer up to the end of the last drawing; the
thread's processor time over the same, which other load on the machine disturbs less; and the engine's own seconds,
which drawing must not touch. The 95 % intervals are a bootstrap over questions.
"""

import argparse
import os
import pty
import subprocess
import termios
from functools import partial
from time import perf_counter, thread_time
from typing import Any

import torch
from common import environment, held_out_questions, interval95, save
from rich.console import Console

from hispec import Engine
from hispec.events import Committed, Finished
from hispec_cli.ui.live import LiveView

WARM_UP = 3
COLUMNS = 100


def answer(engine: Engine, question: str, console: Console, live: bool) -> tuple[float, ...]:
    """Answer one question: tokens, then wall-clock, processor and engine seconds."""
    began, worked = perf_counter(), thread_time()
    events = engine.stream(question, draft_text=live)
    if live:
        with LiveView(console, engine.new_stats()) as view:
            for event in events:
                view.see(event)
    else:
        for event in events:
            if isinstance(event, Committed):
                console.file.write(event.text)
                console.file.flush()
    wall, processor = perf_counter() - began, thread_time() - worked
    assert isinstance(event, Finished)
    return event.result.stats.new_tokens, wall, processor, event.result.stats.total_seconds


def relative_speed(rows: Any, clock: int) -> float:
    """Return pooled tokens per second with the view over those without, by one of the clocks."""
    on, off = ((sum(row[way][0] for row in rows), sum(row[way][clock] for row in rows)) for way in ("on", "off"))
    return float((on[0] / on[1]) / (off[0] / off[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="view-cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile(args.profile)
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, COLUMNS))
    reader = subprocess.Popen(["cat"], stdin=controller, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ["TERM"] = "xterm-256color"
    os.close(controller)
    questions = held_out_questions(args.questions + WARM_UP)
    rows: list[dict[str, tuple[float, ...]]] = []
    with os.fdopen(terminal, "w", encoding="utf-8") as file:
        console = Console(file=file, force_terminal=True, width=COLUMNS, height=24, markup=False, highlight=False)
        for turn in range(args.rounds):
            for number, question in enumerate(questions):
                ways = ("on", "off") if (number + turn) % 2 else ("off", "on")
                row = {way: answer(engine, question, console, way == "on") for way in ways}
                if number < WARM_UP:
                    continue
                if turn == 0:
                    rows.append({"on": (0.0,) * 4, "off": (0.0,) * 4})
                kept = rows[number - WARM_UP]
                for way, figures in row.items():
                    kept[way] = tuple(a + b for a, b in zip(kept[way], figures, strict=True))
    reader.wait()
    record: dict[str, Any] = {"profile": args.profile, "questions": args.questions, "rounds": args.rounds}
    for clock, name in ((1, "wall_clock"), (2, "processor"), (3, "engine")):
        speeds = {way: sum(row[way][0] for row in rows) / sum(row[way][clock] for row in rows) for way in ("off", "on")}
        record[name] = {
            "tokens_per_second": {way: round(speed, 1) for way, speed in speeds.items()},
            "relative_speed_with_view": round(relative_speed(rows, clock), 4),
            "ci95": [round(value, 4) for value in interval95(rows, partial(relative_speed, clock=clock))],
        }
    save(args.name, record | {"environment": environment(args.threads)})


if __name__ == "__main__":
    main()
