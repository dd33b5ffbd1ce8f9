"""Report files: the format follows from the path's suffix and is checked before a run; a file is written whole or not
at all.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from hispec.bench.record import Report
from hispec.errors import UsageError
from hispec.extras import require
from hispec.files import write_whole
from hispec_cli.ui.report.context import Context
from hispec_cli.ui.report.tables import to_csv, to_markdown


def _json(report: Report, _: Context) -> str:
    return report.to_json()


def _csv(report: Report, _: Context) -> str:
    return to_csv(report)


def _html(report: Report, context: Context) -> str:
    require("report", "an HTML report")
    from hispec_cli.ui.report.html import to_html  # matplotlib takes a second to import

    return to_html(report, context)


WRITERS: dict[str, Callable[[Report, Context], str]] = {
    ".json": _json,
    ".csv": _csv,
    ".md": to_markdown,
    ".html": _html,
}


def check_output(path: Path, suffixes: Collection[str] = tuple(WRITERS)) -> None:
    """Refuse a path that a report could not be written to.

    Args:
        path: the path of the report.
        suffixes: those that the option takes.

    Raises:
        UsageError: an unknown suffix, a folder that is missing or closed, or a path that is a folder.
        UnavailableError: the format needs packages that are not installed.
    """
    if path.suffix not in suffixes:
        raise UsageError(f"{path} does not say what to write", f"end it in {' or '.join(suffixes)}")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", f"make it first: mkdir -p {folder}")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{path} is a device, not a file", "give the path of a file")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "give the path of a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {folder} is not writable", "choose a folder of yours")
    if path.suffix == ".html":
        require("report", "an HTML report")


def write_report(path: Path, report: Report, context: Context | None = None) -> None:
    """Write a report in the format of the path's suffix. A reader sees the old file or the new one, never a part.

    Args:
        path: the path of the report; a link is followed.
        report: the report to write.
        context: the parts of Markdown and HTML reports besides the figures.

    Raises:
        UsageError: the path cannot be used, as for `check_output`.
        UnavailableError: the file cannot be written, or writing fails.
    """
    check_output(path)
    write_text(path, WRITERS[path.suffix](report, context or Context()))


def write_text(path: Path, text: str) -> None:
    """Write the text of a report; errors as `write_whole`."""
    write_whole(path, text.encode(), "make room, or choose another folder")
