"""Measures how much the measuring of step costs delays the first token.

Each run is a process of its own that loads a model, decodes a prompt and stops at the first token: with an empty cache
folder, with the one that the run before has filled, and with fixed lengths, for which nothing is measured. They take
turns.

    python benchmarks/first_token.py --model DIR --name first-token-NAME
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from common import environment, save

RUN = """
import json, sys
from time import perf_counter
began = perf_counter()
import torch
torch.set_num_threads(int(sys.argv[2]))
from hispec import Engine
from hispec.events import Committed
from hispec.profile import profile_for_model
from hispec.models.checkpoint import Checkpoint
imported = perf_counter()
model = sys.argv[1]
engine = Engine.from_profile(profile_for_model(model, Checkpoint(model).config.num_layers, None, None), **json.loads(sys.argv[3]))
loaded = perf_counter()
prompt = engine.tokenizer("Tell me about the history of bread.")["input_ids"]
for event in engine.decoder().decode(prompt, 8):
    if isinstance(event, Committed):
        break
print(json.dumps({"imports": imported - began, "loading": loaded - imported, "first token": perf_counter() - loaded}))
"""
"""The steps of a run, and the seconds of each."""


def run(model: str, threads: int, cache: Path, **options: Any) -> dict[str, float]:
    """Return the seconds of the parts of a new process."""
    command = [sys.executable, "-c", RUN, model, str(threads), json.dumps(options)]
    done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, check=True)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a GGUF file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"first run": [], "later run": [], "nothing measured": []}
    with TemporaryDirectory() as kernels:  # which kernels are fastest is measured for fixed lengths, too
        run(args.model, args.threads, Path(kernels), policy="static")
        for repeat in range(args.repeats):
            cache = Path(kernels) / str(repeat)
            found["nothing measured"].append(run(args.model, args.threads, Path(kernels), policy="static"))
            found["first run"].append(run(args.model, args.threads, cache))
            found["later run"].append(run(args.model, args.threads, cache))
    seconds = {
        name: {part: round(median(one[part] for one in runs), 3) for part in runs[0]} for name, runs in found.items()
    }
    totals = {name: sum(parts.values()) for name, parts in seconds.items()}
    added = {name: round(total - totals["nothing measured"], 3) for name, total in totals.items()}
    save(
        args.name,
        {
            "model": Path(args.model).name,
            "repeats": args.repeats,
            "median_seconds": seconds,
            "added_seconds": added,
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
