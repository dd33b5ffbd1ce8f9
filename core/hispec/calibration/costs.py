"""Measures the costs of decoding steps on this device, in two ways that complement each other.

- *Spans and heads* are timed one by one, for several widths and context lengths. A span costs a call and its layers,
  both read from timing one layer and all of them.
- *Steps of real decoding* cost more: there is the loop around them, and the step before has emptied caches. Some
  decoding with random exits and lengths is timed step by step (`hispec.calibration.steps`); the cost of a kind of step
  beyond that of its spans and heads is taken as constant.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch

from hispec.curve import Curve
from hispec.decoding.logits import Logits
from hispec.models.stack import LayerStack, ReducedHead
from hispec.step_timing import synchronize

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
"""The row counts of timed spans; in between, and beyond, costs are taken as linear."""

FEWEST_WIDTHS = 6
"""The number of these widths that are timed in any case, even if time is short."""

SEVERAL = 3
"""The number of times that the most important costs are timed in any case."""

CONTEXTS = (32, 256, 1024)
"""Positions at which they are timed, where the model's context allows."""


@dataclass(frozen=True)
class SpanCost:
    """Seconds of a span of a model's layers, by width, each at some context lengths.

    Attributes:
        call: the cost of a span beyond its layers; item w is for width `WIDTHS[w]`.
        layer: item w is that of one layer.
    """

    call: tuple[Curve, ...]
    layer: tuple[Curve, ...]

    def at(self, position: float) -> tuple[Curve, Curve]:
        """Return (costs of the call, costs of each layer) by width, at one context length."""
        widths = WIDTHS[: len(self.call)]
        return (
            Curve(widths, tuple(curve(position) for curve in self.call)),
            Curve(widths, tuple(curve(position) for curve in self.layer)),
        )


@dataclass(frozen=True)
class Costs:
    """All measured costs.

    Attributes:
        spans: the costs of spans, by model.
        heads: the seconds of heads by width, by (model, size of a reduced head or 0).
        steps: the seconds of a step beyond those of its spans and heads, by kind of step, see `kind_of`.
        confidence: seconds of finding a row's confidence.
        ngram_lookup: seconds of looking up an n-gram.
    """

    spans: Mapping[str, SpanCost]
    heads: Mapping[tuple[str, int], Curve]
    steps: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.0
    ngram_lookup: float = 2e-5


def seconds_alone(costs: Costs, model: str, depth: int, prompt: int) -> tuple[float, float]:
    """Return the seconds of decoding with a model alone: of a prompt, and of each token after it.

    Args:
        costs: the costs of spans, heads and perhaps steps.
        model: the name of the model.
        depth: its layers.
        prompt: tokens of the prompt.
    """
    call, layer = costs.spans[model].at(CONTEXTS[1])
    token = call(1) + depth * layer(1) + costs.heads[model, 0](1)
    return call(prompt) + depth * layer(prompt), token + costs.steps.get("target drafts", 0.0)


def kind_of(level: int, levels: int, *, drafts: bool) -> str:
    """Return the kind of a step; steps of one kind cost alike."""
    last = level == levels - 1
    return ("target drafts" if last else "draft") if drafts else ("target verifies" if last else "verify")


def measure(
    stacks: Mapping[str, LayerStack],
    heads: Mapping[tuple[str, int], ReducedHead | None],
    features: Sequence[str],
    repeats: int = 15,
    progress: Callable[[float], None] = lambda share: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Costs:
    """Time spans and heads.

    Args:
        stacks: the stacks by model.
        heads: the heads to time, by (model, size of a reduced head or 0); None for the whole head.
        features: the features of confidence to time.
        repeats: the number of times that each is timed; the median counts.
        progress: called with the share that is done.
        out_of_time: called now and then. Once it returns True, heads and single rows are timed only `SEVERAL` times, at
            one context length and the first `FEWEST_WIDTHS`.
    """
    spans: dict[str, SpanCost] = {}
    for name, stack in stacks.items():
        contexts = [c for c in CONTEXTS if c + max(WIDTHS) <= stack.context] or [0]
        widths = [w for w in WIDTHS if contexts[-1] + w <= stack.context]
        stack.cache.lease = None
        stack.reserve(contexts[-1] + max(widths))
        calls: list[Curve] = []
        layers: list[Curve] = []
        for at, width in enumerate(widths):
            progress(at / len(widths))
            if at >= FEWEST_WIDTHS and out_of_time():
                break
            rows: list[tuple[float, float]] = []
            for context in contexts:
                if rows and out_of_time():
                    break
                few = SEVERAL if width == 1 else 1
                rows.append(_time_spans(stack, width, context, few if out_of_time() else repeats))
            known = tuple(contexts[: len(rows)])
            calls.append(Curve(known, tuple(call for call, _ in rows)))
            layers.append(Curve(known, tuple(layer for _, layer in rows)))
        spans[name] = SpanCost(tuple(calls), tuple(layers))
    curves, sure = {}, 0.0
    for (name, head_size), head in heads.items():
        late = out_of_time()
        rows_of = WIDTHS[:FEWEST_WIDTHS] if late else WIDTHS
        curves[name, head_size], sure = _time_head(stacks[name], head, features, SEVERAL if late else repeats, rows_of)
    progress(1.0)
    return Costs(spans, curves, confidence=sure)


@torch.inference_mode()
def seconds_of_a_pass(stack: LayerStack) -> float:
    """Return the seconds of one token through all layers and the head, at the beginning of a context."""
    stack.cache.lease = None
    stack.reserve(1)

    def work() -> object:
        return stack.head(stack.run(stack.embed([0]), 0, stack.num_layers, 0))

    return _median_seconds(stack.device, work, 1)


@torch.inference_mode()
def _time_spans(stack: LayerStack, width: int, position: int, repeats: int) -> tuple[float, float]:
    """Return (seconds of a call, seconds of each layer)."""
    hidden, depth = stack.embed([0] * width), stack.num_layers

    def span(layers: int) -> Callable[[], object]:
        return lambda: stack.run(hidden, 0, layers, position)

    if depth == 1:
        return 0.0, _median_seconds(stack.device, span(1), repeats)
    one, all_ = (_median_seconds(stack.device, span(layers), repeats) for layers in (1, depth))
    layer = (all_ - one) / (depth - 1)
    return max(0.0, one - layer), layer


@torch.inference_mode()
def _time_head(
    stack: LayerStack, head: ReducedHead | None, features: Sequence[str], repeats: int, widths: tuple[int, ...]
) -> tuple[Curve, float]:
    """Return the seconds of a head with its argmax, by width, and the seconds of confidence, per row."""
    ids = None if head is None else head.ids

    def read(width: int) -> Callable[[], Logits]:
        hidden = stack.embed([0] * width)
        return lambda: Logits(stack.head(hidden, head), ids)

    def best(width: int) -> Callable[[], object]:
        logits = read(width)
        return lambda: logits().argmax()

    seconds = tuple(_median_seconds(stack.device, best(width), repeats) for width in widths)
    one = read(1)()
    sure = _median_seconds(stack.device, lambda: one.confidence(features), repeats) if features else 0.0
    return Curve(widths, seconds), sure


def _median_seconds(device: torch.device, work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = perf_counter()
        work()
        synchronize(device)
        times.append(perf_counter() - begin)
    return median(times)
