"""Shared by all tests: no network, few threads, and tiny random models whose exits disagree with each other."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:  # what is measured and remembered is this run's, and shared by its workers
    CACHE = TemporaryDirectory(prefix="hispec-tests-", ignore_cleanup_errors=True)
    os.environ["XDG_CACHE_HOME"] = CACHE.name

import pytest
import torch

from hispec.profile import resolve_model
from tests.support import random_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session", params=[0, 1], ids=lambda seed: f"seed{seed}")
def model(request):
    """A random four-layer Llama in float32."""
    return random_model("llama", seed=request.param)


@pytest.fixture(scope="session")
def shipped_model():
    """The folder of the model that ships with the package."""
    return Path(resolve_model("builtin:tiny"))


def pytest_addoption(parser):
    parser.addoption("--draws", type=int, default=25_000, help="samples of each test of a distribution (25000)")
    parser.addoption("--sequences", type=int, default=1000, help="random texts for each kind of tokenizer (1000)")
    parser.addoption("--write-estimates", action="store_true", help="write tests/hispec/estimates.json again")
    parser.addoption("--write-golden", action="store_true", help="write the files of tests/hispec_cli/golden again")


def pytest_terminal_summary(terminalreporter):
    """Show how well the drawn samples fit and how often rounding decided, whether or not the tests passed."""
    found = {"distribution": [], "bfloat16": []}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    found[name].append(tuple(value))
    if found["distribution"]:
        terminalreporter.section("chi-square of three sampled tokens against the target's joint distribution")
        terminalreporter.write_line(f"{'hierarchy':<30} {'rule':<8} {'draws':>8} {'p-value':>9}")
        for kind, rule, draws, p_value in sorted(found["distribution"]):
            terminalreporter.write_line(f"{kind:<30} {rule:<8} {draws:>8} {p_value:>9.4f}")
    for ties, tokens, gap in found["bfloat16"]:
        terminalreporter.section("bfloat16 against the target alone")
        terminalreporter.write_line(f"{ties} ties in {tokens} tokens, the widest gap of the two best logits {gap:.3g}")
