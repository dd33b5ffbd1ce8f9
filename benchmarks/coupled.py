"""Compares coupled sampling with the rejection sampling that it replaced: acceptance and tokens per second.

The two rules were never in one version of the code, so each answers in processes of its own checkout, in turn:

    python benchmarks/coupled.py --trees REJECTION COUPLED --model DIR --gsm8k FILE --name coupled-NAME
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

SAMPLINGS = {
    "temperature 0.6, top-p 0.9": {"temperature": 0.6, "top_p": 0.9},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
}


def answer(args: argparse.Namespace) -> None:
    """Answer with the code of one tree and print the sums of each sampling."""
    import torch

    from hispec import Engine
    from hispec.events import Committed, Prefilled
    from hispec.profile import profile_for_model

    torch.set_num_threads(args.threads)
    with args.gsm8k.open(encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] for _, line in zip(range(args.prompts), lines, strict=False)]
    profile = profile_for_model(str(args.model), 16, *args.exits)
    engine = Engine.from_profile(profile, dtype=args.dtype, draft_tokens=3, validate_every=8)
    found = {}
    for name, settings in SAMPLINGS.items():
        own = engine.with_settings(**settings)
        sums: dict[str, Any] = {"tokens": 0, "seconds": 0.0, "passes": 0, "levels": {}}
        for number, question in enumerate([questions[0], *questions]):
            prompt = engine.tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
            older: Any = own  # trees of before decoders had another method
            if hasattr(own, "decoder"):
                decoded = own.decoder().decode(prompt, args.max_new_tokens, number + args.seed)
            else:
                decoded = older.decode_ids(own.hierarchy, prompt, args.max_new_tokens, own.eos_ids, number + args.seed)
            begin = perf_counter()
            events: list[Any] = list(decoded)
            if not number:
                continue  # warm-up
            sums["seconds"] += perf_counter() - begin
            for event in events:
                sums["tokens"] += len(event.token_ids) if isinstance(event, Committed) else 0
                sums["passes"] += isinstance(event, Prefilled) or getattr(event, "level", "") == "target"
                if event.kind == "judged":  # its class has another name in older trees
                    # The verified tokens of each verification: those after a rejected one do not count.
                    level = sums["levels"].setdefault(event.level, [0, 0])
                    level[0] += event.accepted
                    level[1] += event.accepted + (event.accepted < event.proposed)
        found[name] = sums
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=Path, nargs=2, metavar=("REJECTION", "COUPLED"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--exits", type=int, nargs=2, default=(1, 4))
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    args = parser.parse_args()
    if args.trees is None:
        answer(args)
        return
    from common import environment, save

    totals: dict[str, dict[str, dict[str, Any]]] = {"rejection": {}, "coupled": {}}
    for turn in range(args.rounds):
        for rule, tree in zip(totals, args.trees, strict=True):
            command = [sys.executable, __file__, "--model", args.model, "--gsm8k", args.gsm8k]
            command += ["--exits", *map(str, args.exits), "--prompts", str(args.prompts), "--dtype", args.dtype]
            command += ["--threads", str(args.threads), "--seed", str(1000 * turn)]
            path = os.pathsep.join((str(tree / "core"), str(tree)))
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
            )
            for sampling, sums in json.loads(done.stdout).items():
                total = totals[rule].setdefault(sampling, {"tokens": 0, "seconds": 0.0, "passes": 0, "levels": {}})
                for key in ("tokens", "seconds", "passes"):
                    total[key] += sums[key]
                for level, counts in sums["levels"].items():
                    known = total["levels"].get(level, [0, 0])
                    total["levels"][level] = [a + b for a, b in zip(known, counts, strict=True)]
    results = [
        {
            "sampling": sampling,
            "rule": rule,
            "acceptance_per_token": {name: round(a / b, 3) for name, (a, b) in sums["levels"].items()},
            "tokens_per_target_pass": round(sums["tokens"] / sums["passes"], 2),
            "tokens_per_second": round(sums["tokens"] / sums["seconds"], 1),
            "tokens": sums["tokens"],
        }
        for sampling in SAMPLINGS
        for rule, found in totals.items()
        for sums in (found[sampling],)
    ]
    save(
        args.name,
        {
            "model": args.model.name,
            "dtype": args.dtype,
            "exits": list(args.exits),
            "prompts": args.prompts,
            "rounds": args.rounds,
            "results": results,
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
