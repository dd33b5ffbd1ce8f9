"""Measures where a decoding cycle spends its time: torch.profiler over whole answers, from one target pass to the next.

Kernels and the calls that reach them are told apart from the loop around them: what no operator accounts for is Python.
"""

import argparse
from time import perf_counter
from typing import Any

import torch
from common import environment, held_out_questions, save
from torch.profiler import ProfilerActivity, profile

from hispec import Engine
from hispec.events import Prefilled, Verified
from hispec.text import encode_prompt


def decode(engine: Engine, prompts: list[list[int]]) -> dict[str, float]:
    """Answer every prompt, and return cycles, tokens and seconds by phase, prompts left out."""
    spent: dict[str, float] = {"rounds": 0, "tokens": 0}
    for prompt in prompts:
        for event in engine.decoder().decode(prompt, 96):
            if isinstance(event, Prefilled):
                continue
            if (level := getattr(event, "level", None)) is not None:
                spent[level] = spent.get(level, 0.0) + event.seconds  # type: ignore[union-attr]
                spent["rounds"] += isinstance(event, Verified) and level == "target"
            spent["tokens"] += len(getattr(event, "token_ids", ())) if level is None else 0
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mode", default="hispec")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile("tiny", mode=args.mode)
    prompts = [encode_prompt(engine.tokenizer, question) for question in held_out_questions(args.prompts)]
    decode(engine, prompts)  # warm
    began = perf_counter()
    plain = decode(engine, prompts)
    wall = perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        decode(engine, prompts)
    operators = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total_us = sum(row.self_cpu_time_total for row in operators)
    record: dict[str, Any] = {
        "mode": args.mode,
        "rounds": plain["rounds"],
        "tokens": plain["tokens"],
        "milliseconds_per_round": {
            level: 1e3 * plain[level] / plain["rounds"]
            for level in ("draft", "intermediate", "target")
            if level in plain
        },
        "wall_seconds_unprofiled": wall,
        "operator_calls": sum(row.count for row in operators),
        "operators": [
            {"name": row.key, "calls": row.count, "share_of_operator_time": row.self_cpu_time_total / total_us}
            for row in operators[:14]
        ],
        "operator_seconds_profiled": total_us / 1e6,
        "environment": {**environment(args.threads), "stack": engine.environment["stack"]},
    }
    save(f"round-{args.mode}", record)


if __name__ == "__main__":
    main()
