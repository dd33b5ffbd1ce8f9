"""Measures how well replay predicts the speed of decoding, on random configurations, and the speed of replay itself."""

import argparse
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import torch
from calibration_setup import CalibrationSetup, interleaved
from common import RESULTS, environment, save

from hispec.calibration.search import Configuration


def draw(setup: CalibrationSetup, count: int, rng: Random) -> list[Configuration]:
    """Return distinct configurations of fixed length and adaptive ones, one in five of the latter."""
    static = list(setup.job.space.static())
    chains = list(setup.job.space.chains())
    chosen: dict[Configuration, None] = {}
    while len(chosen) < count:
        chosen[Configuration(rng.choice(chains)) if rng.random() < 0.2 else rng.choice(static)] = None
    return list(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setup = CalibrationSetup(budget=120.0)
    scorer = setup.scorer()
    configurations = draw(setup, args.configurations, Random(args.seed))
    texts = scorer.recorded.texts[: args.prompts]
    began = perf_counter()
    static = list(setup.job.space.static())
    Random(0).shuffle(static)
    for configuration in static[:500]:
        scorer.score(configuration, texts[:6])
    per_minute_coarse = 500 / (perf_counter() - began) * 60
    began = perf_counter()
    scores = [scorer.score(configuration, texts) for configuration in configurations]
    per_minute = len(scores) / (perf_counter() - began) * 60
    timings = interleaved(setup.timer(scorer), configurations, [text.prompt for text in texts], args.repeats)
    rows: list[dict[str, Any]] = []
    for at, score in enumerate(scores):
        timed = timings.speed(at)
        rows.append(
            {
                "configuration": score.configuration.describe(setup.job.target),
                "replayed": score.speed,
                "timed": timed.value,
                "timed_ci95": timed.ci95,
                "error": score.speed / timed.value - 1,
            }
        )
    errors = [abs(row["error"]) for row in rows]
    save(
        "replays-cpu",
        {
            "median_absolute_error": median(errors),
            "largest_absolute_error": max(errors),
            "configurations_per_minute": {"on 6 texts": per_minute_coarse, f"on {len(texts)} texts": per_minute},
            "differing_answers": timings.differing(),
            "rows": rows,
            "prompts": len(texts),
            "repeats": args.repeats,
            "environment": environment(args.threads),
        },
    )
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.plot([row["timed"] for row in rows], [row["replayed"] for row in rows], "o", markersize=4)
    top = 1.05 * max(max(row["timed"], row["replayed"]) for row in rows)
    axes.plot([0, top], [0, top], linewidth=1, color="grey")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="timed, tokens/s", ylabel="replayed, tokens/s")
    figure.tight_layout()
    figure.savefig(RESULTS / "replays-cpu.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
