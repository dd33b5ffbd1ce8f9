"""Do all kinds of hierarchies write the very token ids that the target alone writes, greedy and sampled?

A model under every kind of hierarchy and both policies: exits of it, its first layers as a separate model with a cache
of its own, and n-grams beneath. Every answer of every kind is compared with plain decoding's for the same seed. The
result is kept after each prompt, and the same command goes on from there.

    python benchmarks/exactness.py --model DIR --gsm8k FILE --prompts 200 --dtype bfloat16 --name exactness-NAME
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, gsm8k_questions, held_out_questions, save

from hispec import Engine
from hispec.adaptation import performance_model
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.events import Committed, Verified
from hispec.models.checkpoint import Checkpoint
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.stack import LayerStack
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.static import StaticPolicy
from hispec.profile import load_profile, profile_for_model, resolve_model
from hispec.text import encode_prompt

SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "temperature 1": {"temperature": 1.0},
}


def first_layers(model: str, dtype: str, count: int) -> LayerStack:
    """Return a model's first layers as a model of its own."""
    stack = load_stack(Checkpoint(model), Placement(dtype=dtype, stack="transformers"))
    assert isinstance(stack, TransformersStack)
    stack.model.model.layers = stack.model.model.layers[:count]
    stack.model.config.num_hidden_layers = count
    return TransformersStack(stack.model, stack.name)


def kinds(
    target: LayerStack, small: LayerStack | None, lengths: tuple[int, int]
) -> Iterator[tuple[str, Hierarchy, Callable[[Hierarchy], Policy]]]:
    """Yield each kind: its name, its levels, what makes its policy; those with a small model where there is one."""
    depth = target.num_layers
    ngrams, last = Level.of_ngrams(4, 8), Level("target", target, depth)
    exits = [Level(f"exit {at}", target, at) for at in sorted({max(1, depth // 16), depth // 4, depth // 2})]

    def static(hierarchy: Hierarchy) -> Policy:
        return StaticPolicy.of(hierarchy, *lengths)

    yield "exit > target", Hierarchy([exits[0], last]), static
    yield "exit > exit > target", Hierarchy([*exits[:2], last]), static
    yield "exits > target", Hierarchy([*exits, last]), static
    if small is not None:
        other = Level("small model", small, small.num_layers)
        yield "model > exit > target", Hierarchy([other, exits[1], last]), static
    yield "n-grams > target", Hierarchy([ngrams, last]), static
    yield "n-grams > exit > exit > target", Hierarchy([ngrams, *exits[:2], last]), static
    yield (
        "exit > exit > target, adaptive",
        Hierarchy([*exits[:2], last]),
        lambda h: AdaptivePolicy(performance_model(h, None)),
    )


def kept(name: str, settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the result of this name that the same settings have begun, perhaps elsewhere, or an empty one."""
    path = RESULTS / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if any(result.get(key) != value for key, value in settings.items()):
        result = {**settings, "environments": [], "prompts": 0, "results": {}}
    if own not in result.setdefault("environments", []):
        result["environments"].append(own)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="a folder; by default the shipped model")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--draft-length", type=int, default=3)
    parser.add_argument("--validation-period", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--stack", default="auto")
    parser.add_argument("--width", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shipped = args.model == "tiny"
    folder = resolve_model("builtin:tiny") if shipped else args.model
    profile = load_profile("tiny") if shipped else profile_for_model(folder, 16, 1, 2)
    engine = Engine.from_profile(profile, dtype=args.dtype, stack=args.stack, width=args.width, mode="autoregressive")
    questions = gsm8k_questions(args.gsm8k, args.prompts - shipped * args.prompts // 2)
    questions += held_out_questions(args.prompts // 2) if shipped else []
    target = engine.hierarchy.stack_of(-1)
    lengths = (args.draft_length, args.validation_period)
    found = list(kinds(target, first_layers(folder, args.dtype, 2), lengths))
    result = kept(
        args.name,
        {
            "model": Path(folder).name if not shipped else "tiny",
            "max_new_tokens": args.max_new_tokens,
            "lengths": list(lengths),
            "dtype": engine.environment["dtype"],
            "stack": target.kind,
            "width": engine.environment["width"],
        },
        environment(args.threads),
    )
    for number in range(result["prompts"], len(questions)):
        text = f"Question: {questions[number]}\nAnswer:" if args.raw else questions[number]
        prompt = encode_prompt(engine.tokenizer, text, raw=args.raw)
        for sampling, settings in SAMPLINGS.items():
            decoder = engine.with_settings(**settings).decoder()
            expected = decoder.token_ids(prompt, args.max_new_tokens, number)
            counts = result["results"].setdefault(sampling, {"tokens": 0, "hierarchies": {}})
            counts["tokens"] += len(expected)
            for name, hierarchy, policy in found:
                count = counts["hierarchies"].setdefault(name, {"identical": 0, "rejections": 0, "differences": []})
                other = replace(decoder, hierarchy=hierarchy, policy=partial(policy, hierarchy))
                events = list(other.decode(prompt, args.max_new_tokens, number))
                ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
                count["rejections"] += sum(isinstance(e, Verified) and e.accepted < e.proposed for e in events)
                count["identical"] += ids == expected
                if ids != expected:
                    count["differences"].append(number)
        result["prompts"] = number + 1
        save(args.name, result, show=False)
    for sampling, counts in result["results"].items():
        for name, count in counts["hierarchies"].items():
            print(f"{sampling:28} {name:34} {count['identical']}/{result['prompts']} identical")


if __name__ == "__main__":
    main()
