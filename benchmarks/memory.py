"""Measures the peak memory of each mode, in a process of its own: resident memory as the kernel counts it (VmHWM)."""

import argparse
import json
import subprocess
import sys

import torch
from common import environment, held_out_questions, kilobytes, save

from hispec import Engine

MODES = ("autoregressive", "single-layer", "hispec")


def measure(mode: str, args: argparse.Namespace) -> None:
    """Run the child: answer long prompts, then print the peaks."""
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile("tiny", mode=mode, max_new_tokens=args.max_new_tokens)
    loaded = kilobytes("VmRSS")
    for start in range(args.prompts):
        engine.generate("\n".join(held_out_questions(args.prompts * 12)[start::12][:12]))
    print(json.dumps({"loaded_kb": loaded, "peak_kb": kilobytes("VmHWM")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=MODES, help="measure one mode in this process")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.mode:
        return measure(args.mode, args)
    peaks: dict[str, list[dict[str, int]]] = {mode: [] for mode in MODES}
    for _ in range(args.repeats):
        for mode in MODES:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--mode", mode], capture_output=True, text=True, check=True
            )
            peaks[mode].append(json.loads(done.stdout.splitlines()[-1]))
    lowest = {mode: min(run["peak_kb"] for run in runs) for mode, runs in peaks.items()}
    over = {mode: peak / lowest["autoregressive"] - 1 for mode, peak in lowest.items()}
    save(
        "memory-cpu",
        {
            "runs": peaks,
            "lowest_peak_kb": lowest,
            "over_autoregressive": over,
            "environment": environment(args.threads),
        },
    )
    return None


if __name__ == "__main__":
    main()
