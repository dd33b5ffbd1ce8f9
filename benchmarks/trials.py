r"""Counts the passes that the default decoding spends on levels that do not pay, and what they cost.

Real models decode real prompts, but every step takes the time that the costs of steps say, so that decisions, counts and
the speed-up over plain decoding are the same in every run, on a machine however busy. One session answers all prompts, of
one kind of text after the other. A trial is any step while other levels than the target alone are active, passes of the
target where no n-gram is found among them. Plain decoding takes one pass for each token. All is done twice: as the policy
is, and with trials that neither end early nor are put off by failures.

    python benchmarks/trials.py --model DIR --gsm8k FILE --dummy --raw --name trials-random
"""

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import RESULTS, engine_without_profile, environment, save
from defaults import texts

from hispec import Engine
from hispec.adaptation import level_key, levels_key, performance_model
from hispec.events import Committed
from hispec.policies import adaptive
from hispec.policies import performance_model as performance_models
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Step, Verify
from hispec.policies.performance_model import PerformanceModel
from hispec.policies.step_costs import Pair, StepCosts
from hispec.step_timing import step_costs
from hispec.text import encode_prompt

POLICIES = {
    "as it is": (adaptive.STOP_TRIAL_AFTER, performance_models.SLOWER),
    "trials neither end early nor are put off": (adaptive.RESELECT_AFTER, 1),
}
"""The values of `STOP_TRIAL_AFTER` and `SLOWER`."""


@dataclass
class Spent:
    """The passes and the time of decoding, by active levels.

    Attributes:
        passes: passes of a model: a drafted token or a verification.
        time: the cost of all steps.
        trials: the number of times that levels other than the target alone became active.
    """

    passes: Counter[str] = field(default_factory=Counter)
    time: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    trials: Counter[str] = field(default_factory=Counter)


class CountingPolicy(AdaptivePolicy):
    """The adaptive policy, for which steps take the time that their costs say.

    Args:
        model: the performance model of the session.
        spent: to which steps are added.
        names: the names of active levels.
        chance: draws by how much steps deviate from their costs; None: not at all.
    """

    def __init__(self, model: PerformanceModel, spent: Spent, names: dict[Any, str], chance: Random | None) -> None:
        self._spent_on, self._names, self._chance, self._before = spent, names, chance, ""
        super().__init__(model)

    def on_timing(self, step: Step, seconds: float) -> None:
        """Learn the time that a step costs, in place of the one that it took."""
        model, name = self._model, self._names[self.active]
        if isinstance(step, Verify):
            assert self._verified is not None
            pair, tokens, _ = self._verified
            cost, passes = model.costs.verification(pair, tokens + (pair[1] in model.bonus)), 1
        else:
            cost = step.tokens * model.costs.draft[step.level]
            passes = 0 if model.ngrams and step.level == 0 else step.tokens
        if name != self._before:
            self._spent_on.trials[name] += 1
            self._before = name
        self._spent_on.passes[name] += passes
        self._spent_on.time[name] += cost
        super().on_timing(step, cost * (1 if self._chance is None else self._chance.lognormvariate(0, 0.1)))


def counted(
    engine: Engine, prompts: list[list[int]], known: PerformanceModel, args: argparse.Namespace, *, endless: bool
) -> dict[str, Any]:
    """Answer prompts, and return the counts and the speed-up over plain decoding."""
    decoder = engine.with_settings(temperature=0.0).decoder()
    names = {active: levels_key(decoder.hierarchy, active) for active in known.choices}
    spent, tokens, plain = Spent(), 0, known.costs.draft[-1]
    chance = Random(0) if args.noise else None
    decoder = replace(decoder, policy=lambda: CountingPolicy(known, spent, names, chance))
    if endless:
        decoder = replace(decoder, eos_ids=frozenset())
    for prompt in prompts:
        for event in decoder.decode(prompt, args.max_new_tokens):
            tokens += len(event.token_ids) if isinstance(event, Committed) else 0
    alone = names[(known.levels - 1,)]
    passes, time = sum(spent.passes.values()), sum(spent.time.values())
    written = tokens - len(prompts)  # the prompt's pass gives the first
    return {
        "tokens": written,
        "passes": passes,
        "trial_passes": round(1 - spent.passes[alone] / passes, 4),
        "trial_time": round(1 - spent.time[alone] / time, 4),
        "over_plain": round(written * plain / time, 4),
        "by_levels": {
            name: {"begun": spent.trials[name], "passes": spent.passes[name], "share_of_time": round(cost / time, 4)}
            for name, cost in sorted(spent.time.items(), key=lambda one: -one[1])
        },
    }


def with_costs(known: PerformanceModel, costs: StepCosts) -> PerformanceModel:
    """Return a performance model that has learned nothing, with other costs."""
    predictors = {pair: each for pair, each in known.predictors.items() if pair[0] or not known.ngrams}
    return PerformanceModel(known.levels, costs, predictors, bonus=tuple(known.bonus))


def costs_of(path: Path | None, engine: Engine) -> StepCosts:
    """Return costs of steps: those of an earlier result, else measured now."""
    hierarchy = engine.hierarchy
    if path is None:
        return step_costs(hierarchy, [level_key(hierarchy, level) for level in range(len(hierarchy))], cached=False)
    record = json.loads(path.read_text(encoding="utf-8"))["costs"]
    verify: dict[Pair, list[float]] = {(lower, upper): costs for lower, upper, costs in record["verify"]}
    return StepCosts(record["draft"], verify)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, `tiny`, or a model whose shape is known")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--noise", action="store_true", help="steps deviate from their costs by 10 %%")
    parser.add_argument("--costs", type=Path, help="a result of this script whose costs are taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result")
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = {"load_format": "dummy"} if args.dummy else {}
    engine = engine_without_profile(args.model, **options)
    costs = costs_of(args.costs, engine)
    results: dict[str, dict[str, Any]] = {}
    for name, (stop_after, slower) in POLICIES.items():
        adaptive.STOP_TRIAL_AFTER, performance_models.SLOWER = stop_after, slower
        known = with_costs(performance_model(engine.hierarchy, None), costs)
        results[name] = {}
        for kind, some in texts(args, args.prompts).items():
            raw = args.raw or kind == "code edit"
            prompts = [encode_prompt(engine.tokenizer, text, raw=raw) for text in some]
            found = counted(engine, prompts, known, args, endless=kind == "code edit")
            results[name][kind] = found
            print(name, kind, json.dumps(found), flush=True)
    save(
        args.name,
        {"model": Path(args.model).name, "levels": levels_key(engine.hierarchy, range(len(engine.hierarchy)))}
        | {name: getattr(args, name) for name in ("prompts", "max_new_tokens", "dummy", "noise", "threads")}
        | {
            "policies": results,
            "costs": {
                "draft": list(costs.draft),
                "verify": [[*pair, list(each)] for pair, each in costs.verify.items()],
            },
            "environment": environment(args.threads),
        },
        args.out,
        show=False,
    )


if __name__ == "__main__":
    main()
