r"""Measures HiSpec without a profile: its default levels beside the best that a grid finds.

For every kind of text, each static hierarchy of the grid is tuned on two prompts. Then plain decoding, what hispec does by
default, the best static hierarchy, the best single layer and n-grams with recycled logits decode the other prompts one
after the other, in an order drawn again for each. All answers are compared with plain decoding's. The model has no
profile and no calibration; what the default learns, it learns in this run. Ends of text are passed over in code edits,
which a model of other texts would end at once.

    python benchmarks/defaults.py --model DIR --gsm8k FILE --exits 1,2,4 --raw --name defaults-NAME
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import engine_without_profile, environment, questions_for, save
from level_arms import PLAIN, SINGLE_LAYERS, Answering, Arm, Grid, arms, numbers, ratio, tune

from hispec import Engine
from hispec.bench.arms import make_arms
from hispec.bench.names import RECYCLING
from hispec.budget import Budget
from hispec.text import encode_prompt

DEFAULT = "hispec by default"

CHAT = (
    "What is the capital of France, and what is it known for?",
    "Write a short poem about the sea in autumn.",
    "Explain to a child why the sky is blue.",
    "Give me three tips for a job interview.",
    "What is the difference between a list and a tuple in Python?",
    "Suggest a simple dinner with rice, eggs and spinach.",
    "Why do cats purr?",
    "Summarize the story of Romeo and Juliet in a few sentences.",
    "How do vaccines work?",
    "Write an email that asks for a day off next Friday.",
    "What are the planets of the solar system?",
    "Tell me about the history of bread.",
)
"""Questions as people ask them in a chat."""

CODE = '''def {name}(path, limit=10):
    """Return the {thing} of a file, the most frequent first."""
    counts = {{}}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            for item in line.split("{mark}"):
                counts[item] = counts.get(item, 0) + 1
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ordered[:limit]
'''
"""A function to be written again with one name changed."""

CHANGES = [
    (f"{verb}_{thing}", thing, mark)
    for verb in ("count", "list")
    for thing, mark in (
        ("words", " "),
        ("fields", ","),
        ("sentences", "."),
        ("columns", ";"),
        ("keys", ":"),
        ("tags", "#"),
    )
]


def edits(count: int) -> list[str]:
    """Return requests to write a function again, after the first line of the answer."""
    found = []
    for name, thing, mark in CHANGES[:count]:
        code = CODE.format(name=name, thing=thing, mark=mark)
        changed = code.replace("counts", "seen").splitlines()[0]
        found.append(f"{code}\nThe same function, where `counts` is called `seen`:\n\n{changed}\n")
    return found


def texts(args: argparse.Namespace, count: int) -> dict[str, list[str]]:
    """Return prompts by kind of text."""
    form = "Question: {}\nAnswer:" if args.raw else "{}"
    return {
        "GSM8K": questions_for(args.model, args.gsm8k, count, raw=args.raw),
        "chat": [form.format(text) for text in CHAT[:count]],
        "code edit": edits(count),
    }


@dataclass
class Kind:
    """A kind of text: its prompts, how they are answered, and the best arm of each kind of hierarchy, tuned on it."""

    prompts: list[list[int]]
    answering: Answering
    best: list[Arm]

    @property
    def plain(self) -> Arm:
        """Return plain decoding."""
        return next(arm for arm in self.best if arm.kind == PLAIN)

    @property
    def hierarchies(self) -> list[Arm]:
        """Return the other arms, the fastest first."""
        return sorted((arm for arm in self.best if arm.kind != PLAIN), key=lambda arm: -arm.speed)

    @property
    def single_layer(self) -> Arm:
        """Return the best single layer."""
        return next(arm for arm in self.hierarchies if arm.kind in SINGLE_LAYERS)


def tuned(args: argparse.Namespace, engine: Engine, prompts: list[list[int]], *, endless: bool) -> Kind:
    """Tune the grid on the first prompts, and return the others with the best arms."""
    answering, budget = Answering(engine, args.max_new_tokens, endless=endless), Budget(args.tune_seconds)
    found = arms(engine.hierarchy.stack_of(-1), Grid(args.exits, (2, 4), (6, 12), (3, 6)))
    best = tune(found, answering, prompts[: args.tune_prompts], args.tune_tokens, budget)
    return Kind(prompts[args.tune_prompts :], answering, best)


def by_default(engine: Engine) -> Arm:
    """Return the arm of the default decoding, which has learned nothing yet."""
    own = engine.with_settings(temperature=0.0).decoder()
    return Arm(DEFAULT, own.hierarchy, (), own.policy)


def measured(args: argparse.Namespace, engine: Engine, kind: Kind) -> dict[str, Any]:
    """Decode the prompts of one kind, and return the record of each arm."""
    recycled = make_arms([RECYCLING], engine)[0].engine.with_settings(temperature=0.0).decoder()  # type: ignore[attr-defined]
    compared = {
        PLAIN: kind.plain.fresh(),
        DEFAULT: by_default(engine),
        "best static hierarchy": kind.hierarchies[0].fresh(),
        "best single layer": kind.single_layer.fresh(),
        RECYCLING: Arm(RECYCLING, recycled.hierarchy, (), recycled.policy),
    }
    return interleaved(compared, [(kind.answering, prompt) for _ in range(args.rounds) for prompt in kind.prompts])


def changing(args: argparse.Namespace, engine: Engine, first: Kind, second: Kind) -> dict[str, Any]:
    """Decode all prompts of one kind, then those of another, and return the record of each arm.

    The default goes on with what it learned on the first kind.
    """
    compared = {PLAIN: first.plain.fresh(), DEFAULT: by_default(engine)}
    for name, kind in (("first", first), ("second", second)):
        compared[f"best static hierarchy for the {name} kind"] = kind.hierarchies[0].fresh()
        compared[f"best single layer for the {name} kind"] = kind.single_layer.fresh()
    kinds = [kind for kind in (first, second) for _ in range(args.rounds)]
    return interleaved(compared, [(kind.answering, prompt) for kind in kinds for prompt in kind.prompts])


def interleaved(compared: dict[str, Arm], prompts: list[tuple[Answering, list[int]]]) -> dict[str, Any]:
    """Decode each prompt with all arms, in an order drawn again for each, and return the record of each arm."""
    chance = Random(1)
    for answering, prompt in prompts:
        expected = answering.expected(prompt)
        for name in chance.sample(list(compared), len(compared)):
            answering.answer(compared[name], prompt, expected)
    base, default = compared[PLAIN], compared[DEFAULT]
    return {
        name: arm.describe()
        | {
            "kind": arm.kind,
            "tokens_per_second": round(arm.speed, 2),
            "over_plain": ratio(arm, base),
            "default_over_it": ratio(default, arm),
            "identical": f"{arm.identical} of {len(arm.answers)}",
            "answers": arm.answers,
        }
        for name, arm in compared.items()
    }


def show(kind: str, result: dict[str, Any]) -> None:
    """Print the speeds of one kind of text."""
    for name, one in result.items():
        over = f"{one['over_plain']['value']:.2f} of plain, the default {one['default_over_it']['value']:.2f} of it"
        print(f"{kind:10} {name:38} {one['tokens_per_second']:7.1f} tokens/s  {over}  {one['identical']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, `tiny`, or a model whose shape is known")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--exits", type=numbers, default=(), help="of a model that was trained for them, for the grid")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--dummy-agreement", help="random weights that agree so often; see the setting")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="how often each prompt is decoded")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--tune-prompts", type=int, default=2)
    parser.add_argument("--tune-tokens", type=int, default=32)
    parser.add_argument("--tune-seconds", type=float, default=120, help="of a kind of text")
    parser.add_argument("--changing", action="store_true", help="also texts that change their kind in mid-run")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()
    options: dict[str, Any] = {"dtype": args.dtype}
    if args.dummy or args.dummy_agreement:
        options |= {"load_format": "dummy", "dummy_agreement": args.dummy_agreement}
    engine = engine_without_profile(args.model, **options)
    given = ("prompts", "tune_prompts", "rounds", "max_new_tokens", "dummy", "dummy_agreement", "exits", "threads")
    kinds: dict[str, Kind] = {}
    result: dict[str, Any] = (
        {"model": Path(args.model).name}
        | {name: getattr(args, name) for name in given}
        | {name: engine.environment[name] for name in ("dtype", "width", "agreement") if name in engine.environment}
        | {"texts": {}, "changing": {}}
    )

    def keep() -> None:
        """Write what is measured by now, so that a run that is stopped leaves whole kinds of text."""
        ends = {"load_average": [load, os.getloadavg()], "environment": environment(args.threads)}
        save(args.name, result | ends, show=False)

    for kind, some in texts(args, args.prompts + args.tune_prompts).items():
        raw = args.raw or kind == "code edit"
        prompts = [encode_prompt(engine.tokenizer, text, raw=raw) for text in some]
        kinds[kind] = tuned(args, engine, prompts, endless=kind == "code edit")
        result["texts"][kind] = measured(args, engine, kinds[kind])
        show(kind, result["texts"][kind])
        keep()
    if args.changing:
        result["changing"] = {"GSM8K, then code edits": changing(args, engine, kinds["GSM8K"], kinds["code edit"])}
        show("changing", result["changing"]["GSM8K, then code edits"])
        keep()


if __name__ == "__main__":
    main()
