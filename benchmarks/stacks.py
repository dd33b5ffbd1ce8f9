"""Compares the fused stack with that of `transformers`, and reduced heads with whole ones, on the shipped model.

Every prompt is answered by every arm in turn, several times over; an arm's seconds for a prompt are its fastest, since
other load can only add to them. Token ids are compared on the way.
"""

import argparse
from collections import defaultdict
from typing import Any

import torch
from common import environment, held_out_questions, interval95, save

from hispec import Engine
from hispec.profile import Profile, load_profile

MODES = ("autoregressive", "hispec")


def with_heads(profile: Profile, draft: int | None, intermediate: int | None) -> Profile:
    """Return the profile with other heads at its draft and intermediate exits."""
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    data["draft"]["head"], data["intermediate"]["head"] = draft, intermediate
    return Profile.model_validate(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads", type=int, nargs="*", default=[64, 128, 256])
    args = parser.parse_args()
    torch.set_num_threads(1)
    profile = with_heads(load_profile("tiny"), None, None)
    arms: dict[str, Engine] = {}
    for stack in ("fused", "transformers"):
        engine = Engine.from_profile(profile, stack=stack, dtype=args.dtype, max_new_tokens=200)
        arms |= {f"{stack} {mode}": engine.with_settings(mode=mode) for mode in MODES}
        if stack == "fused":
            for head_size in args.heads:
                arms[f"fused hispec, draft head {head_size}"] = engine.with_profile(
                    with_heads(profile, head_size, None)
                )
                arms[f"fused hispec, both heads {head_size}"] = engine.with_profile(
                    with_heads(profile, head_size, head_size)
                )
    seconds: dict[str, list[float]] = defaultdict(list)
    levels: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    tokens, identical = [], 0
    for question in held_out_questions(args.prompts):
        fastest = dict.fromkeys(arms, float("inf"))
        written = set()
        for repeat in range(args.repeats):
            for name, engine in arms.items():
                answer = engine.generate(question)
                fastest[name] = min(fastest[name], answer.stats.total_seconds)
                written.add(tuple(answer.token_ids))
                for level in answer.stats.levels if repeat == 0 else ():
                    levels[name][level.name][0] += level.proposed
                    levels[name][level.name][1] += level.accepted
        identical += len(written) == 1
        tokens.append(answer.stats.new_tokens)
        for name, value in fastest.items():
            seconds[name].append(value)

    def ratio(name: str, other: str) -> dict[str, Any]:
        pairs = list(zip(seconds[name], seconds[other], strict=True))

        def statistic(some: Any) -> float:
            return float(sum(theirs for _, theirs in some) / sum(own for own, _ in some))

        return {"value": statistic(pairs), "ci95": interval95(pairs, statistic)}

    record = {
        "what": "tokens per second by stack, mode and head; the fastest of several runs of each prompt, interleaved",
        "dtype": args.dtype,
        "prompts": args.prompts,
        "repeats": args.repeats,
        "identical_token_ids": identical,
        "arms": {
            name: {
                "tokens_per_second": sum(tokens) / sum(seconds[name]),
                "acceptance": {level: accepted / proposed for level, (proposed, accepted) in levels[name].items()},
            }
            for name in arms
        },
        "speedup": {
            **{f"fused over transformers, {mode}": ratio(f"fused {mode}", f"transformers {mode}") for mode in MODES},
            "hispec over autoregressive, fused": ratio("fused hispec", "fused autoregressive"),
            **{
                f"{name} over whole heads": ratio(name, "fused hispec")
                for name in arms
                if "head " in name or "heads " in name
            },
        },
        "environment": environment(1),
    }
    save(f"stacks-cpu-{args.dtype}", record)


if __name__ == "__main__":
    main()
