"""Measures the resident memory that quantized copies add to a process, and compares it with the estimate.

The shapes of profiles are loaded with random weights, in a process of its own for each kind: without copies, with a whole
copy in 4 bits, and with one in 8 bits. Resident memory is read from the kernel when the model is loaded and has answered,
and the C library has given back what was freed. The estimate is compared with the part that no file backs: the pages of
libraries that quantizing needs, some 7 MB, are shared and are read again when they are needed. What the heap leaves unused
between allocations differs from run to run, so that the least of some runs counts.

    python benchmarks/copies_memory.py --profiles smollm2-135m smollm2-360m qwen3-0.6b --name copies-memory-cpu
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import torch
from common import environment, kilobytes, save

from hispec import Engine
from hispec.machine import give_back_memory
from hispec.memory import estimate
from hispec.precedence import resolve_settings
from hispec.profile import Profile, load_profile

KINDS = ("none", "int4", "int8")


def with_copy(name: str, kind: str) -> Profile:
    """Return a profile's target, with a whole copy below it or nothing."""
    draft = {} if kind == "none" else {"draft": {"weights": kind}}
    return Profile.model_validate({"name": kind, "target": load_profile(name).target.model_dump()} | draft)


def measure(args: argparse.Namespace) -> None:
    """Run the child: load, answer, then print the resident memory and the estimate."""
    torch.set_num_threads(args.threads)
    profile = with_copy(args.profiles[0], args.kind)
    options: dict[str, Any] = {"load_format": "dummy", "dtype": args.dtype, "max_new_tokens": 32, "policy": "static"}
    need = estimate(profile, resolve_settings(options, profile)[0])
    assert need is not None
    engine = Engine.from_profile(profile, **options)
    engine.generate("Hello")
    copies = engine.hierarchy.levels[0].stack if args.kind != "none" else None
    give_back_memory()
    print(
        json.dumps(
            {
                "resident_kb": kilobytes("VmRSS"),
                "own_kb": kilobytes("RssAnon"),
                "peak_kb": kilobytes("VmHWM"),
                "estimated_copies": need.models[0].copies,
                "estimated_total": need.total,
                "held_by_copies": getattr(copies, "quantized_bytes", 0),
            }
        )
    )


def compare(profile: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the memory that each kind of copy adds to a process, beside its estimate."""
    runs: dict[str, list[dict[str, int]]] = {kind: [] for kind in KINDS}
    for _ in range(args.repeats):
        for kind in KINDS:
            options = ["--profiles", profile, "--kind", kind, "--dtype", args.dtype, "--threads", str(args.threads)]
            command = [sys.executable, __file__, *options, "--name", args.name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[kind].append(json.loads(done.stdout.splitlines()[-1]))
    resident, own = (
        {kind: min(run[key] for run in found) for kind, found in runs.items()} for key in ("resident_kb", "own_kb")
    )
    added = {kind: 1024 * (own[kind] - own["none"]) for kind in KINDS[1:]}
    estimated = {kind: runs[kind][0]["estimated_copies"] for kind in added}
    return {
        "added_bytes": added,
        "estimated_bytes": estimated,
        "estimated_over_measured": {kind: round(estimated[kind] / size, 3) for kind, size in added.items()},
        "over_none": {kind: round(resident[kind] / resident["none"] - 1, 3) for kind in added},
        "over_estimate_of_none": {
            kind: round(size / runs["none"][0]["estimated_total"], 3) for kind, size in added.items()
        },
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", required=True, help="whose targets' shapes are taken")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, help="measure one in this process")
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    if args.kind:
        return measure(args)
    found = {profile: compare(profile, args) for profile in args.profiles}
    save(args.name, {"dtype": args.dtype, "profiles": found, "environment": environment(args.threads)})
    return None


if __name__ == "__main__":
    main()
