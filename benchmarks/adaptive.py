"""Compares the adaptive policy with its alternatives.

The prompts are those of the shipped dataset; questions of which half are in wordings that the shipped model has never
seen; and GSM8K questions, which it cannot answer. One interleaved run for each compares the adaptive hierarchy, the best
hierarchy of fixed lengths, the best single-layer speculation of fixed length, single-layer speculation with the adaptive
policy, and plain decoding, all calibrated on other prompts of the same kind. A replay of an oracle, which knows the
drafts that the target would accept, shows what remains to be gained. The last run changes from one kind of prompt to
another; its arms are calibrated on the first kind only.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from calibration_setup import MAX_NEW_TOKENS, CalibrationSetup, encoded, interleaved, sample_questions
from common import environment, gsm8k_questions, held_out_questions, save

from hispec.calibration.costs import Costs
from hispec.calibration.recording import RecordedText, RecordedTexts, Recorder, record_all
from hispec.calibration.replay import Replay
from hispec.calibration.search import PLAIN, Configuration, Scorer, search
from hispec.calibration.timing import Timings
from hispec.policies.base import Draft, Policy, Step, Verify
from hispec.policies.step_costs import MAX_WAITING


class Oracle(Policy):
    """A policy that knows the text: the cheapest level that is right drafts each token, and then the target verifies.

    If no level is right, one more token is drafted, which the verification corrects for free.
    """

    def __init__(self, text: RecordedText, replay: Replay) -> None:
        self.text, self.target = text, len(replay.specs) - 1
        self.right = [text.predictions[spec].argmax for spec in replay.specs]
        self.mistaken = False

    def next_step(self, verified: Sequence[int], may_draft: bool) -> Step:
        """Return the next step; see `Policy.next_step`."""
        at, waiting = verified[0], verified[0] - verified[-1]
        if self.mistaken or waiting >= MAX_WAITING or not may_draft:
            self.mistaken = False
            return Verify(self.target)
        for level in range(self.target):
            if self.right[level][at] == self.text.tokens[at]:
                return Draft(1, level)
        if not waiting:
            return Draft(1, self.target)
        self.mistaken = True
        return Draft(1, 0)


def arms_of(scorer: Scorer, setup: CalibrationSetup) -> dict[str, Configuration]:
    """Return the best of each kind, by replay."""
    found = search(setup.job.space, scorer)
    exact = [score for score in found.scores if score.texts == len(scorer.recorded.texts)]
    kinds: dict[str, Callable[[Configuration], object]] = {
        "adaptive hierarchy": lambda c: len(c.specs) == 2 and c.adaptive and c.ngram is None,
        "adaptive hierarchy with n-grams": lambda c: len(c.specs) == 2 and c.adaptive and c.ngram is not None,
        "static hierarchy": lambda c: len(c.specs) == 2 and c.periods and c.ngram is None,
        "single-layer": lambda c: len(c.specs) == 1 and c.periods and c.ngram is None,
        "adaptive single-layer": lambda c: len(c.specs) == 1 and c.adaptive and c.ngram is None,
    }
    arms = {}
    for name, kind in kinds.items():
        best = next((score.configuration for score in exact if kind(score.configuration)), None)
        if best is not None:
            arms[name] = best
    return arms | {"autoregressive": PLAIN}


def oracle(scorer: Scorer, configuration: Configuration) -> float:
    """Return tokens per second of the oracle with a configuration's levels, by replay."""
    replay = Replay(scorer.builder.hierarchy(configuration), scorer.recorded, scorer.costs, scorer.eos_ids, Random(0))
    tokens = seconds = 0.0
    for text in scorer.recorded.texts:
        outcome = replay.run(text, Oracle(text, replay))
        tokens, seconds = tokens + outcome.tokens, seconds + outcome.seconds
    return tokens / seconds


def compared(arms: dict[str, Configuration], timings: Timings, target: str) -> dict[str, Any]:
    """Return the speeds, and the ratios of the adaptive hierarchy to everything else."""
    names = list(arms)
    first = names.index("adaptive hierarchy")
    return {
        "arms": {
            name: {"what": arms[name].describe(target), "tokens_per_second": vars(timings.speed(at))}
            for at, name in enumerate(names)
        },
        "adaptive_hierarchy_over": {
            name: vars(timings.ratio(first, at)) for at, name in enumerate(names) if at != first
        },
        "single_layer_adaptive_over_fixed": vars(
            timings.ratio(names.index("adaptive single-layer"), names.index("single-layer"))
        ),
        "differing_answers": timings.differing(),
    }


def traced(setup: CalibrationSetup, costs: Costs, prompts: Sequence[list[int]]) -> RecordedTexts:
    """Return the recorded predictions of exits for some prompts."""
    job, timer = setup.job, setup.timer(setup.scorer_of(costs, RecordedTexts([], {})))
    recorder = Recorder(job.stacks, job.specs(job.space), job.heads, job.target)
    return record_all(recorder, prompts, lambda prompt: timer.answer(PLAIN, prompt)[0], Random(0))


def unseen_questions(seen: int, count: int) -> list[str]:
    """Return questions of both kinds of wording that `held_out_questions(seen)` does not have."""
    both = held_out_questions(seen + count)
    half = (seen + count) // 2
    return both[seen // 2 : half] + both[half + seen // 2 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=60, help="of each kind, to time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shipped = sample_questions()
    seen = {"sample": shipped[:60], "held_out": held_out_questions(90)}
    unseen = {"sample": shipped[60:], "held_out": unseen_questions(90, args.prompts)}
    questions = gsm8k_questions(args.gsm8k, 90 + args.prompts)
    seen["gsm8k"], unseen["gsm8k"] = questions[:90], questions[90:]
    setup = CalibrationSetup(120.0, seen["held_out"], exits=(1, 2, 3, 4, 5, 6, 8))
    job, engine = setup.job, setup.engine
    costs = setup.scorer().costs
    record: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "prompts": args.prompts, "repeats": args.repeats}
    prompts = {name: encoded(engine, asked[: args.prompts]) for name, asked in unseen.items()}
    arms, scorers = {}, {}
    for name, asked in seen.items():
        known = scorers[name] = setup.scorer_of(costs, traced(setup, costs, encoded(engine, asked)))
        arms[name] = arms_of(known, setup)
        timings = interleaved(setup.timer(known), list(arms[name].values()), prompts[name], args.repeats)
        record[name] = compared(arms[name], timings, job.target)
        replayed = {arm: known.score(one, known.recorded.texts).speed for arm, one in arms[name].items()}
        record[name]["replayed"] = replayed
        record[name]["oracle_replayed"] = {
            arm: oracle(known, arms[name][arm]) for arm in ("adaptive hierarchy", "adaptive single-layer")
        }
    record["change_of_character"] = change(setup, scorers["held_out"], arms, prompts, args.repeats)
    save("adaptive-cpu", record | {"environment": environment(args.threads)})


def change(
    setup: CalibrationSetup,
    scorer: Scorer,
    arms: dict[str, dict[str, Configuration]],
    prompts: dict[str, list[list[int]]],
    repeats: int,
) -> dict[str, Any]:
    """Measure prompts of one kind and then of another; the adaptive policy is calibrated on the first kind only."""
    both = [*prompts["held_out"], *prompts["gsm8k"]]
    chosen = {
        "adaptive": arms["held_out"]["adaptive hierarchy"],
        "static for the first kind": arms["held_out"]["static hierarchy"],
        "static for the second kind": arms["gsm8k"]["static hierarchy"],
        "single-layer for the first kind": arms["held_out"]["single-layer"],
        "single-layer for the second kind": arms["gsm8k"]["single-layer"],
    }
    distinct = list(dict.fromkeys(chosen.values()))
    timings = interleaved(setup.timer(scorer), distinct, both, repeats)
    first = distinct.index(chosen["adaptive"])
    return {
        "adaptive_over": {
            name: vars(timings.ratio(first, distinct.index(one))) for name, one in chosen.items() if name != "adaptive"
        },
        "arms": {name: one.describe(setup.job.target) for name, one in chosen.items()},
    }


if __name__ == "__main__":
    main()
