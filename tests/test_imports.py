"""The dependencies between modules, the content of the wheel, and the imports before a command runs.

No two modules depend on one another, whether they import at once, later or for type checkers alone.
"""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "hispec_cli", ROOT / "core" / "hispec")


def modules_of(*packages):
    """The sources of all modules of packages, by their full names."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in package.rglob("*.py")
    }


def imports_of(path, modules):
    """The modules among the given ones that a source imports anywhere: in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in modules else node.module)
    return found & modules.keys()


def circle_among(*packages):
    """The names of modules that import each other in a circle, none if there is no circle."""
    modules = modules_of(*packages)
    graph = {name: imports_of(path, modules) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    assert circle_among(*PACKAGES) == []


@pytest.mark.parametrize(
    "source",
    [
        "import package.one",
        "from package import one",
        "from package.one import name",
        "def later():\n    from package.one import name",
        "if TYPE_CHECKING:\n    from package.one import name",
    ],
)
def test_a_circle_is_found_however_it_is_closed(tmp_path, source):
    package = tmp_path / "package"
    (package / "deeper").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "one.py").write_text("from package.deeper.two import x\n")
    (package / "deeper" / "two.py").write_text("x = 1\n")
    assert circle_among(package) == []
    (package / "deeper" / "two.py").write_text(source)
    assert set(circle_among(package)) == {"package.one", "package.deeper.two"}


LAYERS = {
    "values": "budget counts curve discovery errors events extras files grammar launched limits machine own_profiles "
    "precedence profile progress room settings utf8",
    "models": "models frequencies",
    "decoding": "decoding policies metrics",
    "loading": "loading levels memory generation grammar_mask early_exit vocabulary adaptation step_timing threads ranks",
    "API": "api answer conversation session text chat_template detokenizer lossless transformers_generate prompts journal "
    "configuration",
    "tools": "bench calibration datasets doctor exits server validation",
}
"""Modules and packages of `hispec` by layer, from the lowest to the highest, as docs/architecture.md draws them."""


def layer_of(module):
    """The number of a module's layer, from the one with the longest name that fits; None where it is in none."""
    names = {f"hispec.{name}": number for number, layer in enumerate(LAYERS.values()) for name in layer.split()}
    fitting = [name for name in names if f"{module}.".startswith(f"{name}.")]
    return names[max(fitting, key=len)] if fitting else None


def test_no_layer_imports_one_above_it():
    modules = modules_of(*PACKAGES)
    for name, path in modules.items():
        if (own := layer_of(name)) is not None:
            above = [one for one in imports_of(path, modules) if (layer_of(one) or 0) > own]
            assert not above, f"{name} imports {above}"


def test_every_module_of_the_package_is_in_a_layer():
    modules = modules_of(ROOT / "core" / "hispec").keys() - {"hispec"}
    assert sorted(name for name in modules if layer_of(name) is None) == []
    names = [name for layer in LAYERS.values() for name in layer.split()]
    assert sorted(names) == sorted({name.split(".")[1] for name in modules})


def test_the_page_on_the_architecture_has_the_layers():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for layer, names in LAYERS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {layer} |"))
        found = {
            name.removesuffix(".py").removeprefix("hispec/") for name in re.findall(r"`([^`]+)`", row.split("|")[2])
        }
        assert found == set(names.split()), layer


def test_the_engine_does_not_import_the_command_line():
    modules = modules_of(*PACKAGES)
    for name, path in modules.items():
        if name.startswith("hispec."):
            assert not [one for one in imports_of(path, modules) if one.startswith("hispec_cli")], name


def test_views_do_not_import_commands():
    modules = modules_of(PACKAGES[0])
    for name, path in modules.items():
        if name.startswith("hispec_cli.ui"):
            assert not [one for one in imports_of(path, modules) if one.startswith("hispec_cli.commands")], name


def test_policies_import_neither_a_model_nor_the_engine():
    modules = modules_of(*PACKAGES)
    policies = {name: path for name, path in modules.items() if name.startswith("hispec.policies.")}
    assert len(policies) > 5
    for name, path in policies.items():
        assert imports_of(path, modules) <= policies.keys(), name


@pytest.mark.parametrize(
    "name", ["generate", "profile", "doctor", "fit_exits", "bench", "calibrate", "chat", "serve", "pull"]
)
def test_no_command_imports_from_another(name):
    modules = modules_of(PACKAGES[0])
    own = f"hispec_cli.commands.{name}"
    for module, path in modules.items():
        if module == own or module.startswith(f"{own}."):
            imported = [one for one in imports_of(path, modules) if one.startswith("hispec_cli.commands.")]
            assert all(one == own or one.startswith(f"{own}.") for one in imported), module


def test_the_wheel_holds_the_two_packages_and_the_profiles_alone():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel.pop("packages") == [str(package.relative_to(ROOT)) for package in PACKAGES]
    assert wheel.pop("force-include") == {"profiles": "hispec/profiles"}
    assert not wheel
    assert all((package / "py.typed").is_file() for package in PACKAGES), "type checkers pass over packages without it"
    held = [*modules_of(*PACKAGES).values(), *(ROOT / "profiles").iterdir()]
    assert len(held) > 100
    for path in held:
        parts = path.relative_to(ROOT).parts
        assert not [part for part in parts if part.startswith(("test_", "conftest")) or part in ("tests", "training")]


def test_what_is_installed_imports_nothing_that_is_not():
    others = modules_of(*(ROOT / name for name in ("training", "tests", "benchmarks")))
    assert "training.train" in others and "tests.support" in others
    for name, path in modules_of(*PACKAGES).items():
        assert not imports_of(path, others), name


def test_help_comes_before_anything_that_takes_long_to_import():
    slow = {
        "torch",
        "transformers",
        "numpy",
        "pydantic",
        "yaml",
        "jinja2",
        "huggingface_hub",
        "prompt_toolkit",
        "fastapi",
    }
    code = f"import sys; from hispec_cli.app import run; run(['--help']); sys.exit(str({slow} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
    assert "Usage: hispec" in done.stdout
