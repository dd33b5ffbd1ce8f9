"""Times steps of real decoding, and compares them with the costs of their spans and heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import mean
from time import perf_counter
from typing import Any

from torch import Tensor

from hispec.calibration.costs import Costs, kind_of
from hispec.curve import Curve
from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.events import Drafted, Prefilled, Verified
from hispec.models.stack import ArgmaxHead, LayerStack, ReducedHead, write_stepwise
from hispec.policies.static import StaticPolicy

FIRST = (2, 0, 1)
"""Exits of the first answers, which are timed however short the time: with them each kind of step happens."""
SHORT = 12
"""Tokens of an answer where time is short."""
SHORT_PROMPT = 32
"""Tokens of a prompt where time is short."""


@dataclass(frozen=True)
class TimedStep:
    """One step of real decoding.

    Attributes:
        kind: the kind of step, see `kind_of`.
        modelled: seconds of its spans and heads.
        seconds: the time that it took, including the loop around it.
        times: the number of times that it happened; for drafts, the number of tokens.
    """

    kind: str
    modelled: float
    seconds: float
    times: int = 1


class MeteredStack:
    """A `LayerStack` that adds up the expected seconds of its work."""

    def __init__(self, stack: LayerStack, costs: Costs) -> None:
        self._stack, self._costs = stack, costs
        self._curves: dict[int, tuple[Curve, Curve]] = {}
        self.modelled = 0.0

    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int, *, prompt: bool = False) -> Tensor:
        """Run rows [n, hidden] at `position`; see `LayerStack.run`."""
        near = position // 64
        if near not in self._curves:
            self._curves[near] = self._costs.spans[self._stack.name].at(64.0 * near + 32)
        call, layer = self._curves[near]
        self.modelled += call(len(hidden)) + (end_layer - start_layer) * layer(len(hidden))
        return self._stack.run(hidden, start_layer, end_layer, position, prompt=prompt)

    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Return the logits, and add up their cost; see `LayerStack.head`."""
        head_size = 0 if reduced is None else len(reduced.ids)
        self.modelled += self._costs.heads[self._stack.name, head_size](len(hidden))
        return self._stack.head(hidden, reduced)

    def write_run(
        self, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a token through layers 0..end_layer-1, then the token read from it, and so on.

        See `LayerStack.write_run`. Every step of it is metered.
        """
        return write_stepwise(self, token, end_layer, position, count, read)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)


def time_steps(
    levels: Sequence[Level], costs: Costs, periods: Sequence[int], prompt: Sequence[int], max_tokens: int
) -> list[TimedStep]:
    """Decode once and time every step.

    Args:
        levels: the levels of a hierarchy.
        costs: the costs of spans and heads.
        periods: the periods of a static policy.
        prompt: token ids.
        max_tokens: tokens of the answer.
    """
    metered: dict[str, MeteredStack] = {}
    for level in levels:
        assert level.stack is not None, "n-grams cost nothing that is worth timing"
        metered.setdefault(level.stack.name, MeteredStack(level.stack, costs))
    hierarchy = Hierarchy([replace(level, stack=metered[level.stack.name]) for level in levels if level.stack])
    names = [level.name for level in levels]
    timed: list[TimedStep] = []
    begin = perf_counter()
    for event in Decoder(hierarchy, lambda: StaticPolicy(periods)).decode(prompt, max_tokens):
        now, modelled = perf_counter(), sum(stack.modelled for stack in metered.values())
        match event:
            case Prefilled():
                timed.append(TimedStep("prefill", modelled, now - begin))
            case Drafted():
                kind = kind_of(names.index(event.level), len(levels), drafts=True)
                timed.append(TimedStep(kind, modelled, now - begin, len(event.token_ids)))
            case Verified():
                kind = kind_of(names.index(event.level), len(levels), drafts=False)
                timed.append(TimedStep(kind, modelled, now - begin))
        for stack in metered.values():
            stack.modelled = 0.0
        begin = perf_counter()
    return timed


def fit_steps(timed: Sequence[TimedStep]) -> dict[str, float]:
    """Return the seconds of a step beyond those of its spans and heads, by kind: means without the outer tenths."""
    kinds: dict[str, list[float]] = {}
    for step in timed:
        kinds.setdefault(step.kind, []).append((step.seconds - step.modelled) / step.times)
    return {kind: max(0.0, mean(_middle(sorted(rest)))) for kind, rest in kinds.items()}


def _middle(values: list[float]) -> list[float]:
    outer = len(values) // 10
    return values[outer : len(values) - outer]


def with_steps(
    costs: Costs,
    stack: LayerStack,
    heads: Mapping[int, ReducedHead | None],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    rounds: int,
    rng: Random,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Costs:
    """Return the costs with those of steps, which are timed on hierarchies of the target's exits, drawn at random.

    Args:
        costs: the costs of spans and heads.
        stack: the target.
        heads: the reduced heads that may be drawn, by size.
        prompts: token ids, taken in turn.
        max_tokens: tokens of each answer.
        rounds: the number of answers.
        rng: draws exits, heads and periods.
        out_of_time: called before every answer. Once it returns True, only the `FIRST` are given, short ones to short
            prompts.
    """
    timed: list[TimedStep] = []
    target = Level("target", stack, stack.num_layers)
    for at in range(rounds):
        late = out_of_time()
        if late and at >= len(FIRST):
            break
        count = min(stack.num_layers - 1, FIRST[at] if at < len(FIRST) else rng.choice((0, 1, 1, 2, 2)))
        prompt = prompts[at % len(prompts)]
        exits = sorted(_shallow(stack.num_layers, count, rng))
        head = heads[rng.choice(sorted(heads))]
        levels = [Level(f"exit {exit_}", stack, exit_, head) for exit_ in exits]
        periods = [1, *(rng.choice((1, 2, 3, 4, 6, 8)) for _ in exits[:-1]), rng.choice((2, 4, 8, 12, 16))]
        timed += time_steps(
            [*levels, target],
            costs,
            periods[: count + 1] if count else [1],
            prompt[:SHORT_PROMPT] if late else prompt,
            min(max_tokens, SHORT) if late else max_tokens,
        )
    return replace(costs, steps=fit_steps(timed))


def _shallow(depth: int, count: int, rng: Random) -> set[int]:
    """Return distinct exits, shallow ones more often: those are what decoding will use."""
    exits: set[int] = set()
    while len(exits) < count:
        exits.add(1 + min(int(rng.random() ** 2 * (depth - 1)), depth - 2))
    return exits
