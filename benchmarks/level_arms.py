"""The kinds of hierarchies that `quantized_levels.py` and `defaults.py` compare, and how they are tuned and decoded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from random import Random
from typing import Any

import torch
from common import interval95

from hispec import Engine
from hispec.adaptation import performance_model
from hispec.budget import Budget
from hispec.decoding.hierarchy import Hierarchy, Level, Ngrams
from hispec.events import Committed, Prefilled, Verified
from hispec.models.stack import LayerStack
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.static import StaticPolicy

PLAIN = "plain"
PUBLISHED_SINGLE = "exit > target (single-layer as published)"
PUBLISHED = "exit > exit > target (hispec as published)"
SINGLE_LAYERS = (
    PUBLISHED_SINGLE,
    *("4-bit exit > target", "8-bit exit > target", "int4 > target", "int8 > target"),
)
"""Kinds with one level below the target."""

ROWS = (1, 2, 4, 8, 16)
"""The rows of the passes that are timed."""

TUNING = 0.45
"""The share of the time after which tuning ends."""

KEPT = 3
"""The number of configurations of each kind that are tuned on more than one prompt."""


@dataclass(frozen=True)
class Grid:
    """The configurations to try.

    Attributes:
        exits: the exits of a model that was trained for them, ascending; empty for others.
        drafts: after how many waiting tokens an intermediate level verifies.
        waiting: after how many the target verifies, above another level.
        single: after how many it verifies, alone.
    """

    exits: tuple[int, ...]
    drafts: tuple[int, ...]
    waiting: tuple[int, ...]
    single: tuple[int, ...]


@dataclass(eq=False)
class Arm:
    """A hierarchy with its policy, and its results.

    Attributes:
        kind: the kind of hierarchy that it is an example of.
        hierarchy: its levels.
        lengths: after how many waiting tokens each level verifies; none for the adaptive policy.
        policy: returns a policy for an answer.
        answers: tokens and seconds of each prompt's, the prompt left out.
        identical: the number of answers that equal plain decoding's.
        verified: by level, the numbers of accepted tokens, proposed tokens, and verifications.
    """

    kind: str
    hierarchy: Hierarchy
    lengths: tuple[int, ...]
    policy: Callable[[], Policy]
    answers: list[tuple[int, float]] = field(default_factory=list)
    identical: int = 0
    verified: dict[str, list[int]] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Return tokens per second."""
        return speed(self.answers)

    def fresh(self) -> "Arm":
        """Return the same arm without answers."""
        return Arm(self.kind, self.hierarchy, self.lengths, self.policy)

    def adapting(self) -> "Arm":
        """Return the same levels with the adaptive policy."""
        known = performance_model(self.hierarchy, None, measured=True)
        return Arm(f"{self.kind}, adaptive", self.hierarchy, (), lambda: AdaptivePolicy(known))

    def describe(self) -> dict[str, Any]:
        """Return levels and lengths for the record."""
        levels = [
            "n-grams" if level.stack is None else f"{level.exit_layer} {level.weights or 'full'}"
            for level in self.hierarchy.levels
        ]
        exits = [level.exit_layer for level in self.hierarchy.levels if "exit" in level.name]
        return {"levels": levels, "exits": exits, "lengths": self.lengths}


def speed(answers: Sequence[tuple[int, float]]) -> float:
    """Return tokens per second of some answers."""
    return sum(tokens for tokens, _ in answers) / sum(seconds for _, seconds in answers)


def hierarchies(target: LayerStack, grid: Grid) -> Iterator[tuple[str, list[Level], tuple[int, ...]]]:
    """Yield the hierarchies that are compared: a kind, its levels below the target, and the lengths of all but the lowest."""
    copies = {weights: target.quantized(weights) for weights in ("int4", "int8")}
    whole = {name: Level(name, stack, target.num_layers, weights=name) for name, stack in copies.items()}
    own = {exit_layer: Level("exit", target, exit_layer) for exit_layer in grid.exits}
    short = {
        (name, at): Level(f"{name[3:]}-bit exit", stack, at, weights=name)
        for name, stack in copies.items()
        for at in grid.exits
    }
    yield "n-grams > target", [Level.of_ngrams(4, 8)], (1,)
    for length in grid.single:
        for weights, copy in whole.items():
            yield f"{weights} > target", [copy], (length,)
        for exit_layer in grid.exits:
            yield PUBLISHED_SINGLE, [own[exit_layer]], (length,)
            for weights in copies:
                level = short[weights, exit_layer]
                yield f"{level.name} > target", [level], (length,)
    for waiting in grid.waiting:
        for max_new_tokens in (2, 4):
            yield "n-grams > int4 > target", [Level.of_ngrams(4, max_new_tokens), whole["int4"]], (1, waiting)
        for drafts in (length for length in grid.drafts if length <= waiting):
            for first, second in combinations(grid.exits, 2):
                yield PUBLISHED, [own[first], own[second]], (drafts, waiting)
            for exit_layer in grid.exits[:2]:
                for lower, upper in (("int4", "int4"), ("int4", "int8"), ("int8", "int8")):
                    level = short[lower, exit_layer]
                    yield f"{level.name} > {upper} > target", [level, whole[upper]], (drafts, waiting)
                yield "exit > int8 > target", [own[exit_layer], whole["int8"]], (drafts, waiting)


def arms(target: LayerStack, grid: Grid, token_ids: Sequence[int] = ()) -> list[Arm]:
    """Return arms of plain decoding and of all `hierarchies`; lower levels have a reduced head if token ids are given."""
    last = Level("target", target, target.num_layers)
    found = [Arm(PLAIN, Hierarchy([last]), (1,), lambda: StaticPolicy((1,)))]
    heads = {}
    known: dict[tuple[tuple[int, int, Ngrams | None], ...], Hierarchy] = {}
    for kind, levels, lengths in hierarchies(target, grid):
        if token_ids:
            for level in levels:
                if level.stack is not None and level.stack.name not in heads:
                    heads[level.stack.name] = level.stack.reduce_head(torch.tensor(token_ids))
            levels = [one if one.stack is None else replace(one, reduced=heads[one.stack.name]) for one in levels]
        key = tuple((id(level.stack), level.exit_layer, level.ngrams) for level in levels)
        hierarchy = known.setdefault(key, Hierarchy([*levels, last]))
        found.append(Arm(kind, hierarchy, lengths, partial(StaticPolicy, (1, *lengths))))
    return found


class Answering:
    """Decodes prompts with arms.

    Args:
        engine: the engine with settings and tokenizer.
        max_new_tokens: tokens of an answer.
        endless: pass over ends of text.
    """

    def __init__(self, engine: Engine, max_new_tokens: int, *, endless: bool = False) -> None:
        self._decoder, self._most = engine.with_settings(temperature=0.0).decoder(), max_new_tokens
        if endless:
            self._decoder = replace(self._decoder, eos_ids=frozenset())

    def expected(self, prompt: Sequence[int], max_new_tokens: int | None = None) -> list[int]:
        """Return plain decoding's answer."""
        return self._decoder.token_ids(prompt, max_new_tokens or self._most)

    def answer(self, arm: Arm, prompt: list[int], expected: list[int]) -> None:
        """Decode a prompt, and add the result to the arm; `expected` is plain decoding's answer."""
        decoder = replace(self._decoder, hierarchy=arm.hierarchy, policy=arm.policy)
        events = list(decoder.decode(prompt, len(expected)))
        ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
        prefill = sum(event.seconds for event in events if isinstance(event, Prefilled))
        arm.answers.append((len(ids), events[-1].t - prefill))
        arm.identical += ids == expected
        for event in events:
            if isinstance(event, Verified):
                count = arm.verified.setdefault(event.level, [0, 0, 0])
                for at, more in enumerate((event.accepted, event.proposed, 1)):
                    count[at] += more


def tune(
    found: list[Arm], answering: Answering, prompts: Sequence[list[int]], max_new_tokens: int, budget: Budget
) -> list[Arm]:
    """Return the fastest arm of each kind: all decode one prompt, and the better ones the others too.

    What there is no time for is left out by chance.
    """
    Random(0).shuffle(found)
    texts = [(prompt, answering.expected(prompt, max_new_tokens)) for prompt in prompts]
    for arm in found:
        known = {one.kind for one in found if one.answers}
        if budget.over(0.7 * TUNING) and arm.kind in known:
            continue
        answering.answer(arm, *texts[0])
    tried = [arm for arm in found if arm.answers]
    for prompt, expected in texts[1:]:
        if budget.over(TUNING):
            break
        for arms_of_kind in by_kind(tried).values():
            for arm in arms_of_kind[:KEPT]:
                answering.answer(arm, prompt, expected)
    most_answers = {kind: max(len(arm.answers) for arm in own) for kind, own in by_kind(tried).items()}
    exact = [arm for arm in tried if len(arm.answers) == most_answers[arm.kind]]
    return [own[0] for own in by_kind(exact).values()]


def by_kind(found: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Return arms by kind, the fastest first."""
    kinds: dict[str, list[Arm]] = {}
    for arm in sorted(found, key=lambda arm: -arm.speed):
        kinds.setdefault(arm.kind, []).append(arm)
    return kinds


@torch.inference_mode()
def reading(target: LayerStack, weights: str) -> LayerStack:
    """Return the stack that reads a model's `full` weights, or a copy in another format."""
    return target if weights == "full" else target.quantized("int8" if weights == "int8" else "int4")


def ratio(one: Arm, other: Arm) -> dict[str, Any]:
    """Return the ratio of the speeds of two arms, with its 95 % interval over prompts."""
    rows = list(zip(one.answers, other.answers, strict=True))

    def over(some: Sequence[Any]) -> float:
        return speed([own for own, _ in some]) / speed([others for _, others in some])

    return {"value": round(over(rows), 3), "ci95": [round(end, 3) for end in interval95(rows, over)]}


def numbers(text: str) -> tuple[int, ...]:
    """Read `1,2,4`."""
    return tuple(int(part) for part in text.split(",") if part)
