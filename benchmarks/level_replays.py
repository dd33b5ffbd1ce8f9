"""Replays hierarchies of quantized levels with given costs, or with those of another model; see `quantized_levels.py`."""

import argparse
from functools import partial
from random import Random
from statistics import mean
from typing import Any

from level_arms import PLAIN, ROWS, Answering, Arm, reading

from hispec import Engine
from hispec.budget import Budget
from hispec.calibration.adapting import Fitter, performance_model_of
from hispec.calibration.costs import WIDTHS, Costs, SpanCost, measure
from hispec.calibration.recording import Recorder, record_all
from hispec.calibration.replay import Replay, specs_of
from hispec.curve import Curve
from hispec.models.stack import LayerStack
from hispec.policies.adaptive import AdaptivePolicy
from hispec.profile import profile_for_model


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
