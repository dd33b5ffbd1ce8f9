"""Do all kinds of hierarchies write the very token ids that the target alone writes?

The shipped model in float32 under every kind of hierarchy: exits of it, its first layers as separate models with
caches of their own, and guesses beneath. Held-out problems and real GSM8K questions, on which levels disagree more.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import environment, gsm8k_questions, held_out_questions, save

from hispec import Engine
from hispec.decoding.engine import Ending, decode
from hispec.decoding.guesses import Guesser
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.policies import StaticPolicy
from hispec.decoding.rules import Greedy
from hispec.decoding.state import DecodingState
from hispec.events import Committed, Judged
from hispec.models.loading import load_stack
from hispec.models.transformers_stack import TransformersStack
from hispec.profile import resolve_model
from hispec.text import encode_prompt


def first_layers(count: int) -> TransformersStack:
    """The shipped model's first layers as a model of its own."""
    stack = load_stack(
        resolve_model("builtin:tiny"), None, "float32", torch.device("cpu"), f"first {count} layers", "transformers"
    )
    stack.model.model.layers = stack.model.model.layers[:count]
    stack.model.config.num_hidden_layers = count
    return TransformersStack(stack.model, stack.name)


def hierarchies(target: TransformersStack) -> Iterator[tuple[str, Hierarchy]]:
    """Each kind by name."""
    small, middle = first_layers(1), first_layers(2)
    guesses, last = Level("guesses", None, 0), Level("target", target, target.num_layers)
    exits = [Level(f"exit {depth}", target, depth) for depth in (1, 2, 4, 8)]
    small_model, middle_model = Level("small model", small, 1), Level("middle model", middle, 2)
    yield "exit, target", Hierarchy([exits[0], last])
    yield "exit, exit, target", Hierarchy([*exits[:2], last])
    yield "four exits, target", Hierarchy([*exits, last])
    yield "model, exit, target", Hierarchy([small_model, exits[1], last])
    yield "model, model, target", Hierarchy([small_model, middle_model, last])
    yield "guesses, target", Hierarchy([guesses, last])
    yield "guesses, exit, exit, target", Hierarchy([guesses, *exits[:2], last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=1000, help="half held-out, half of GSM8K")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile("tiny", dtype="float32")
    questions = held_out_questions(args.prompts // 2) + gsm8k_questions(args.gsm8k, args.prompts - args.prompts // 2)
    target = engine.hierarchy.target
    kinds = {"target": Hierarchy([target]), **dict(hierarchies(engine.stacks[engine.profile.target.model]))}
    results: dict[str, dict[str, Any]] = {
        kind: {"prompts": 0, "tokens": 0, "corrections": 0, "identical": 0, "differences": []}
        for kind in kinds
        if kind != "target"
    }
    for number, question in enumerate(questions):
        prompt = encode_prompt(engine.tokenizer, question)
        reference: list[int] = []
        for kind, hierarchy in kinds.items():
            state = DecodingState(hierarchy, prompt, len(prompt) + args.max_new_tokens)
            policy, rule = StaticPolicy.of(hierarchy, 3, 8), Greedy(target=len(hierarchy) - 1)
            ending = Ending(args.max_new_tokens, engine.eos_ids)
            guesser = Guesser(4, 8) if hierarchy.guesses else None
            events = list(decode(state, policy, rule, ending, guesser))
            ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
            if kind == "target":
                reference = ids
                continue
            result = results[kind]
            result["prompts"] += 1
            result["tokens"] += len(ids)
            result["corrections"] += sum(isinstance(e, Judged) and e.correction is not None for e in events)
            result["identical"] += ids == reference
            if ids != reference:
                difference = engine.examine(prompt, ids, reference)
                assert difference is not None
                result["differences"].append({"question": question, **asdict(difference)})
        if number % 100 == 99:
            print(number + 1, {kind: r["identical"] for kind, r in results.items()}, flush=True)
    save("hierarchies", {"results": results, "environment": environment(args.threads)})


if __name__ == "__main__":
    main()
