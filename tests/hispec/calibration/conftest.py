"""A random model whose exits disagree, its costs made up, and traces of it."""

from random import Random

import pytest

from hispec.calibration.costs import WIDTHS, Costs, SpanCost
from hispec.calibration.recording import LevelSpec, Recorder, record_all
from hispec.curve import Curve
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.policies.static import StaticPolicy
from tests.support import decode_ids, fused_stack, random_model

PROMPTS = [[3, 1, 4], [1, 5, 9, 2], [6, 5, 3, 5, 8], [9, 7]]
LENGTH = 40


@pytest.fixture(scope="package")
def stack():
    stack = fused_stack(random_model(seed=3, layers=6))
    stack.name = "random"
    return stack


@pytest.fixture(scope="package")
def costs():
    """Costs that differ by what is run, the same at all positions."""
    flat = tuple(Curve((0,), (cost,)) for cost in range(1, len(WIDTHS) + 1))
    head = Curve(WIDTHS, tuple(0.5 * width for width in WIDTHS))
    return Costs({"random": SpanCost(tuple(Curve((0,), (0.25,)) for _ in WIDTHS), flat)}, {("random", 0): head})


@pytest.fixture(scope="package")
def hierarchy_at(stack):
    """Makes hierarchies of some exits."""
    target = Level("target", stack, stack.num_layers)
    return lambda *exits: Hierarchy([*(Level(f"exit {exit_}", stack, exit_) for exit_ in exits), target])


@pytest.fixture(scope="package")
def recorded(stack, hierarchy_at):
    recorder = Recorder({"random": stack}, [LevelSpec("random", exit_) for exit_ in range(1, 7)], {}, "random")

    def write(prompt):
        return decode_ids(hierarchy_at(), (1,), prompt=list(prompt), max_new_tokens=LENGTH)

    return record_all(recorder, PROMPTS, write, Random(0), branches=40)


@pytest.fixture
def static():
    """Makes makers of static policies."""
    return lambda *periods: lambda: StaticPolicy(periods)
