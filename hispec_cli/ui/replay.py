"""Plays what `--trace` recorded, without a model. A trace may come from anywhere, so nothing in it is taken on trust."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hispec.errors import UsageError
from hispec.events import Committed, Drafted, Event, Finished, FinishReason, Prefilled, Verified
from hispec.metrics import LevelStats, Stats
from hispec_cli.ui.state import ViewState, reduce

_T = TypeVar("_T")
_LONGEST = 1e6
"""Seconds; no recording is longer."""


@dataclass(frozen=True)
class _Figures:
    levels: list[LevelStats]


@dataclass(frozen=True)
class _Answer:
    """The fields of the finished event's object that a replay needs."""

    text: str
    finish_reason: FinishReason
    stats: _Figures


@dataclass(frozen=True)
class Recorded:
    """A recorded answer: the object of its finished event, its text, and empty figures of its hierarchy."""

    record: dict[str, Any]
    text: str
    stats: Stats

    def to_record(self) -> dict[str, Any]:
        """Return the `hispec.generate/1` object."""
        return self.record


_ANSWER = TypeAdapter(_Answer)
_EVENTS: dict[str, TypeAdapter[Any]] = {
    kind.kind: TypeAdapter(kind) for kind in (Prefilled, Drafted, Verified, Committed, Finished)
}


@dataclass(frozen=True)
class Recording:
    """A trace that was found to be whole and possible.

    Attributes:
        events: the last is `Finished`, its result `Recorded`.
        stats: empty figures of the hierarchy that was recorded.
        final: the figures at the end.
    """

    events: list[Event]
    stats: Stats
    final: Stats

    @property
    def result(self) -> Recorded:
        """Return the recorded answer."""
        last = self.events[-1]
        assert isinstance(last, Finished) and isinstance(last.result, Recorded)
        return last.result

    def play(self, speed: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Event]:
        """Yield the events with the delays between them.

        Args:
            speed: the factor by which it is faster; 0 does not wait.
            sleep: waits that many seconds.
        """
        began = time.perf_counter()
        for event in self.events:
            wait = event.t / speed - (time.perf_counter() - began) if speed else 0
            if wait > 0:
                sleep(min(wait, _LONGEST))
            yield event


def read_trace(path: Path) -> Recording:
    """Read a trace, and check that its events can have happened.

    Raises:
        UsageError: the file cannot be read, is not a trace, is cut off, or contradicts itself.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"the trace {path} cannot be read: {reason}", "check the path of --replay") from None
    events = [_checked(path, number, _event, line) for number, line in enumerate(lines, start=1)]
    if not isinstance(events[-1], Finished):
        raise UsageError(
            f"the trace {path} is cut off: its last event is not the finished one",
            "record it again: hispec generate ... --trace FILE",
        )
    result = events[-1].result
    state = ViewState(result.stats)
    for number, event in enumerate(events, start=1):
        state = _checked(path, number, _next, state, event, events[max(number - 2, 0)].t)
    if state.validated != result.text:
        raise _not_a_trace(path, "the committed events do not add up to its text")
    return Recording(events, result.stats, state.stats)


def _checked(path: Path, number: int, step: Callable[..., _T], *arguments: Any) -> _T:
    """Return the result of one step of checking a line."""
    try:
        return step(*arguments)
    except json.JSONDecodeError:
        reason = "it is not JSON"
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise _not_a_trace(path, f"line {number}: {reason}")


def _not_a_trace(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} is not a trace of hispec: {reason}", "record one: hispec generate ... --trace FILE")


def _next(state: ViewState, event: Event, before: float) -> ViewState:
    """Return the state after the event of a trace."""
    if not before <= event.t <= _LONGEST:
        raise ValueError(f"t is {event.t} after {before}")
    return reduce(state, event)


def _event(line: str) -> Event:
    """Return the event of one line; errors are `ValueError`s, pydantic's among them."""
    record = json.loads(line)
    kind = record.pop("event", None) if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in _EVENTS:
        raise ValueError("it is not an event")
    if kind == Finished.kind:
        answer, t = _ANSWER.validate_python(record), record.pop("t", None)
        levels = [replace(level, proposed=0, accepted=0) for level in answer.stats.levels]
        result = Recorded(record, answer.text, Stats(levels, target="target"))
        record = {"t": t, "finish_reason": answer.finish_reason, "result": result}
    event: Event = _EVENTS[kind].validate_python(record)
    if isinstance(event, Drafted) and len(event.texts) != len(event.token_ids):
        raise ValueError("its draft has no text: an older hispec wrote it")
    return event
