"""The parts of a report besides its figures, and the sentences of its summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hispec.bench.caveats import FEW
from hispec.bench.compare import Change, Comparison
from hispec.bench.gates import GateVerdict
from hispec.bench.names import BASELINES, REFERENCE
from hispec.bench.record import ArmFigures, Interval, LevelFigures, Report
from hispec.counts import counted
from hispec.metrics import exit_name

NOTHING = "\u2013"
"""Stands where nothing was measured."""
Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Context:
    """The information on a run that is not in its report.

    Attributes:
        verdicts: the results of the gates.
        comparison: the comparison with an earlier report.
        command: the command line that repeats the run, as arguments.
    """

    verdicts: Sequence[GateVerdict] = ()
    comparison: Comparison | None = None
    command: Sequence[str] | None = None


@dataclass(frozen=True)
class Statement:
    """A sentence, and whether it is good news."""

    text: str
    tone: Tone


def headline(report: Report) -> Statement:
    """Return the speed of the first arm, and of the first baseline that was measured."""
    arm = report.arms[0]
    baseline = next((name for name in BASELINES if name in arm.speedup), None)
    if baseline is None:
        if arm.tokens_per_second is None:
            return Statement(f"{arm.name}: nothing was measured", "neutral")
        return Statement(f"{arm.name}: {number(arm.tokens_per_second)} tokens/s, with no baseline measured", "neutral")
    speedup = arm.speedup[baseline]
    factor = f"{speedup.value:.2f} times the speed of {baseline}"
    few = f" on only {counted(arm.prompts, 'prompt')}" if arm.prompts and arm.prompts < FEW else ""
    if speedup.ci95 is None:
        return Statement(f"{arm.name} has {factor}{few}, which gives no interval", "neutral")
    low, high = speedup.ci95
    factor += f" (95 % interval {low:.2f} to {high:.2f}{few})"
    if low > 1:
        return Statement(f"{arm.name} is faster: {factor}", "good")
    if high < 1:
        return Statement(f"{arm.name} is slower: {factor}", "bad")
    return Statement(f"{arm.name} is not clearly faster or slower: {factor}", "neutral")


def losslessness(report: Report) -> Statement:
    """Return whether all arms have the reference's token ids."""
    compared = [(arm.name, arm.lossless) for arm in report.arms if arm.lossless is not None]
    total, identical = (sum(getattr(found, key) for _, found in compared) for key in ("of", "identical"))
    wrong = [f"{name} {found.errors} of {found.of}" for name, found in compared if found.errors]
    ties = total - identical
    if not total:
        return Statement("losslessness was not checked", "neutral")
    if wrong:
        return Statement(f"answers differ from the reference's by error: {', '.join(wrong)}", "bad")
    if ties:
        part = "1 parts" if ties == 1 else f"{ties} part"
        return Statement(
            f"{identical} of {total} answers have the reference's token ids; {part} at a tie of the two best logits",
            "neutral",
        )
    answers = "the one answer has" if total == 1 else f"all {total} answers have"
    return Statement(f"{answers} exactly the reference's token ids", "good")


def notable(comparison: Comparison) -> list[Change]:
    """Return what changed of the first arm, and the speeds of the others: what fits a page that people read."""
    return [
        change
        for change in comparison.changes
        if change.direction != "equal"
        and (change.arm == comparison.changes[0].arm or (change.ratio is not None and change.ratio.ci95 is not None))
    ]


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with thin spaces between thousands; a dash where nothing was measured."""
    return NOTHING if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def interval(ci95: Interval | None, digits: int = 1) -> str:
    """Return an interval as text; empty if there is none."""
    return "" if ci95 is None else f"{number(ci95[0], digits)}\u2013{number(ci95[1], digits)}"


def levels_of(arm: ArmFigures) -> str:
    """Return the levels below the target, the cheapest first; empty where there are none."""
    target = next((level.model for level in arm.levels if level.weights), None)
    models = {level.model for level in arm.levels if level.exit_layer}

    def name(level: LevelFigures) -> str:
        if not level.exit_layer:
            return "n-grams"
        exit_ = exit_name(level.exit_layer, level.weights)
        return exit_ if len(models) == 1 or level.model == target else f"{exit_} of {level.model}"

    return " > ".join(map(name, arm.levels))


def share(value: float | None) -> str:
    """Return a share in per cent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def milliseconds(seconds: float | None) -> str:
    """Return milliseconds with three significant digits from a tenth of a millisecond up."""
    if seconds is None:
        return NOTHING
    value = 1000 * seconds
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def mebibytes(value: int | None) -> str:
    """Return a size in MiB, with its unit."""
    return NOTHING if value is None else f"{number(value / 2**20, 0)} MiB"


def accuracy(arm: ArmFigures) -> str:
    """Return the score and, where answers are right or wrong, how many were right."""
    found = arm.accuracy
    if found is None:
        return NOTHING
    return share(found.value) + ("" if found.correct is None else f" ({found.correct} of {found.of})")


def identical(arm: ArmFigures) -> str:
    """Return how many answers are the reference's own, and the kinds of the others."""
    found = arm.lossless
    if found is None:
        return "reference" if arm.answers and arm.name == REFERENCE else NOTHING
    rest = [counted(count, name) for name, count in (("tie", found.ties), ("error", found.errors)) if count]
    return f"{found.identical} of {found.of}" + (f" ({', '.join(rest)})" if rest else "")


def ratio_change(ratio: float) -> str:
    """Return a ratio as a change in per cent."""
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "\u2212")


def plain_number(value: float) -> str:
    """Return a figure of unknown size: whole numbers unchanged, others with four significant digits."""
    return number(value, 0) if value == int(value) else number(value, max(0, 3 - _magnitude(value)))


def _magnitude(value: float) -> int:
    """Return the decimal exponent of a number."""
    return int(f"{value:e}".partition("e")[2])
