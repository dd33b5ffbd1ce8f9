"""Compares fixed shapes, recorded as CUDA graphs on CUDA, with the same stack without them; on a CPU they cost time.

Both arms share their weights. Every prompt is answered by every arm in turn, several times over; an arm's seconds for a
prompt are its fastest. The cost of recording is the additional time of the first answer.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from common import environment, held_out_questions, interval95, save

from hispec import Engine
from hispec.models.fused_stack import FusedStack
from hispec.models.graphs import CudaRecorder, GraphedStack
from hispec.models.stack import LayerStack

MODES = ("autoregressive", "single-layer", "hispec")


def fixed(stack: LayerStack) -> GraphedStack:
    """Return the same weights in fixed shapes."""
    assert isinstance(stack, FusedStack), "only the fused stack has fixed shapes"
    return GraphedStack.of(stack, CudaRecorder(stack.device) if stack.device.type == "cuda" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {"dtype": args.dtype, "load_format": args.load_format, "max_new_tokens": args.max_new_tokens}
    plain = Engine.from_profile(args.profile, device=args.device, graphs="off", **options)
    stacks = {model: fixed(stack) for model, stack in plain.stacks.items()}
    graphed = Engine(plain.profile, plain.settings, replace(plain.models, stacks=stacks))
    arms = {
        f"{name} {mode}": engine.with_settings(mode=mode)
        for name, engine in (("as it is", plain), ("fixed", graphed))
        for mode in MODES
    }
    first, fastest = defaultdict(list), defaultdict(list)
    tokens: dict[str, int] = defaultdict(int)
    identical = 0
    for question in held_out_questions(args.prompts):
        times = defaultdict(list)
        written = set()
        for _ in range(args.repeats):
            for name, engine in arms.items():
                answer = engine.generate(question)
                times[name].append(answer.stats.total_seconds)
                written.add(tuple(answer.token_ids))
        identical += len(written) == 1
        for name, seconds in times.items():
            first[name].append(seconds[0])
            fastest[name].append(min(seconds))
            tokens[name] += answer.stats.new_tokens

    def ratio(mode: str) -> dict[str, Any]:
        pairs = list(zip(fastest[f"as it is {mode}"], fastest[f"fixed {mode}"], strict=True))

        def statistic(some: Any) -> float:
            return float(sum(one for one, _ in some) / sum(two for _, two in some))

        return {"value": statistic(pairs), "ci95": interval95(pairs, statistic)}

    recorded = {model: len(stack._recorded) for model, stack in stacks.items()}
    record = {
        "what": "tokens per second in fixed shapes and without, the fastest of several runs of each prompt, interleaved",
        "profile": args.profile,
        "weights": args.load_format,
        "dtype": plain.environment["dtype"],
        "prompts": args.prompts,
        "repeats": args.repeats,
        "identical_token_ids": identical,
        "arms": {
            name: {
                "tokens_per_second": tokens[name] / sum(seconds),
                "seconds_of_first_answers": sum(first[name]),
                "seconds_of_fastest_answers": sum(seconds),
            }
            for name, seconds in fastest.items()
        },
        "graphs": recorded,
        "speedup of fixed shapes": {mode: ratio(mode) for mode in MODES},
        "environment": {**environment(1), "device": plain.environment["device"]},
    }
    save(f"graphs-{args.profile}-{plain.device.type}-{plain.environment['dtype']}", record)


if __name__ == "__main__":
    main()
