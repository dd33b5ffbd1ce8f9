"""Computes the speed from the passes that `quantized_levels.py` counted, if a pass takes as long as reading its
weights.

This is a GPU at batch 1, on which further rows are nearly free; calls, attention and the KV cache are left out. A pass of
the whole model is the unit.

    python benchmarks/gpu_estimate.py --model DIR --exits 1,4 --results quantized-levels-lab-ee --name gpu-estimate-lab-ee
    python benchmarks/gpu_estimate.py --model DIR --results quantized-levels-smollm2 --name gpu-estimate-smollm2
"""

import argparse
import json
from collections import Counter
from typing import Any

from common import RESULTS, save
from limits import Sizes

from hispec.models.checkpoint import Checkpoint
from hispec.models.dtypes import bits_per_weight


def price(run: dict[str, Any], sizes: Sizes, hidden_size: int, exits: list[int]) -> float:
    """Return the cost of a run's passes.

    Args:
        run: its kind, and for each level above the first tokens accepted, tokens verified, and passes.
        sizes: the sizes of the model, in bfloat16.
        hidden_size: the hidden size of the model.
        exits: the exits of the run's levels, in layers of the model's own depth, shallow to deep.
    """
    *names, _ = run["kind"].split(" (")[0].split(" > ")
    verified, own = list(run["judged"].values()), iter(exits)
    cost, below = 0.0, ("", 0)
    for at, name in enumerate([*names, "target"]):
        if name == "n-grams":
            continue
        depth = next(own) if "exit" in name else sizes.layers
        weights = {"int4": "int4", "int8": "int8", "4-bit exit": "int4", "8-bit exit": "int8"}.get(name, "")
        first = below[1] if below[0] == weights else 0  # it goes on from the hidden states of the level below
        share = bits_per_weight(weights, hidden_size) / 16 if weights else 1.0
        # A copy reads the target's head.
        read = (share * (depth - first) * sizes.layer + sizes.head(None)) / sizes.total
        if at == 0:  # it drafts one token a pass
            passes = verified[0][1]
        elif names[at - 1 : at] == ["n-grams"] and name != "target":  # it drafts too, where no n-gram is found
            passes = verified[at][1] - verified[at - 1][0]
        else:
            passes = verified[at - 1][2]
        cost += passes * read
        below = weights, depth
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder with its config.json")
    parser.add_argument("--exits", default="", help="of results that do not tell those of each run")
    parser.add_argument("--results", required=True, help="the name of its result")
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    exits = [int(at) for at in args.exits.split(",") if at]
    config = Checkpoint(args.model).config
    sizes = Sizes.of(config, 2)
    record = json.loads((RESULTS / f"{args.results}.json").read_text())
    seen: Counter[str] = Counter()
    best: dict[str, dict[str, Any]] = {}
    runs = record.get("runs") or [{"kind": kind} | arm for kind, arm in record["arms"].items() if arm["lengths"]]
    for run in runs:
        kind, lengths = run["kind"], run["lengths"]
        if kind == "plain":
            continue
        read = run.get("exits", exits)
        # Where a result does not say, single levels ran at the first exit, then at twice its depth.
        if "exits" not in run and kind.count("exit") == 1 and "int" not in kind:
            key = f"{kind} {lengths}"
            seen[key] += 1
            read = [seen[key] * exits[0]]
        over = round(run["tokens"] / price(run, sizes, config.hidden_size, read), 2)
        if over > best.get(kind, {}).get("over_plain", 0):
            best[kind] = {"over_plain": over, "lengths": lengths, "exits": read[: kind.split(" (")[0].count("exit")]}
    ordered = dict(sorted(best.items(), key=lambda item: -item[1]["over_plain"]))
    save(args.name, {"model": record["model"], "passes": f"{args.results}.json", "best": ordered})


if __name__ == "__main__":
    main()
