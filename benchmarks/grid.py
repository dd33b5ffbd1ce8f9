"""Compares a calibration with an exhaustive timed grid: the speed of what it finds, and the time that it takes."""

import argparse
from time import perf_counter

import torch
from calibration_setup import CalibrationSetup, interleaved
from common import environment, save

from hispec.calibration.result import CalibrationResult
from hispec.calibration.search import Configuration, SearchSpace

EXITS = (1, 2, 3, 4, 6, 8)
DRAFT_TOKENS = (1, 2, 4, 6)
VALIDATE_EVERY = (4, 8, 12, 16, 24, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=45.0, help="seconds of each calibration")
    parser.add_argument("--prompts", type=int, default=24, help="of each configuration of the grid")
    parser.add_argument("--final-repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    calibrations = []
    for seed in (0, 1):
        setup = CalibrationSetup(args.budget)
        job = setup.job
        object.__setattr__(job, "seed", seed)
        began = perf_counter()
        result = setup.calibrate()
        calibrations.append((result, perf_counter() - began))
    target = job.target
    specs = {spec.exit_layer: spec for spec in job.space.exits}
    space = SearchSpace(
        tuple(specs[exit_layer] for exit_layer in EXITS if exit_layer in specs),
        draft_tokens=DRAFT_TOKENS,
        validate_every=VALIDATE_EVERY,
    )
    grid = list(space.static())
    timer, prompts = setup.timer(result.scorer), setup.prompts
    began = perf_counter()
    timings = interleaved(timer, grid, prompts[: args.prompts], 1)
    grid_seconds = perf_counter() - began
    best = [grid[at] for at in timings.fastest(range(len(grid)))[:5]]
    winners = [result.winner for result, _ in calibrations]
    statics = [_best_static(result) for result, _ in calibrations]
    finals: list[Configuration] = list(dict.fromkeys([*winners, *statics, *best]))
    final = interleaved(timer, finals, prompts, args.final_repeats)
    first = max((finals.index(one) for one in best), key=lambda at: final.speed(at).value)
    save(
        "grid-cpu",
        {
            "grid": {
                "configurations": len(grid),
                "prompts": args.prompts,
                "seconds": grid_seconds,
                "best": [one.describe(target) for one in best],
            },
            "calibrations": [
                {
                    "winner": result.winner.describe(target),
                    "ties": [one.describe(target) for one in result.ties],
                    "seconds": seconds,
                    "share_of_the_grids_time": seconds / grid_seconds,
                    "over_the_grids_best": vars(final.ratio(finals.index(result.winner), first)),
                    "best_of_fixed_length": {
                        "what": static.describe(target),
                        "over_the_grids_best": vars(final.ratio(finals.index(static), first)),
                    },
                }
                for (result, seconds), static in zip(calibrations, statics, strict=True)
            ],
            "final": [
                {"configuration": one.describe(target), "tokens_per_second": vars(final.speed(at))}
                for at, one in enumerate(finals)
            ],
            "winners_over_each_other": vars(final.ratio(finals.index(winners[0]), finals.index(winners[1]))),
            "environment": environment(args.threads),
        },
    )


def _best_static(result: CalibrationResult) -> Configuration:
    """Return the fastest of fixed length that the calibration timed."""
    timings = result.timings
    ranked = timings.fastest(range(len(timings.configurations)))
    return next(timings.configurations[at] for at in ranked if timings.configurations[at].periods)


if __name__ == "__main__":
    main()
