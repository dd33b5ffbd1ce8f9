"""The documentation: the site builds without a warning, links lead somewhere, and commands can be typed as they stand."""

import ast
import re
import shlex
from html import unescape
from pathlib import Path

import pytest
import typer

from hispec_cli.app import app
from tests.hispec_cli.conftest import QUESTION

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "core").rglob("*.md")])
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page, *languages):
    """The contents of the fenced blocks of a page in some languages; those in lists without their indentation."""
    fence = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    for indent, language, text in fence.findall(page.read_text()):
        if language in languages:
            yield re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def command_lines(page):
    """The shell words of every command of a page, with those of a pipe or a list one by one."""
    for block in blocks(page, "sh"):
        yield from split(block)
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield from split(line.removeprefix("$ "))


def split(script):
    """The words of every command of a shell script, without what a command reads from a here-document."""
    script = re.sub(r"<<'(\w+)'\n.*?^\1$", "", script, flags=re.MULTILINE | re.DOTALL)
    script = re.sub(r"(^|\s+)# .*$", "", script, flags=re.MULTILINE)  # shlex drops the end of the line, too
    words = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>\n")
    words.whitespace, words.whitespace_split, words.commenters = " \t", True, ""
    command = []
    for word in [*words, "\n"]:
        if set(word) <= set("|&;<>\n"):
            yield command
            command = []
        else:
            command.append(word)


def commands(page, name):
    """The arguments of each call of a program on a page."""
    return [words[words.index(name) + 1 :] for words in command_lines(page) if name in words]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    build = pytest.importorskip("mkdocs.commands.build", reason="the extra docs is not installed")
    from mkdocs.config import load_config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("site")
        build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def text_of(page):
    return " ".join(unescape(re.sub(r"<[^>]+>", "", page.read_text())).split())


def test_the_site_builds_strictly_and_has_every_page(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.stem / "index.html").is_file()
    home = (site / "index.html").read_text()
    assert "HiSpec" in home and 'href="docs/' not in home and 'src="docs/' not in home
    assert not list(site.glob("hooks*"))


def test_files_outside_of_the_site_are_named_and_no_address_is_made_up(site):
    assert "benchmarks/results/replays-cpu.json" in text_of(site / "calibration" / "index.html")
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert not [page for page in pages if "OWNER" in page or re.search(r'href="[^"]*(\.json|\.py)["#]|None/blob', page)]


def test_the_site_shows_the_help_of_every_command(site):
    text = text_of(site / "commands" / "index.html")
    for name, command in typer.main.get_command(app).commands.items():
        for one in (command, *getattr(command, "commands", {}).values()):
            assert f"Usage: hispec {name}" in text
            for option in (option for parameter in one.params for option in parameter.opts if option.startswith("--")):
                assert option in text


def test_the_site_describes_the_python_api(site):
    text = text_of(site / "api" / "index.html")
    for name in ("from_profile", "generate", "stream", "custom_generate", "Committed", "OutOfMemoryError", "hint"):
        assert name in text


@EVERY_PAGE
def test_links_and_pictures_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
            assert anchor in slugs, link


def parse(command, arguments, parent=None):
    """Read arguments as a command does, without running it; raises the error that a user would see."""
    context = command.make_context("hispec", arguments, parent=parent)
    if left := [*getattr(context, "_protected_args", []), *context.args]:
        parse(command.commands[left[0]], left[1:], context)


@EVERY_PAGE
def test_commands_can_be_typed(page, monkeypatch):
    """Every command and option exists, and values are of their kinds; files and profiles are not looked for."""
    monkeypatch.setenv("HISPEC_OFFLINE", "1")
    for arguments in commands(page, "hispec") + commands(page, "hispec_cli"):
        if arguments[0].startswith("--"):  # an option of the whole program, which would act at once
            assert arguments[0] in {name for option in typer.main.get_command(app).params for name in option.opts}
            continue
        parse(typer.main.get_command(app), [word for word in arguments if word != "..."])


@EVERY_PAGE
def test_scripts_and_modules_that_pages_run_are_there(page):
    for arguments in commands(page, "python"):
        if arguments[0] == "-m":
            module = arguments[1].replace(".", "/")
            own = module.split("/")[0] in ("hispec", "tests", "training")
            assert not own or any((ROOT / at / f"{module}.py").is_file() for at in (".", "core")), arguments
        elif arguments[0].endswith(".py"):
            script = next(p for p in (ROOT / arguments[0], ROOT / "benchmarks" / arguments[0]) if p.is_file())
            shared = (ROOT / "benchmarks" / f"{name}.py" for name in ("common", "comparison"))
            text = "".join(path.read_text() for path in (script, *shared))
            for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
                assert f'"{option}"' in text, (arguments, option)
    for arguments in commands(page, "pytest"):
        for word in arguments:
            assert not word.startswith("tests/") or (ROOT / word).is_file(), word


@EVERY_PAGE
def test_python_in_pages_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_readme_is_short_and_holds_the_command_that_ci_runs():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    command = re.search(r"<!-- test command -->\n```sh\n(.*)\n```", text)[1]
    for step in ("pip install -c constraints.txt -e '.[dev]'", "ruff check", "mypy", "pytest"):
        assert step in command


def test_the_tables_of_figures_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from tables import PLACE, pages, with_tables

    texts = [page.read_text() for page in pages()]
    assert [text for text in texts if with_tables(text) != text] == [], "write them again: python benchmarks/tables.py"
    assert sum(len(PLACE.findall(text)) for text in texts) >= 7


def test_the_first_command_of_readme_prints_what_readme_says(hispec):
    block = next(blocks(ROOT / "README.md", "console"))
    command, *output = block.splitlines()
    assert command.startswith("$ hispec generate") and QUESTION in command
    outcome = hispec(*shlex.split(command.removeprefix("$ hispec ")))
    assert outcome.code == 0
    assert (outcome.out + outcome.err).split() == " ".join(output).split()
