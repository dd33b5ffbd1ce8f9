"""The runtime imports neither what measures it nor what only some commands need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hispec

PACKAGE = Path(hispec.__file__).parent
ON_THE_API = ("__init__", "configuration", "conversation", "prompts", "server")
"""Modules on top of the API: the package's own names, and tools that answer with an engine."""
LABORATORY = ("bench", "calibration", "datasets", "exits")
"""Packages that import the runtime, and that the runtime must not import."""
OPTIONAL = ("matplotlib", "datasets", "rouge_score", "prompt_toolkit", "bitsandbytes")
RUNTIME = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in LABORATORY]


@pytest.mark.parametrize(
    "code",
    [
        "import hispec, hispec.api",
        "from hispec import Engine, Generation, custom_generate",
        "import hispec.doctor, hispec.session, hispec.conversation",
        "import hispec; hispec.Engine.from_profile('tiny', max_new_tokens=2).generate('Hello')",
    ],
)
def test_what_answers_needs_loads_no_laboratory_and_no_extra(code):
    """Transformers goes first: what it imports by itself is not ours to choose."""
    script = (
        f"import sys, torch, transformers; before = {{*sys.modules}}\n{code}\nprint(*sorted({{*sys.modules}} - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "hispec.errors" in loaded
    forbidden = (*OPTIONAL, "jinja2", *(f"hispec.{name}" for name in LABORATORY))
    assert [name for name in loaded if name.startswith(forbidden)] == []


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_runtime_module_names_the_laboratory(path):
    """Imports inside functions count too; `api`, which is the surface, is named by none below it."""
    named = set(imported(path))
    assert [name for name in named if name.startswith(tuple(f"hispec.{part}" for part in LABORATORY))] == []
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in ON_THE_API:
        assert "hispec.api" not in named


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
