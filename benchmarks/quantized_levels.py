"""Tokens per second of levels that read quantized copies of the target, beside those that read its own weights.

Every prompt is decoded under every kind, one after the other, greedily, in one run; a kind with several lengths is shown
at its best. All answers are compared with plain decoding's.

    python benchmarks/quantized_levels.py --model DIR --gsm8k FILE --exits 1,4 --raw --name quantized-levels-NAME
    python benchmarks/quantized_levels.py --model DIR --gsm8k FILE --name quantized-levels-NAME
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import environment, gsm8k_questions, save

from hispec import Engine
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.policies import StaticPolicy
from hispec.events import Committed, Judged, Prefilled
from hispec.models.stack import LayerStack
from hispec.profile import profile_for_model
from hispec.text import encode_prompt

Kind = tuple[str, Hierarchy, tuple[int, ...]]
"""Its name, its levels, and after how many waiting tokens each of them judges."""


def kinds(target: LayerStack, exits: list[int]) -> Iterator[Kind]:
    """Yield what is compared; without exits, what needs no training for them."""
    depth = target.num_layers
    copies = {weights: target.quantized(weights) for weights in ("int4", "int8")}
    whole = {weights: Level(weights, stack, depth, weights=weights) for weights, stack in copies.items()}
    last = Level("target", target, depth)
    yield "plain", Hierarchy([last]), (1,)
    yield "n-grams > target", Hierarchy([Level.of_ngrams(4, 8), last]), (1, 1)
    for length in (4, 6, 8):
        for weights, copy in whole.items():
            yield f"{weights} > target", Hierarchy([copy, last]), (1, length)
        for exit_layer in {exits[0], 2 * exits[0]} if exits else ():
            own = Level("exit", target, exit_layer)
            yield "exit > target (single-layer as published)", Hierarchy([own, last]), (1, length)
            short = Level("4-bit exit", copies["int4"], exit_layer, weights="int4")
            yield "4-bit exit > target", Hierarchy([short, last]), (1, length)
    if not exits:
        for most in (2, 4):
            hierarchy = Hierarchy([Level.of_ngrams(4, most), whole["int4"], last])
            yield "n-grams > int4 > target", hierarchy, (1, 1, 6)
        return
    for drafts, waiting in ((2, 4), (3, 8), (4, 12)):
        published = [Level("exit", target, at) for at in exits]
        yield "exit > exit > target (hispec as published)", Hierarchy([*published, last]), (1, drafts, waiting)
        short = Level("4-bit exit", copies["int4"], exits[0], weights="int4")
        yield "4-bit exit > int4 > target", Hierarchy([short, whole["int4"], last]), (1, drafts, waiting)
        yield "exit > int8 > target", Hierarchy([published[0], whole["int8"], last]), (1, drafts, waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--exits", default="", help="draft and intermediate exit of a model that was trained for them")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile(profile_for_model(args.model, 16, 1, 2), dtype=args.dtype, mode="autoregressive")
    target = engine.hierarchy.stack_of(-1)
    found = list(kinds(target, [int(at) for at in args.exits.split(",") if at]))
    decoder = engine.with_settings(temperature=0.0).decoder()
    results: list[dict[str, Any]] = [
        {"kind": name, "lengths": lengths, "seconds": 0.0, "tokens": 0, "identical": 0, "judged": {}}
        for name, _, lengths in found
    ]
    for number, question in enumerate([*gsm8k_questions(args.gsm8k, 1), *gsm8k_questions(args.gsm8k, args.prompts)]):
        text = f"Question: {question}\nAnswer:" if args.raw else question
        prompt = encode_prompt(engine.tokenizer, text, raw=args.raw)
        expected = decoder.token_ids(prompt, args.max_new_tokens)
        for result, (_, hierarchy, lengths) in zip(results, found, strict=True):
            policy: Callable[[], StaticPolicy] = lambda own=lengths: StaticPolicy(own)  # noqa: E731
            events = list(replace(decoder, hierarchy=hierarchy, policy=policy).decode(prompt, args.max_new_tokens))
            if number == 0:  # to warm up
                continue
            ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
            prefill = sum(event.seconds for event in events if isinstance(event, Prefilled))
            result["seconds"] += events[-1].t - prefill
            result["tokens"] += len(ids)
            result["identical"] += ids == expected
            for event in events:
                if isinstance(event, Judged):
                    count = result["judged"].setdefault(event.level, [0, 0, 0])
                    for at, more in enumerate((event.accepted, event.proposed, 1)):
                        count[at] += more
    for result in results:
        result["tokens_per_second"] = round(result["tokens"] / result["seconds"], 1)
    best: dict[str, dict[str, Any]] = {}
    for result in sorted(results, key=lambda one: one["tokens_per_second"]):
        best[result["kind"]] = result
    plain = best["plain"]["tokens_per_second"]
    summary = {
        kind: {
            "tokens_per_second": result["tokens_per_second"],
            "over_plain": round(result["tokens_per_second"] / plain, 3),
            "lengths": result["lengths"],
            "identical": f"{result['identical']} of {args.prompts}",
        }
        for kind, result in sorted(best.items(), key=lambda item: -item[1]["tokens_per_second"])
    }
    save(
        args.name,
        {
            "model": Path(args.model).name,
            "prompts": args.prompts,
            "max_new_tokens": args.max_new_tokens,
            "dtype": args.dtype,
            "width": engine.environment["width"],
            "best": summary,
            "runs": results,
            "environment": environment(args.threads),
        },
        show=False,
    )
    for kind, one in summary.items():
        print(f"{kind:45} {one['tokens_per_second']:7.1f} tokens/s  {one['over_plain']:.2f}  {one['identical']}")


if __name__ == "__main__":
    main()
