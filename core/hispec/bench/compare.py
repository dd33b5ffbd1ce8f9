"""Two reports side by side: what changed, how surely, and what else differs that could explain it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from hispec.bench.caveats import few_prompts, fewest_prompts
from hispec.bench.names import BASELINES
from hispec.bench.record import ArmFigures, Estimate, Report, look_up
from hispec.errors import UsageError
from hispec.journal import differences

_WIDTH = 2 * 1.959963984540054
"""The half width of a 95 % interval of a normal distribution, in standard deviations."""
_HINT = "give a file that hispec bench -o FILE.json wrote"

KEYS = (
    "tokens_per_second",
    *(f"speedup.{baseline}" for baseline in BASELINES),
    "tokens_per_target_pass",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "time_to_first_token_s.p50",
    "inter_token_s.p99",
    "peak_memory_bytes",
    "accuracy.value",
    "lossless.identical",
    "lossless.ties",
    "lossless.errors",
)
"""The figures of an arm that are compared, where both reports have them."""

Direction = Literal["faster", "slower", "no clear difference", "no interval", "higher", "lower", "equal"]


@dataclass(frozen=True)
class Change:
    """One figure of one arm in both reports.

    Attributes:
        arm: its arm.
        key: its path in the arm.
        old: its old value.
        new: its new value.
        ratio: new over old, with its interval where both have one; None where old is 0.
        direction: `faster`, `slower` and `no clear difference` for speeds, `no interval` where they have none; the
            other figures have no interval, and are just `higher`, `lower` or `equal`.
    """

    arm: str
    key: str
    old: float
    new: float
    ratio: Estimate | None
    direction: Direction


@dataclass(frozen=True)
class Comparison:
    """The changes from one report to another.

    Attributes:
        changes: the changes of every figure that both reports have.
        warnings: one line for each circumstance that differs, so that a change may be due to it.
    """

    changes: list[Change]
    warnings: list[str]

    def to_record(self) -> dict[str, Any]:
        """Return the `hispec.bench.compare/1` object."""
        changes = [{**vars(change), "ratio": change.ratio and change.ratio.model_dump()} for change in self.changes]
        return {"schema": "hispec.bench.compare/1", "changes": changes, "warnings": self.warnings}


def read_report(path: Path) -> Report:
    """Read a report that an earlier run wrote.

    Raises:
        UsageError: no such file, or one that is not a report, naming the key at fault.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"the report {path} cannot be read: {error.strerror}", "check its path") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = f"{key}: {first['msg']}" if key else first["msg"]
        raise UsageError(f"{path} is not a hispec.bench/1 report: {reason}", _HINT) from None


def compare(old: Report, new: Report) -> Comparison:
    """Compare each figure of the new report with that of the old one.

    The two runs are independent, so the logarithm of a ratio of speeds has the sum of their variances. Each variance
    is read off the run's interval, whose width on the logarithmic scale is taken as that of a normal distribution.
    A ratio differs clearly from 1 where its own 95 % interval leaves 1 out.
    """
    changes = [
        change for arm in new.arms if (before := old.arm(arm.name)) is not None for change in _changes(before, arm)
    ]
    return Comparison(changes, list(_warnings(old, new)))


def _changes(old: ArmFigures, new: ArmFigures) -> Iterator[Change]:
    for key in KEYS:
        before, after = look_up(old, key.split(".")), look_up(new, key.split("."))
        if before is not None and after is not None:
            yield _change(new.name, key, before, after)


def _change(arm: str, key: str, old: Estimate | float, new: Estimate | float) -> Change:
    if not isinstance(old, Estimate) or not isinstance(new, Estimate):
        assert not isinstance(old, Estimate) and not isinstance(new, Estimate)
        ratio = Estimate(value=new / old, ci95=None) if old else None
        return Change(arm, key, old, new, ratio, "higher" if new > old else "lower" if new < old else "equal")
    ratio = _ratio(old, new)
    direction: Direction = "no interval"
    if ratio is not None and ratio.ci95 is not None:
        low, high = ratio.ci95
        direction = "faster" if low > 1 else "slower" if high < 1 else "no clear difference"
    return Change(arm, key, old.value, new.value, ratio, direction)


def _ratio(old: Estimate, new: Estimate) -> Estimate | None:
    """Return the ratio of the new figure to the old one, with an interval if both have one; see `compare`."""
    if not old.value:
        return None
    value = new.value / old.value
    variance = 0.0
    for estimate in (old, new):
        if estimate.ci95 is None or estimate.ci95[0] <= 0:
            return Estimate(value=value, ci95=None)
        low, high = estimate.ci95
        variance += (math.log(high / low) / _WIDTH) ** 2
    factor = math.exp(_WIDTH / 2 * math.sqrt(variance))
    return Estimate(value=value, ci95=(value / factor, value * factor))


def _warnings(old: Report, new: Report) -> Iterator[str]:
    """Return the other differences. The hash of the configuration is left out, as it says nothing that its keys do
    not.
    """
    circumstances = ("profile", "dataset", "repeats", "warmup", "synthetic_weights", "config", "environment")
    before, after = (report.model_dump(include=set(circumstances)) for report in (old, new))
    for key in circumstances:
        for path, was, now in differences(key, before[key], after[key]):
            yield f"{path} differs: {was} -> {now}"
    for name, report in (("old", old), ("new", new)):
        if report.status == "interrupted":
            yield f"the {name} run was interrupted"
        if few := few_prompts(fewest_prompts(report.arms)):
            yield f"the {name} report: {few}"
    for name, only in (
        ("old", [arm.name for arm in old.arms if new.arm(arm.name) is None]),
        ("new", [arm.name for arm in new.arms if old.arm(arm.name) is None]),
    ):
        if only:
            yield f"only the {name} report has {', '.join(only)}"
