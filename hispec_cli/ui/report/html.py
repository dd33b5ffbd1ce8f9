"""A report as one page of HTML: nothing to fetch, legible in light, dark and print, worth attaching to a CI run."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from hispec.bench.names import BASELINES
from hispec.bench.record import Report
from hispec_cli.ui.report import context as words
from hispec_cli.ui.report.charts import draw_charts
from hispec_cli.ui.report.context import Context
from hispec_cli.ui.report.drawing import Chart
from hispec_cli.ui.safe_text import visible


def to_html(report: Report, context: Context | None = None) -> str:
    """Return the page: headline, losslessness, gates, figures with charts, circumstances, and how to repeat the run.

    Args:
        report: the report to show; all of its text is shown as text.
        context: gates, comparison and command line.
    """
    context = context or Context()
    return render(
        "page.html.jinja",
        draw_charts(report),
        report=report,
        context=context,
        baselines=[name for name in BASELINES if any(name in arm.speedup for arm in report.arms)],
        environment=list(flat(report.environment)),
        config=list(flat(report.config)),
        command=shlex.join(context.command) if context.command else None,
    )


def render(template: str, charts: Sequence[Chart], **values: Any) -> str:
    """Return a page of this folder's templates.

    Args:
        template: its file.
        charts: the charts that it may show, by name.
        values: the other variables; all of their text is shown as text.
    """
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.globals.update({name: getattr(words, name) for name in _WORDS})
    drawn = {chart.name: (chart, Markup(chart.svg)) for chart in charts}
    return page.get_template(template).render(charts=drawn, **values) + "\n"


_WORDS = (
    "accuracy",
    "counted",
    "headline",
    "identical",
    "interval",
    "losslessness",
    "mebibytes",
    "milliseconds",
    "notable",
    "number",
    "plain_number",
    "ratio_change",
    "share",
)


def _harmless(value: Any) -> Any:
    """Return text with control characters and direction overrides as escapes; our own markup stays."""
    return visible(value) if type(value) is str else value


def flat(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return dotted keys with their values as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
