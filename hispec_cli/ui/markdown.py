"""Markdown from a model, rendered for a terminal, and harmless like all its text."""

import sys

from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown
from rich.segment import Segment, Segments

from hispec_cli.ui.output import write
from hispec_cli.ui.safe_text import visible


def write_markdown(text: str) -> None:
    """Write an answer to stdout as the Markdown that it is. Errors as `output.write`.

    HTML is shown as it is written, links with their addresses, and a line break stays one.
    """
    console = Console(file=sys.stdout, markup=False, highlight=False)
    document = Markdown("", hyperlinks=False)
    document.parsed = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(visible(text))
    for token in document.parsed:
        for inline in token.children or ():
            if inline.type == "softbreak":
                inline.type = "hardbreak"
    rows = console.render_lines(document, pad=False)
    # Characters that were written as entities exist only from here on.
    segments = [Segment(visible(segment.text), segment.style) for row in rows for segment in (*row, Segment.line())]
    with console.capture() as capture:
        console.print(Segments(segments), end="", soft_wrap=True)
    write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
