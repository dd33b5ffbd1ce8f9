"""Measures the effect of translators on an ordinary model: agreement of its exits before and after, and tokens per
second.

The model is one that was trained without early exit, for example

    python -m training.train --ordinary --layers 12 --steps 1200 --threads 1 --compile --out DIR

and stays outside this repository. Translators are fitted on generated conversations, then:

- *agreement*: the model answers held-out questions greedily, and each exit reads along, plain and translated: the share
  of the answers' tokens that it would have written too;
- *speed*: every question is answered by every arm before the next, the order turning from question to question; the
  first ones warm up and do not count. Speed is pooled tokens over pooled seconds, its 95 % interval a bootstrap over
  questions. Token ids are compared on the way.
"""

import argparse
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import environment, interval95, save
from transformers import AutoTokenizer

from hispec import Engine
from hispec.exits.fit import Fit, FitSettings
from hispec.exits.job import FitJob
from hispec.exits.request import FitRequest
from hispec.levels import open_translators
from hispec.profile import load_profile
from training.evaluate import held_out_problems
from training.problems import conversations, final_number

WARM_UP = 3


def write_text(model: Path, path: Path, count: int) -> None:
    """Write conversations like those of the training, from a seed that neither the training nor the questions use."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    source = islice(conversations(Random("fit exits")), count)
    path.write_text("".join(tokenizer.apply_chat_template(messages, tokenize=False) for messages in source))


def fit(args: argparse.Namespace) -> None:
    """Fit the exits and write the profile."""
    args.out.mkdir(parents=True, exist_ok=True)
    text, profile = args.out / "text.txt", args.out / "fitted.yaml"
    write_text(args.model, text, args.conversations)
    request = FitRequest(str(args.model), text, args.exits, profile, row_tokens=256, dtype="float32", force=True)
    job = FitJob(request, FitSettings(steps=args.steps))

    def see(state: Fit) -> None:
        if state.step % 25 == 0:
            print(f"step {state.step}: { ({e: round(q.agreement, 3) for e, q in state.after.items()}) }", flush=True)

    found = job.run(job.load(), see)
    job.save(found)


@torch.inference_mode()
def agreement(engine: Engine, texts: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Return the share of the answers' tokens that each fitted exit would have written, plain and translated."""
    stack, file = engine.hierarchy.stack_of(-1), open_translators(engine.profile)
    assert file is not None
    translators = {exit_: found.on(stack) for exit_ in file.provenance.exits if (found := file.read(exit_))}
    agreed: dict[int, list[int]] = {}
    for prompt, written in texts:
        stack.reserve(len(prompt) + len(written))
        hidden, layer = stack.embed([*prompt, *written[:-1]]), 0
        for exit_, translator in translators.items():
            hidden, layer = stack.run(hidden, layer, exit_, 0), exit_
            asked = hidden[len(prompt) - 1 :]
            counts = agreed.setdefault(exit_, [0, 0])
            for kind, states in enumerate((asked, translator(asked))):
                counts[kind] += int((stack.head(states).argmax(-1).cpu() == torch.tensor(written)).sum())
    tokens = sum(len(written) for _, written in texts)
    return {str(e): {"before": plain / tokens, "after": fitted / tokens} for e, (plain, fitted) in agreed.items()}


def speed(rows: Any) -> float:
    """Return pooled tokens per second."""
    return float(sum(tokens for tokens, _ in rows) / sum(seconds for _, seconds in rows))


def measure(engines: dict[str, Engine], questions: list[str], base: str) -> dict[str, Any]:
    """Return tokens per second by arm, interleaved, and how many answers are identical in all."""
    rows: dict[str, list[tuple[int, float]]] = {arm: [] for arm in engines}
    passes, levels = dict.fromkeys(engines, 0), {arm: dict[str, Any]() for arm in engines}
    arms, identical = list(engines), 0
    for number, question in enumerate(questions):
        turn = number % len(arms)
        answers = {arm: engines[arm].generate(question) for arm in arms[turn:] + arms[:turn]}
        if number < WARM_UP:
            continue
        identical += len({tuple(answer.token_ids) for answer in answers.values()}) == 1
        for arm, answer in answers.items():
            rows[arm].append((answer.stats.new_tokens, answer.stats.total_seconds))
            passes[arm] += answer.stats.target_passes
            for level in answer.stats.levels:
                counts = levels[arm].setdefault(level.name, {"proposed": 0, "accepted": 0})
                counts["proposed"] += level.proposed
                counts["accepted"] += level.accepted

    def ratio(arm: str, other: str) -> dict[str, Any]:
        pairs = list(zip(rows[arm], rows[other], strict=True))

        def statistic(some: Any) -> float:
            return float(speed([own for own, _ in some]) / speed([theirs for _, theirs in some]))

        return {"value": statistic(pairs), "ci95": interval95(pairs, statistic)}

    figures = {
        arm: {
            "tokens_per_second": speed(rows[arm]),
            "ci95": interval95(rows[arm], speed),
            "speedup_over_autoregressive": ratio(arm, base),
            "tokens_per_target_pass": sum(tokens for tokens, _ in rows[arm]) / passes[arm],
            "levels": levels[arm],
        }
        for arm in arms
    }
    gain = {
        mode: ratio(f"{mode}, translators", f"{mode}, plain exits")
        for mode in ("hispec", "single-layer")
        if f"{mode}, translators" in engines
    }
    return {
        "prompts": len(questions) - WARM_UP,
        "identical_token_ids": identical,
        "arms": figures,
        "translators_over_plain": gain,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model trained without early exit")
    parser.add_argument("--out", type=Path, required=True, help="folder for text, profile and translators")
    parser.add_argument("--exits", type=lambda text: [int(part) for part in text.split(",")], help="as A,B")
    parser.add_argument("--conversations", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--reuse", action="store_true", help="take the translators in --out instead of fitting again")
    parser.add_argument("--texts", type=int, default=100, help="answers that agreement is measured on")
    parser.add_argument("--prompts", type=int, default=40, help="questions that speed is measured on; 0: it is not")
    parser.add_argument("--draft-tokens", type=int, default=2)
    parser.add_argument("--validate-every", type=int, default=4)
    parser.add_argument("--single-layer-tokens", type=int, default=3, help="tokens that the single-layer arms draft")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="fit-exits-cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.reuse:
        fit(args)
    profile = load_profile(str(args.out / "fitted.yaml"))
    translators = open_translators(profile)
    assert translators is not None
    lengths = {"draft_tokens": args.draft_tokens, "validate_every": args.validate_every}
    with_translators = Engine.from_profile(profile, max_new_tokens=200, **lengths)
    plain = with_translators.with_profile(profile.model_copy(update={"translators": None}))
    alone = with_translators.with_settings(mode="autoregressive")
    problems = held_out_problems(max(args.texts, args.prompts + WARM_UP), "trained")
    texts, right = [], 0
    for problem in problems[: args.texts]:
        answer = alone.generate(problem.question)
        texts.append((answer.prompt_ids, answer.token_ids))
        right += final_number(answer.text) == problem.result
    record: dict[str, Any] = {
        "what": "an ordinary model's exits before and after hispec fit-exits",
        "model": {
            "layers": alone.hierarchy.target.exit_layer,
            "exact_match": {"correct": right, "of": len(texts)},
        },
        "fit": translators.provenance.made,
        "agreement_on_held_out_answers": {
            "answers": len(texts),
            "tokens": sum(len(written) for _, written in texts),
            "exits": agreement(with_translators, texts),
        },
    }
    if args.prompts:
        engines = {"hispec, translators": with_translators, "hispec, plain exits": plain}
        for name, engine in (("translators", with_translators), ("plain exits", plain)):
            engines[f"single-layer, {name}"] = engine.with_settings(
                mode="single-layer", validate_every=args.single_layer_tokens
            )
        engines["autoregressive"] = alone
        questions = [problem.question for problem in problems[: args.prompts + WARM_UP]]
        record["speed"] = (
            lengths
            | {"single_layer_tokens": args.single_layer_tokens, "dtype": with_translators.environment["dtype"]}
            | measure(engines, questions, "autoregressive")
        )
    save(args.name, record | {"environment": environment(args.threads)})


if __name__ == "__main__":
    main()
