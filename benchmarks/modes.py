"""Tokens per second of hispec, single-layer and autoregressive decoding on the same loaded weights.

Every prompt is answered by every mode before the next prompt, the order turning from prompt to prompt, so a machine
that slows down slows all modes alike. The first prompts warm up and do not count. Speed is pooled tokens over
pooled seconds; its 95 % interval is a bootstrap over prompts. Token ids are compared on the way.
"""

import argparse
from typing import Any

import torch
from common import environment, held_out_questions, interval95, save

from hispec import Engine
from hispec.profile import Draft, Profile, load_profile, with_exits

MODES = ("hispec", "single-layer", "autoregressive")
WARM_UP = 3


def speed(rows: Any) -> float:
    """Pooled tokens per second."""
    return sum(tokens for tokens, _ in rows) / sum(seconds for _, seconds in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--draft-tokens", type=int)
    parser.add_argument("--validate-every", type=int)
    parser.add_argument(
        "--single-layer-exit", type=int, help="draft exit of the single-layer mode, the fastest of a grid"
    )
    parser.add_argument("--single-layer-tokens", type=int, help="its draft length")
    parser.add_argument("--draft-exit", type=int)
    parser.add_argument("--intermediate-exit", type=int)
    parser.add_argument("--name", default="modes-cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    profile = with_exits(load_profile(args.profile), args.draft_exit, args.intermediate_exit)
    lengths = {"draft_tokens": args.draft_tokens, "validate_every": args.validate_every}
    hispec = Engine.from_profile(profile, max_new_tokens=args.max_new_tokens, **lengths)
    engines = {mode: hispec.with_settings(mode=mode) for mode in MODES}
    if args.single_layer_exit:
        tuned = Profile(name=profile.name, target=profile.target, draft=Draft(exit_layer=args.single_layer_exit))
        engines["single-layer"] = engines["single-layer"].with_profile(tuned)
    if args.single_layer_tokens:
        engines["single-layer"] = engines["single-layer"].with_settings(validate_every=args.single_layer_tokens)
    rows: dict[str, list[tuple[int, float]]] = {mode: [] for mode in MODES}
    passes = dict.fromkeys(MODES, 0)
    levels: dict[str, Any] = {}
    identical = 0
    for number, question in enumerate(held_out_questions(args.prompts + WARM_UP)):
        turn = number % len(MODES)
        answers = {mode: engines[mode].generate(question) for mode in MODES[turn:] + MODES[:turn]}
        if number < WARM_UP:
            continue
        identical += len({tuple(answer.token_ids) for answer in answers.values()}) == 1
        for mode, answer in answers.items():
            rows[mode].append((answer.stats.new_tokens, answer.stats.total_seconds))
            passes[mode] += answer.stats.target_passes
            for level in answer.stats.levels:
                counts = levels.setdefault(mode, {}).setdefault(level.name, {"proposed": 0, "accepted": 0})
                counts["proposed"] += level.proposed
                counts["accepted"] += level.accepted

    def ratio(mode: str) -> dict[str, Any]:
        pairs = list(zip(rows[mode], rows["autoregressive"], strict=True))
        statistic = lambda some: speed([own for own, _ in some]) / speed([other for _, other in some])  # noqa: E731
        return {"value": statistic(pairs), "ci95": interval95(pairs, statistic)}

    save(
        args.name,
        {
            "what": "tokens per second by mode, same weights, interleaved",
            "profile": profile.name,
            "dtype": hispec.environment["dtype"],
            "exits": {mode: [level.exit_layer for level in engines[mode].hierarchy.levels] for mode in MODES},
            "draft_tokens": hispec.settings.draft_tokens,
            "validate_every": hispec.settings.validate_every,
            "single_layer_tokens": engines["single-layer"].settings.validate_every,
            "prompts": args.prompts,
            "identical_token_ids": identical,
            "modes": {
                mode: {
                    "tokens": sum(tokens for tokens, _ in rows[mode]),
                    "seconds": sum(seconds for _, seconds in rows[mode]),
                    "tokens_per_second": speed(rows[mode]),
                    "ci95": interval95(rows[mode], speed),
                    "speedup_over_autoregressive": ratio(mode),
                    "tokens_per_target_pass": sum(tokens for tokens, _ in rows[mode]) / passes[mode],
                    "levels": levels.get(mode, {}),
                }
                for mode in MODES
            },
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
