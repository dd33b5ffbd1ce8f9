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
from collections.abc import Sequence
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import torch
from common import RESULTS, environment, gsm8k_questions, interval95, save
from level_arms import (
    PLAIN,
    PUBLISHED_SINGLE,
    ROWS,
    SINGLE_LAYERS,
    Answering,
    Arm,
    Grid,
    arms,
    numbers,
    ratio,
    reading,
    speed,
    tune,
)
from level_replays import replayed

from hispec import Engine
from hispec.budget import Budget
from hispec.models.stack import LayerStack
from hispec.profile import profile_for_model
from hispec.text import encode_prompt


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


def frequent(engine: Engine, path: Path, skip: int, count: int) -> list[int]:
    """Return the most frequent tokens of a GSM8K file's questions after the first few, ascending."""
    seen: dict[int, int] = {}
    for question in gsm8k_questions(path, 10**6)[skip:]:
        for token in engine.tokenizer(question, add_special_tokens=False)["input_ids"]:
            seen[token] = seen.get(token, 0) + 1
    return sorted(sorted(seen, key=lambda token: -seen[token])[:count])


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
