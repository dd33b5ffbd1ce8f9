"""Reports as CSV, a line for each arm, and as Markdown that fits a pull request or a step summary of GitHub."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from hispec.bench.compare import Change, Comparison
from hispec.bench.names import BASELINES
from hispec.bench.record import Estimate, Report, look_up
from hispec.counts import counted
from hispec.events import PHASES
from hispec_cli.ui.report.context import (
    NOTHING,
    Context,
    accuracy,
    headline,
    identical,
    interval,
    levels_of,
    losslessness,
    mebibytes,
    notable,
    number,
    plain_number,
    ratio_change,
    share,
)
from hispec_cli.ui.safe_text import visible

ARM_COLUMNS = (
    "levels",
    "answers",
    "prompts",
    "tokens",
    "seconds",
    "tokens_per_second",
    *(f"speedup.{baseline}" for baseline in BASELINES),
    "tokens_per_target_pass",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    *(f"phase_seconds.{phase}" for phase in PHASES),
    *(
        f"{figure}.{percentile}"
        for figure in ("time_to_first_token_s", "inter_token_s")
        for percentile in ("p50", "p90", "p99")
    ),
    "peak_memory_bytes",
    "accuracy.value",
    "accuracy.correct",
    "accuracy.of",
    "lossless.identical",
    "lossless.of",
    "lossless.ties",
    "lossless.errors",
)
"""The same in every file, measured or not; those with an interval are followed by their `.low` and `.high`."""
_WITH_INTERVAL = {"tokens_per_second", *(f"speedup.{baseline}" for baseline in BASELINES)}


def to_csv(report: Report) -> str:
    """Return one line for each arm under a line of names, the keys of the JSON. What was not measured is empty."""
    run = {
        "profile": report.profile,
        "dataset": report.dataset.name,
        "dataset.sha256": report.dataset.sha256,
        "dataset.rows": report.dataset.rows,
        "repeats": report.repeats,
        "status": report.status,
        "config_hash": report.config_hash,
        "caveats": " ".join(report.caveats),
    }
    lines: list[dict[str, object]] = []
    for arm in report.arms:
        line: dict[str, object] = {**run, "arm": arm.name}
        for column in ARM_COLUMNS:
            figure = look_up(arm, column.split("."))
            line[column] = figure.value if isinstance(figure, Estimate) else figure
            if column == "levels":
                line[column] = levels_of(arm)
            if column in _WITH_INTERVAL:
                ends = figure.ci95 if isinstance(figure, Estimate) and figure.ci95 else (None, None)
                line[f"{column}.low"], line[f"{column}.high"] = ends
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _cell(value: object) -> object:
    """Return text without control characters; what a spreadsheet would take for a formula gets the quote that makes it
    text.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def to_markdown(report: Report, context: Context | None = None) -> str:
    """Return headline, figures of all arms, gates, and changes since an earlier report as Markdown."""
    context = context or Context()
    blocks = [
        f"### hispec bench: {code(report.profile)} on {code(report.dataset.name)}",
        f"**{escaped(headline(report).text)}**; {escaped(losslessness(report).text)}.",
        *(f"> {escaped(caveat)}" for caveat in report.caveats),
        _arms(report),
    ]
    if context.verdicts:
        blocks.append(
            table(
                ("gate", "verdict", "why"),
                [(code(v.expression), f"**{v.outcome}**", escaped(v.message)) for v in context.verdicts],
            )
        )
    if context.comparison is not None:
        blocks += _comparison(context.comparison)
    facts = [
        f"{counted(report.dataset.rows, 'prompt')}, {counted(report.repeats, 'repeat')}, {report.warmup} to warm up"
    ]
    facts += [f"{escaped(key)} {escaped(str(value))}" for key, value in report.environment.items()]
    blocks.append(f"<sub>{'; '.join(facts)}</sub>")
    return "\n\n".join(blocks) + "\n"


def _arms(report: Report) -> str:
    baselines = [name for name in BASELINES if any(name in arm.speedup for arm in report.arms)]
    head = ["arm", "levels below the target", "tokens/s", "95 % interval"]
    for baseline in baselines:
        head += [f"speed-up over {baseline}", "95 % interval"]
    head += ["tokens per target pass", "draft acceptance", "peak memory", "accuracy", "identical"]
    rows = []
    for arm in report.arms:
        row = [escaped(arm.name), escaped(levels_of(arm)), number(arm.tokens_per_second), interval(arm.ci95)]
        for baseline in baselines:
            speedup = arm.speedup.get(baseline)
            row += [number(speedup.value, 2), interval(speedup.ci95, 2)] if speedup else ["", ""]
        row += [number(arm.tokens_per_target_pass, 2), share(arm.draft_acceptance_rate)]
        row += [mebibytes(arm.peak_memory_bytes), accuracy(arm), identical(arm)]
        rows.append(row)
    return table(head, rows, numeric=True)


def changes_to_markdown(changes: Iterable[Change]) -> str:
    """Return figures of an earlier and of this report, side by side."""
    rows = [
        (
            escaped(change.arm),
            code(change.key),
            plain_number(change.old),
            plain_number(change.new),
            ratio_change(change.ratio.value) if change.ratio else NOTHING,
            " to ".join(map(ratio_change, change.ratio.ci95)) if change.ratio and change.ratio.ci95 else "",
            change.direction,
        )
        for change in changes
    ]
    return table(("arm", "figure", "old", "new", "change", "95 % interval", ""), rows)


def _comparison(comparison: Comparison) -> list[str]:
    return [
        "#### Since the earlier report",
        *(f"> {escaped(warning)}" for warning in comparison.warnings),
        "Left out: figures that did not change and, of all arms but the first, figures without an interval.",
        changes_to_markdown(notable(comparison)),
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: bool = False) -> str:
    """Return a Markdown table; cells are Markdown already.

    Args:
        head: names of the columns.
        rows: the rows, each as long as the head.
        numeric: whether all columns but the first stand at the right.
    """
    rule = ["---", *["---:" if numeric else "---"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def escaped(text: str) -> str:
    """Return text as Markdown that shows just that text, on one line."""
    line = " ".join(visible(text).split())
    return re.sub(r"([\\`*_\[\]#~|!@])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def code(text: str) -> str:
    """Return text as a code span, in a table or out of it: a bar, which no code span can hold in both, becomes a broken
    one.
    """
    line = " ".join(visible(text).split()).replace("|", "\u00a6")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
