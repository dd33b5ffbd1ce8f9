"""Which exits and lengths are fastest? A coarse grid for hispec and for single-layer speculation.

Every setting answers each prompt before the next prompt comes, so that a machine that slows down slows all alike.
The figures choose a profile's defaults; they are too coarse to compare two settings that are close.
"""

import argparse
from itertools import product
from typing import Any

import torch
from common import environment, held_out_questions, save

from hispec import Engine
from hispec.profile import load_profile, with_exits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = Engine.from_profile("tiny", max_new_tokens=200)

    def engine(draft: int, intermediate: int, **settings: Any) -> Engine:
        return loaded.with_profile(with_exits(load_profile("tiny"), draft, intermediate)).with_settings(**settings)

    engines = {"autoregressive": loaded.with_settings(mode="autoregressive")}
    for draft, length in product((1, 2, 3), (3, 4, 6, 8, 12)):
        engines[f"single-layer {draft} k={length}"] = engine(draft, 15, mode="single-layer", validate_every=length)
    for (draft, deeper), n_d, n_i in product(((1, 2), (1, 3), (2, 4), (2, 6)), (2, 3, 4, 6), (4, 8, 12)):
        if n_d <= n_i:
            engines[f"hispec {draft},{deeper} N_d={n_d} N_i={n_i}"] = engine(
                draft, deeper, draft_tokens=n_d, validate_every=n_i
            )
    tokens, seconds = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0.0)
    for question in held_out_questions(args.prompts):
        for name, each in engines.items():
            stats = each.generate(question).stats
            tokens[name] += stats.new_tokens
            seconds[name] += stats.total_seconds
    speeds = {name: tokens[name] / seconds[name] for name in engines}
    plain = speeds["autoregressive"]
    ranked = sorted(speeds.items(), key=lambda item: -item[1])
    save(
        "lengths-cpu",
        {
            "prompts": args.prompts,
            "dtype": loaded.environment["dtype"],
            "settings": {name: {"tokens_per_second": speed, "speedup": speed / plain} for name, speed in ranked},
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
