"""Hooks of `mkdocs build`: pages from the repository's root, links to files outside of `docs/`, and the help pages."""

import posixpath
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Files in the repository's root that are pages of the site, and the names of these pages."""

LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#\s]+)([^)]*)\)")
"""A relative link or picture in Markdown: its text, its path, and its anchor."""

HELP = "<!-- help pages -->"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the repository's root, and the charts that pages show."""
    charts = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "benchmarks" / "results").glob("*.svg")}
    for name, path in {**{page: ROOT / name for name, page in PAGES.items()}, **charts}.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Insert the help pages, and translate links that work in the repository to links that work on the site.

    A link to a file that is not on the site leads to the repository. While that has no public address, the link becomes
    its text and the path of the file.
    """
    folder = "" if page.file.src_uri in PAGES.values() else "docs"

    def on_site(link: re.Match[str]) -> str:
        text, anchor = link[1], link[3]
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        uri = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is not None:
            return f"[{text}]({uri}{anchor})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return text if posixpath.basename(path) in text else f"{text} (`{path}`)"

    return LINK.sub(on_site, markdown.replace(HELP, help_pages() if HELP in markdown else ""))


def help_pages() -> str:
    """Return the help page of every command, each below a heading of its own, 80 columns wide."""
    import typer

    from hispec_cli.app import NAME, app

    def pages(command: Any, parent: Any, name: str) -> list[str]:
        context = command.context_class(command, info_name=name, parent=parent, terminal_width=80)
        found = [f"## {context.command_path}\n\n```text\n{context.get_help().rstrip()}\n```\n"]
        for below, subcommand in getattr(command, "commands", {}).items():
            found += pages(subcommand, context, below)
        return found

    with patch.dict("os.environ", {"COLUMNS": "80"}):
        return "\n".join(pages(typer.main.get_command(app), None, NAME))
