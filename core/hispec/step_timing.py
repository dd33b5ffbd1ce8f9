"""Costs of a hierarchy's steps on this machine, measured in less than a second if no calibration has measured them.

The adaptive policy begins with these costs, and corrects them by its own measurements while it decodes. They are cached
in the user's cache folder, so that a model is measured once.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from time import perf_counter, thread_time

import torch

from hispec.curve import Curve
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.state import DecodingState
from hispec.files import remember, remembered
from hispec.machine import processor_name
from hispec.policies.step_costs import MAX_WAITING, StepCosts

ROWS = (1, 2, 8, 16, MAX_WAITING)
"""Counts of rows that are timed; costs are linear in between."""

CONTEXT = 8
"""Tokens before those that are timed."""

REPEATS = 2
"""The number of runs of which the fastest counts, so that work that only the first call does is left out."""

MAX_SECONDS = 0.45
"""The time within which rows are added; the costs of more are derived from those of fewer."""

LARGER = 2
"""The expected cost of the next count of rows, in that of the last: most are twice as many, and some cost the same."""

NGRAM_SECONDS = 2e-5
"""The seconds of an n-gram look-up."""

MAX_REMEMBERED = 200
"""The number of hierarchies whose costs are cached; the oldest are dropped first."""

FILE = "steps.json"
"""The file of measurements, in the user's cache folder."""


def step_costs(hierarchy: Hierarchy, names: list[str], *, cached: bool = True) -> StepCosts:
    """Return the costs of steps in seconds, measured now or remembered.

    Args:
        hierarchy: loaded and ready to run; what its KV caches hold stays.
        names: the names of its levels in profiles.
        cached: whether to look in the user's cache folder, and to leave there what is measured.
    """
    target = hierarchy.stack_of(-1)
    cuda = target.device.type == "cuda"
    alone = not cuda and torch.get_num_threads() == 1
    clock = thread_time if alone else perf_counter  # the time of other processes must not count
    if not cached:
        return _costs_of(hierarchy, measure(hierarchy, clock))
    parts = (
        torch.cuda.get_device_name(target.device) if cuda else processor_name(),
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        *(f"{stack.name} {stack.kind} {stack.dtype} {stack.num_layers}" for stack in hierarchy.stacks),
        f"width {target.rows.describe()}",
        " > ".join(names),
    )
    key, known = ", ".join(parts), remembered(FILE)
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):  # a damaged file is measured again
        return _costs_of(hierarchy, [(_curve(spans), _curve(heads)) for spans, heads in known[key]])
    measured = measure(hierarchy, clock)
    known[key] = [[_listed(spans), _listed(heads)] for spans, heads in measured]
    remember(FILE, dict(list(known.items())[-MAX_REMEMBERED:]))
    return _costs_of(hierarchy, measured)


@torch.inference_mode()
def measure(hierarchy: Hierarchy, clock: Callable[[], float] = perf_counter) -> list[tuple[Curve, Curve]]:
    """Time every level: for each, seconds of its own span of layers and of its head, by the number of rows.

    Args:
        hierarchy: loaded and ready to run.
        clock: returns seconds.
    """
    context = max(1, min(CONTEXT, *(stack.context - MAX_WAITING for stack in hierarchy.stacks)))
    with ExitStack() as borrowed:
        for cache in {id(stack.cache): stack.cache for stack in hierarchy.stacks}.values():
            borrowed.enter_context(cache.lock)
            borrowed.enter_context(cache.borrowed(context + MAX_WAITING))
        state = DecodingState(hierarchy, [0] * context, context + MAX_WAITING)
        levels = [level for level in range(len(hierarchy)) if hierarchy.levels[level].stack is not None]
        for level in levels:
            state.advance(level, context)
        started = clock()
        found = [(Curve((), ()), Curve((), ()))] * len(hierarchy)
        for level in levels:
            until = started + MAX_SECONDS * (level + 1) / len(hierarchy)
            found[level] = _curves(state, level, clock, until)
    return found


def _curves(state: DecodingState, level: int, clock: Callable[[], float], until: float) -> tuple[Curve, Curve]:
    """Return the seconds of a level's own span and of its head, by the number of rows; few of them after a time."""
    spans: dict[int, float] = {}
    heads: dict[int, float] = {}
    for rows in ROWS:
        if rows > ROWS[1] and clock() + LARGER * REPEATS * (spans[max(spans)] + heads[max(heads)]) > until:
            break
        spans[rows], heads[rows] = _seconds(state, level, rows, clock)
    return Curve(tuple(spans), tuple(spans.values())), Curve(tuple(heads), tuple(heads.values()))


def _seconds(state: DecodingState, level: int, rows: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of a level's own span and of its head."""
    hierarchy, length = state.hierarchy, len(state.tokens)
    below, device = hierarchy.below[level], hierarchy.stack_of(level).device
    spans, heads = [], []
    for _ in range(REPEATS):
        for _ in range(rows):
            state.append(0, 0)
        if below is not None:
            state.advance(below, length + rows)
        synchronize(device)
        begin = clock()
        hidden = state.advance(level, length + rows)
        synchronize(device)
        between = clock()
        state.read(level, hidden).argmax()
        spans.append(between - begin)
        heads.append(clock() - between)
        state.rewind(length)
    return min(spans), min(heads)


def _costs_of(hierarchy: Hierarchy, measured: list[tuple[Curve, Curve]]) -> StepCosts:
    """Return the costs of steps from those of spans and heads."""
    return StepCosts.from_spans(
        hierarchy.below,
        lambda level, rows: measured[level][0](rows),
        lambda level, rows: measured[level][1](rows),
        ngrams=None if hierarchy.ngrams is None else NGRAM_SECONDS,
    )


def _curve(listed: list[list[float]]) -> Curve:
    return Curve(tuple(int(rows) for rows, _ in listed), tuple(float(seconds) for _, seconds in listed))


def _listed(curve: Curve) -> list[list[float]]:
    return [[rows, seconds] for rows, seconds in zip(curve.at, curve.seconds, strict=True)]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
