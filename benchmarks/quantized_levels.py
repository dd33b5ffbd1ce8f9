r"""Tokens per second of levels that read quantized copies of the target, beside those that read its own weights.

First every kind of hierarchy is tuned: each of its exits and lengths decodes a prompt, the better ones some more. Then
the best of each kind, with fixed lengths and with the adaptive policy, decode every prompt one after the other, in an
order drawn again for each, greedily. All answers are compared with plain decoding's. `--seconds` ends a run early, after
a whole prompt; what it has is reported. What a pass costs by its rows is measured in the same run.

    python benchmarks/quantized_levels.py --model DIR --gsm8k FILE --exits 1,2,4 --raw --name quantized-levels-NAME
    python benchmarks/quantized_levels.py --model DIR --gsm8k FILE --name quantized-levels-NAME

With `--replay` nothing is timed: the model's own predictions are recorded, and decoding is replayed with costs that are
given, in those of one row in one layer of full weights. A GPU's, where 4-bit layers take .28 and rows are nearly free:

    python benchmarks/quantized_levels.py --model DIR --gsm8k FILE --exits 1,2,4 --raw --name NAME \
        --replay --layer full=1,int4=0.28,int8=0.53 --row full=0.01,int4=0.01,int8=0.01 --head 1.4

or with what this machine takes for another model of as many layers, of which only the shape is needed:

    python benchmarks/quantized_levels.py --model DIR --gsm8k FILE --exits 1,2,4 --raw --name NAME \
        --replay --shape facebook/layerskip-llama3.2-1B
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from common import RESULTS, environment, gsm8k_questions, interval95, save

from hispec import Engine
from hispec.adaptation import performance_model
from hispec.budget import Budget
from hispec.calibration.adapting import Fitter, performance_model_of
from hispec.calibration.costs import WIDTHS, Costs, SpanCost, measure
from hispec.calibration.recording import Recorder, record_all
from hispec.calibration.replay import Replay, specs_of
from hispec.curve import Curve
from hispec.decoding.hierarchy import Hierarchy, Level, Ngrams
from hispec.events import Committed, Prefilled, Verified
from hispec.models.stack import LayerStack
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.static import StaticPolicy
from hispec.profile import profile_for_model
from hispec.text import encode_prompt

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


def pass_costs(target: LayerStack, position: int = 64, repeats: int = 5) -> dict[str, dict[int, float]]:
    """Return milliseconds of a pass through all layers and the head, by weights and rows; the fastest counts."""
    costs: dict[str, dict[int, float]] = {}
    target.reserve(position + ROWS[-1])
    for name in ("full", "int4", "int8"):
        stack = reading(target, name)
        costs[name] = {}
        for rows in ROWS:
            times = []
            for _ in range(repeats):
                began = perf_counter()
                stack.head(stack.run(stack.embed([1] * rows), 0, stack.num_layers, position))
                times.append(perf_counter() - began)
            costs[name][rows] = round(1e3 * min(times), 3)
    return costs


def ratio(one: Arm, other: Arm) -> dict[str, Any]:
    """Return the ratio of the speeds of two arms, with its 95 % interval over prompts."""
    rows = list(zip(one.answers, other.answers, strict=True))

    def over(some: Sequence[Any]) -> float:
        return speed([own for own, _ in some]) / speed([others for _, others in some])

    return {"value": round(over(rows), 3), "ci95": [round(end, 3) for end in interval95(rows, over)]}


def timed(args: argparse.Namespace, engine: Engine, prompts: list[list[int]], found: list[Arm]) -> dict[str, Any]:
    """Tune and time all arms, and return the record."""
    budget, answering = Budget(args.seconds), Answering(engine, args.max_new_tokens)
    costs = pass_costs(engine.hierarchy.stack_of(-1))
    answering.expected(prompts[0], args.tune_tokens)  # to warm up
    tuning, prompts = prompts[: args.tune_prompts], prompts[args.tune_prompts :]
    best = tune(found, answering, tuning, args.tune_tokens, budget)
    tuned = {arm.kind: arm.describe() | {"tokens_per_second": round(arm.speed, 2)} for arm in best}
    chosen = [arm.fresh() for arm in best]
    if args.adaptive:
        adapting = [arm.adapting() for arm in chosen if arm.kind != PLAIN]
        for arm in adapting:  # what is measured before a first answer is no part of it
            answering.answer(arm, tuning[0], answering.expected(tuning[0], args.tune_tokens))
        chosen += [arm.fresh() for arm in adapting]
    rng, needed, cut = Random(1), 0.0, False
    for prompt in [prompt for _ in range(args.rounds) for prompt in prompts]:
        if needed and budget.left < 1.1 * needed:
            cut = True
            break
        before = budget.spent
        expected = answering.expected(prompt)
        for arm in rng.sample(chosen, len(chosen)):
            answering.answer(arm, prompt, expected)
        needed = max(needed, budget.spent - before)
    return {"tuned": tuned, "tried": len(found), "pass_ms": costs, "cut_off": cut} | compared(chosen)


def compared(chosen: Sequence[Arm]) -> dict[str, Any]:
    """Return the speeds, and the ratios to the arms that matter."""
    named = {arm.kind: arm for arm in chosen}
    single = [arm for arm in chosen if arm.kind.removesuffix(", adaptive") in SINGLE_LAYERS]
    bases = {"plain": named[PLAIN]}
    if PUBLISHED_SINGLE in named:
        bases["single-layer as published"] = named[PUBLISHED_SINGLE]
    if single:
        bases["the best single layer"] = max(single, key=lambda arm: arm.speed)
    found = {}
    for arm in sorted(chosen, key=lambda arm: -arm.speed):
        found[arm.kind] = arm.describe() | {
            "tokens_per_second": round(arm.speed, 2),
            "ci95": [round(end, 2) for end in interval95(arm.answers, speed)],
            "over": {name: ratio(arm, base) for name, base in bases.items()},
            "identical": f"{arm.identical} of {len(arm.answers)}",
            "tokens": sum(tokens for tokens, _ in arm.answers),
            "judged": arm.verified,
            "answers": arm.answers,
        }
    return {"bases": {name: arm.kind for name, arm in bases.items()}, "arms": found}


def given_costs(args: argparse.Namespace, target: LayerStack) -> Costs:
    """Return costs as the options have them, a row of a layer of full weights being a second."""
    layer, row = read_costs(args.layer), read_costs(args.row)
    spans, heads = {}, {}
    for name, cost in layer.items():
        stack = reading(target, name)
        widths = WIDTHS[:2]
        both = (cost, cost * (1 + row[name]))
        spans[stack.name] = SpanCost(tuple(Curve((0,), (0.0,)) for _ in widths), tuple(Curve((0,), (c,)) for c in both))
        for head_size in {0, args.head_size}:
            share = head_size / target.vocab_size if head_size else 1.0
            heads[stack.name, head_size] = Curve(widths, tuple(args.head * share * c for c in both))
    return Costs(spans, heads, ngram_lookup=0.0)


def costs_of_shape(args: argparse.Namespace, target: LayerStack) -> Costs:
    """Return the costs of passes of another model of as many layers, under the names of this model's passes."""
    profile = profile_for_model(args.shape, 16, 1, 2)
    other = Engine.from_profile(profile, dtype=args.dtype, mode="autoregressive", load_format="dummy")
    own = other.hierarchy.stack_of(-1)
    if own.num_layers != target.num_layers:
        raise SystemExit(f"{args.shape} has {own.num_layers} layers and {args.model} {target.num_layers}")
    names = {stack.name: stack for stack in (own, own.quantized("int4"), own.quantized("int8"))}
    known = measure(names, {(name, 0): None for name in names}, (), 3, out_of_time=Budget(60).over)
    found = {name: target.name + name.removeprefix(own.name) for name in names}
    return Costs(
        {found[name]: span for name, span in known.spans.items()},
        {(found[name], size): head for (name, size), head in known.heads.items()},
    )


def replayed_pass(costs: Costs, name: str, layers: int) -> dict[int, float]:
    """Return milliseconds of a pass through all layers and the head, by rows."""
    call, layer = costs.spans[name].at(64)
    return {rows: round(1e3 * (call(rows) + layers * layer(rows) + costs.heads[name, 0](rows)), 2) for rows in ROWS}


def read_costs(text: str) -> dict[str, float]:
    """Read `NAME=COST,...`."""
    return {name: float(cost) for name, _, cost in (part.partition("=") for part in text.split(","))}


def replayed(args: argparse.Namespace, engine: Engine, prompts: list[list[int]], found: list[Arm]) -> dict[str, Any]:
    """Record what all levels predict, replay all arms, and return the record."""
    target, answering = engine.hierarchy.stack_of(-1), Answering(engine, args.max_new_tokens)
    by_name = {stack.name: stack for arm in found for stack in arm.hierarchy.stacks}
    stacks = {name: stack for name, stack in by_name.items() if stack is not target} | {target.name: target}
    specs, heads = {}, {}
    for arm in found:
        for spec, level, what in zip(
            specs_of(arm.hierarchy), arm.hierarchy.levels, arm.describe()["levels"], strict=True
        ):
            if level.stack is not None:
                specs[spec] = what
            if level.reduced is not None:
                heads[spec] = level.reduced
    recorder = Recorder(stacks, sorted(specs), heads, target.name)
    recorded = record_all(recorder, prompts, answering.expected, Random(0))
    costs = costs_of_shape(args, target) if args.shape else given_costs(args, target)
    fitter = Fitter(recorded.texts, ("margin",))
    own = specs_of(found[0].hierarchy)[0]
    agreement = {
        what: round(
            mean(
                one == best
                for text in recorded.texts
                for one, best in zip(text.predictions[spec].argmax, text.predictions[own].argmax, strict=True)
            ),
            4,
        )
        for spec, what in sorted(specs.items())
    }
    throughputs = {
        arm: Replay(arm.hierarchy, recorded, costs, engine.eos_ids, Random(0)).throughput(recorded.texts, arm.policy)
        for arm in found
    }
    best: dict[str, Arm] = {}
    for arm in sorted(found, key=lambda arm: -throughputs[arm]):
        best.setdefault(arm.kind, arm)
    for arm in [arm for arm in best.values() if args.adaptive and arm.kind != PLAIN]:
        replay = Replay(arm.hierarchy, recorded, costs, engine.eos_ids, Random(0))
        known = performance_model_of(replay, fitter, recorded.texts)
        other = Arm(f"{arm.kind}, adaptive", arm.hierarchy, (), partial(AdaptivePolicy, known))
        throughputs[other], best[other.kind] = replay.throughput(recorded.texts, other.policy), other
    rows = {
        kind: arm.describe() | {"over_plain": round(throughputs[arm] / throughputs[found[0]], 3)}
        for kind, arm in best.items()
    }
    ordered = dict(sorted(rows.items(), key=lambda item: -item[1]["over_plain"]))
    given: dict[str, Any] = {"layer": args.layer, "row": args.row, "head": args.head, "head_size": args.head_size}
    if args.shape:
        calls = {name: replayed_pass(costs, name, target.num_layers) for name in stacks}
        given = {"shape": args.shape, "pass_ms": calls}
    return {"costs": given, "agreement": agreement, "tried": len(found), "best": ordered}


def frequent(engine: Engine, path: Path, skip: int, count: int) -> list[int]:
    """Return the most frequent tokens of a GSM8K file's questions after the first few, ascending."""
    seen: dict[int, int] = {}
    for question in gsm8k_questions(path, 10**6)[skip:]:
        for token in engine.tokenizer(question, add_special_tokens=False)["input_ids"]:
            seen[token] = seen.get(token, 0) + 1
    return sorted(sorted(seen, key=lambda token: -seen[token])[:count])


def numbers(text: str) -> tuple[int, ...]:
    """Read `1,2,4`."""
    return tuple(int(part) for part in text.split(",") if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder; or, for random weights, a model whose shape is known")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--exits", type=numbers, default=(), help="of a model that was trained for them, ascending")
    parser.add_argument("--drafts", type=numbers, default=(2, 3, 4), help="lengths of the draft below another level")
    parser.add_argument("--waiting", type=numbers, default=(4, 8, 12), help="lengths before the target above it")
    parser.add_argument("--single", type=numbers, default=(3, 4, 6, 8), help="lengths of a draft alone")
    parser.add_argument("--dummy-agreement", help="random weights that agree so often; see the setting")
    parser.add_argument("--only", default="", help="kinds that contain one of these words, and plain decoding")
    parser.add_argument("--no-adaptive", dest="adaptive", action="store_false", help="fixed lengths only")
    parser.add_argument("--tune-prompts", type=int, default=2)
    parser.add_argument("--tune-tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, help="cut prompts there")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1, help="how often each prompt is decoded")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which no further prompt is begun")
    parser.add_argument("--head-size", type=int, default=0, help="lower levels read so many token ids only; 0 for all")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--replay", action="store_true", help="replay with the following costs")
    parser.add_argument("--layer", default="full=1,int4=0.28,int8=0.53", help="of a layer's first row")
    parser.add_argument("--row", default="full=0.01,int4=0.01,int8=0.01", help="of each further one, as a share")
    parser.add_argument("--head", type=float, default=1.4, help="of the whole head, in layers")
    parser.add_argument("--shape", help="instead, costs of random weights of this model's shape, measured here")
    parser.add_argument("--name", required=True)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()
    options: dict[str, Any] = {"dtype": args.dtype, "mode": "autoregressive"}
    if args.dummy_agreement:
        options |= {"load_format": "dummy", "dummy_agreement": args.dummy_agreement}
    engine = Engine.from_profile(profile_for_model(args.model, 16, *(args.exits or (1, 2))[:2]), **options)
    count = args.tune_prompts + args.prompts
    asked = gsm8k_questions(args.gsm8k, count)
    texts = [f"Question: {question}\nAnswer:" if args.raw else question for question in asked]
    prompts = [encode_prompt(engine.tokenizer, text, raw=args.raw)[: args.prompt_tokens] for text in texts]
    token_ids = frequent(engine, args.gsm8k, count, args.head_size) if args.head_size else []
    found = arms(engine.hierarchy.stack_of(-1), Grid(args.exits, args.drafts, args.waiting, args.single), token_ids)
    if args.only:
        found = [arm for arm in found if arm.kind == PLAIN or any(word in arm.kind for word in args.only.split(","))]
    record = (replayed if args.replay else timed)(args, engine, prompts, found)
    given = ("prompts", "max_new_tokens", "rounds", "dtype", "tune_prompts", "tune_tokens", "head_size")
    save(
        args.name,
        {"model": Path(args.model).name}
        | {name: getattr(args, name) for name in given}
        | {"grid": {name: getattr(args, name) for name in ("exits", "drafts", "waiting", "single")}}
        | {name: engine.environment[name] for name in ("width", "agreement") if name in engine.environment}
        | record
        | {"load_average": [load, os.getloadavg()], "environment": environment(args.threads)},
        args.output,
        show=False,
    )
    for kind, one in (record["best"] if args.replay else record["arms"]).items():
        if args.replay:
            print(f"{kind:55} {one['over_plain']:.2f} times plain decoding  {one['levels']} {one['lengths']}")
        else:
            over = "  ".join(f"{name} {found['value']:.2f}" for name, found in one["over"].items())
            print(f"{kind:55} {one['tokens_per_second']:7.1f} tokens/s  over {over}  {one['identical']}")


if __name__ == "__main__":
    main()
