"""Gates: conditions on a report that fail a build, `speedup<1.2`, checked for typing errors before the run.

A gate fails only when it is sure: where its figure has an interval, the whole interval must be past the limit. An
interval with the limit inside is inconclusive, and fails nothing.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue

from hispec.bench.caveats import FEW, fewest_prompts
from hispec.bench.names import BASELINES
from hispec.bench.record import ArmFigures, Estimate, Interval, Report, look_up
from hispec.counts import counted
from hispec.errors import UsageError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_EXPRESSION = re.compile(r"\s*([^\s<>=!]+)\s*([<>=!]+)\s*(\S+)\s*")
_EXAMPLE = "write KEY OP NUMBER, for example --fail-if 'speedup<1.2'"
_RUN_KEYS = {name for name in Report.model_fields if name != "arms"}
_SHORT = {"speedup": "autoregressive", "accuracy": "value"}
"""The meanings of keys that are cut short."""
_ANY = "KEY"
"""Stands for any keys, one in another, of `config` and `environment`, which have no schema of their own."""
_CHOICES = {"speedup": "BASELINE", "levels": "LEVEL", "phase_seconds": "PHASE"}


@dataclass(frozen=True)
class GateVerdict:
    """The result of a gate for a report.

    Attributes:
        expression: the gate as the user wrote it.
        outcome: `failed` only where it is sure.
        value: the value of the key; None where the run has none.
        ci95: its interval, where it has one.
        message: one sentence for people.
    """

    expression: str
    outcome: Literal["passed", "failed", "inconclusive"]
    value: float | None
    ci95: Interval | None
    message: str


@dataclass(frozen=True)
class Gate:
    """A parsed `KEY OP NUMBER`: the build fails where it holds.

    Attributes:
        expression: the gate as the user wrote it.
        arm: the arm whose figure is compared; None for a figure of the whole run.
        path: the path to the figure, within the arm or the report.
        op: one of `OPERATORS`.
        limit: the number that the figure is compared with.
    """

    expression: str
    arm: str | None
    path: tuple[str, ...]
    op: str
    limit: float

    @property
    def key(self) -> str:
        """Return the figure's full name."""
        return ".".join((self.arm, *self.path) if self.arm else self.path)

    def apply(self, report: Report) -> GateVerdict:
        """Apply the gate.

        A missing figure of a complete run fails, so that a gate never passes without a check. In an interrupted run it
        is inconclusive, as is a speed without an interval, which one prompt does not give.
        """
        figure = look_up(report.arm(self.arm) if self.arm else report, self.path)
        interval_due = isinstance(figure, Estimate)
        if isinstance(figure, Estimate):
            value, ci95 = figure.value, figure.ci95
        elif figure is not None:
            value, ci95 = float(figure), None
        else:
            outcome: Literal["failed", "inconclusive"] = "failed" if report.status == "complete" else "inconclusive"
            return GateVerdict(self.expression, outcome, None, None, f"{self.key} has no value in this run")
        shown = f"{self.key} is {value:.4g}"
        if interval_due and ci95 is None:
            why = "one prompt gives no interval" if fewest_prompts(report.arms) == 1 else "it has no interval"
            return GateVerdict(self.expression, "inconclusive", value, None, f"{shown}, and {why}: measure more")
        if ci95 is None:
            failed = OPERATORS[self.op](value, self.limit)
            relation = "which is" if failed else "which is not"
            message = f"{shown}, {relation} {self.op} {self.limit:g}"
            return GateVerdict(self.expression, "failed" if failed else "passed", value, None, message)
        shown += f", 95 % interval {ci95[0]:.4g} to {ci95[1]:.4g}"
        prompts = fewest_prompts(report.arms)
        if prompts is not None and prompts < FEW:
            shown += f" on only {counted(prompts, 'prompt')}"
        if self._holds_throughout(*ci95):
            return GateVerdict(self.expression, "failed", value, ci95, f"{shown}, all of it {self.op} {self.limit:g}")
        if self._holds_nowhere(*ci95):
            return GateVerdict(self.expression, "passed", value, ci95, f"{shown}, none of it {self.op} {self.limit:g}")
        message = f"{shown}, with {self.limit:g} inside: more rows or repeats would tell"
        return GateVerdict(self.expression, "inconclusive", value, ci95, message)

    def _holds_throughout(self, low: float, high: float) -> bool:
        if self.op == "!=":
            return not low <= self.limit <= high
        return all(OPERATORS[self.op](end, self.limit) for end in (low, high))

    def _holds_nowhere(self, low: float, high: float) -> bool:
        if self.op == "==":
            return not low <= self.limit <= high
        return not any(OPERATORS[self.op](end, self.limit) for end in (low, high))


def parse_gate(expression: str, arms: Sequence[str]) -> Gate:
    """Read a gate, and refuse what cannot have a value, before anything is measured.

    Args:
        expression: `KEY OP NUMBER`. The key is the dotted path of a number in the report: of the first arm
            (`tokens_per_target_pass`), of another (`single-layer.tokens_per_second`), or of the run (`dataset.rows`).
            `speedup` alone is `speedup.autoregressive`, `accuracy` alone `accuracy.value`; levels go by their names
            (`levels.draft.acceptance_rate`).
        arms: the arms of the run, in order.

    Raises:
        UsageError: not an expression, an unknown key, or an arm that the run does not measure.
    """
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        raise UsageError(f"the gate {expression!r} cannot be read", _EXAMPLE)
    key, op, number = match.groups()
    if op not in OPERATORS:
        raise UsageError(f"the gate {expression!r} has the operator {op}", f"use one of {' '.join(OPERATORS)}")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"the gate {expression!r} compares with {number}, which is not a number", _EXAMPLE)
    segments = key.split(".")
    if segments[0] in arms:
        arm, path = segments[0], segments[1:]
    elif segments[0] in _RUN_KEYS:
        arm, path = None, segments
    else:
        arm, path = arms[0], segments
    full = _spelt_out(path)
    if not _is_number(ArmFigures if arm else Report, full):
        raise _unknown(expression, segments, path, arms)
    if full[0] == "speedup" and arm is not None:
        _check_baseline(expression, arm, full[1], arms)
    return Gate(expression, arm, full, op, limit)


def accepted_keys() -> list[str]:
    """Return every key of an arm and of the run; LEVEL, PHASE and the like stand for names that depend on the run."""
    of_run = [path for path in _paths(Report) if path[0] in _RUN_KEYS]
    return [*_SHORT, *(".".join(path) for path in [*_paths(ArmFigures), *of_run])]


def _check_baseline(expression: str, arm: str, baseline: str, arms: Sequence[str]) -> None:
    if baseline not in BASELINES:
        raise UsageError(
            f"the gate {expression!r} asks for a speed-up over {baseline}",
            f"speed-ups are stated over {', '.join(BASELINES)}",
        )
    if baseline == arm:
        raise UsageError(f"the gate {expression!r} compares {arm} with itself", "name another arm")
    if baseline not in arms:
        raise UsageError(
            f"the gate {expression!r} needs the arm {baseline}, which this run does not measure",
            f"add {baseline} to --arms",
        )


def _spelt_out(path: Sequence[str]) -> tuple[str, ...]:
    """Return the complete path of an abbreviated one. `speedup` means the speed-up's value, with its interval."""
    full = tuple(path)
    if full[:1] == ("speedup",) and full[2:] == ("value",):
        return full[:2]
    return (*full, _SHORT[full[0]]) if len(full) == 1 and full[0] in _SHORT else full


def _is_number(kind: type[BaseModel], path: Sequence[str]) -> bool:
    """Return whether a path leads to a number."""
    return any(
        (len(path) == len(known) or (known[-1] == _ANY and len(path) > len(known)))
        and all(
            segment.isdecimal() if name == "INDEX" else name.isupper() or name == segment
            for name, segment in zip(known, path, strict=False)
        )
        for known in _paths(kind)
    )


def _paths(kind: Any, name: str = "") -> Iterator[tuple[str, ...]]:
    """Return the paths to all numbers of a type; parts that depend on the run are in capitals."""
    kind = _plain(kind)
    if kind in (int, float, Estimate, JsonValue):
        yield ()
    elif get_origin(kind) in (dict, list):
        default = "INDEX" if get_origin(kind) is list else _ANY
        for rest in _paths(get_args(kind)[-1]):
            yield _CHOICES.get(name, default), *rest
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for key, field in kind.model_fields.items():
            yield from ((key, *rest) for rest in _paths(field.annotation, key))


def _plain(kind: Any) -> Any:
    """Return a type without its limits and without `None`."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (choice for choice in get_args(kind) if choice is not NoneType)
    return _plain(get_args(kind)[0]) if hasattr(kind, "__metadata__") else kind


def _unknown(expression: str, segments: list[str], path: Sequence[str], arms: Sequence[str]) -> UsageError:
    """Return the error for an unknown key, with the nearest keys, or else with all."""
    message = f"the gate {expression!r} has no key {'.'.join(segments)}"
    known = accepted_keys()
    wanted = ".".join(path)
    if len(path) > 1 and segments[0] not in arms and _is_number(ArmFigures, _spelt_out(path[1:])):
        return UsageError(f"the gate {expression!r} names the arm {segments[0]}", f"this run has {', '.join(arms)}")
    near = difflib.get_close_matches(wanted, known, n=1)
    below = [key for key in known if wanted and key.startswith(f"{wanted}.")]
    if below:
        return UsageError(f"{message} that is a number", f"give one of: {', '.join(below)}")
    return UsageError(message, f"did you mean {near[0]}?" if near else f"keys: {', '.join(known)}")
