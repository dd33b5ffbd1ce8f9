"""Do answers under 200 JSON schemas fit them, with the ids that the target alone writes under the same mask, and at what cost?

Every schema is answered greedily and sampled: by the target alone, and by some of all kinds of hierarchies in turn, whose
ids are compared. What the mask costs is the time that a token takes with it beside that of a text of the same length
without, for the target alone and for exits. The result is kept after each schema, and the same command goes on from there.

    python benchmarks/structured.py --model DIR --raw --schemas 200 --name structured-NAME
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import jsonschema
import torch
from common import environment, save
from exactness import first_layers, kept, kinds
from schemas import schemas

from hispec import Engine
from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy
from hispec.grammar import Grammar
from hispec.policies.base import Policy
from hispec.profile import load_profile, profile_for_model, resolve_model
from hispec.text import encode_prompt

SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 1, top-p 0.9, penalty": {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1},
}
MASKED, FREE = "masked", "free"


def is_date(value: object) -> bool:
    """Return whether a text is a date of RFC 3339, which has a year 0000 where Python has none."""
    return not isinstance(value, str) or bool(date.fromisoformat(value.replace("0000-", "2000-", 1)))


FORMATS = jsonschema.FormatChecker()
FORMATS.checks("date", raises=ValueError)(is_date)


def of_kind(decoder: Decoder, hierarchy: Hierarchy, policy: Callable[[Hierarchy], Policy]) -> Decoder:
    """Return a decoder of the same texts with other levels."""
    return replace(decoder, hierarchy=hierarchy, policy=lambda: policy(hierarchy))


def timed(decoder: Decoder, prompt: list[int], limit: int, seed: int, count: dict[str, float]) -> list[int]:
    """Decode, and add tokens and seconds of all but the first token, which is the prompt's."""
    events = decoder.decode(prompt, limit, seed)
    ids: list[int] = []
    began = 0.0
    for event in events:
        ids += getattr(event, "token_ids", ()) if event.kind == "committed" else ()
        began = began or perf_counter()
    count["tokens"] = count.get("tokens", 0) + len(ids) - 1
    count["seconds"] = count.get("seconds", 0.0) + perf_counter() - began
    return ids


def fits(text: str, schema: dict[str, Any]) -> bool:
    """Return whether a text is JSON that a schema accepts."""
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="a folder or a GGUF file; by default the shipped model")
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--kinds", type=int, default=3, help="kinds of hierarchies for each schema, in turn")
    parser.add_argument("--max-new-tokens", type=int, default=600)
    parser.add_argument("--draft-length", type=int, default=3)
    parser.add_argument("--validation-period", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--width", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shipped = args.model == "tiny"
    folder = resolve_model("builtin:tiny") if shipped else args.model
    profile = load_profile("tiny") if shipped else profile_for_model(folder, 16, 1, 2)
    engine = Engine.from_profile(profile, dtype=args.dtype, width=args.width, mode="autoregressive")
    target = engine.hierarchy.stack_of(-1)
    lengths = (args.draft_length, args.validation_period)
    small = None if args.model.endswith(".gguf") else first_layers(folder, args.dtype, 2)
    found = list(kinds(target, small, lengths))
    result = kept(
        args.name,
        {
            "model": "tiny" if shipped else Path(folder).name,
            "max_new_tokens": args.max_new_tokens,
            "lengths": list(lengths),
            "dtype": engine.environment["dtype"],
            "stack": target.kind,
            "width": engine.environment["width"],
        },
        environment(args.threads),
    )
    result.setdefault("seconds_per_token", {})
    for number, schema in enumerate(schemas(args.schemas)):
        if number < result["prompts"]:
            continue
        grammar = Grammar.json_schema(schema)
        text = f"Answer in JSON with these keys: {', '.join(map(json.dumps, schema['properties']))}.\n"
        prompt = encode_prompt(engine.tokenizer, text, raw=args.raw)
        limit = min(args.max_new_tokens, engine.context - len(prompt))
        for sampling, settings in SAMPLINGS.items():
            own = engine.with_settings(**settings)
            decoder, free = own.decoder(grammar=grammar), own.decoder()
            counts = result["results"].setdefault(
                sampling, {"valid": 0, "complete": 0, "of": 0, "tokens": 0, "invalid": [], "hierarchies": {}}
            )
            speeds = result["seconds_per_token"].setdefault(sampling, {})
            expected = timed(decoder, prompt, limit, number, speeds.setdefault(f"target, {MASKED}", {}))
            timed(free, prompt, len(expected), number, speeds.setdefault(f"target, {FREE}", {}))
            valid = fits(engine.tokenizer.decode(expected, skip_special_tokens=True), schema)
            counts["valid"] += valid
            counts["complete"] += engine.models.grammars.is_complete(grammar, expected)
            counts["of"] += 1
            counts["tokens"] += len(expected)
            if not valid:
                counts["invalid"].append(number)
            exits = of_kind(decoder, *found[1][1:]), of_kind(free, *found[1][1:])
            timed(exits[0], prompt, limit, number, speeds.setdefault(f"{found[1][0]}, {MASKED}", {}))
            timed(exits[1], prompt, len(expected), number, speeds.setdefault(f"{found[1][0]}, {FREE}", {}))
            for at in range(args.kinds):
                name, hierarchy, policy = found[(number + at) % len(found)]
                count = counts["hierarchies"].setdefault(name, {"identical": 0, "of": 0, "differences": []})
                ids = of_kind(decoder, hierarchy, policy).token_ids(prompt, limit, number)
                count["identical"] += ids == expected
                count["of"] += 1
                if ids != expected:
                    count["differences"].append(number)
        result["prompts"] = number + 1
        save(args.name, result, show=False)
    for sampling, counts in result["results"].items():
        print(f"{sampling:34} {counts['valid']}/{counts['of']} valid")
        for name, count in counts["hierarchies"].items():
            print(f"{'':34} {name:34} {count['identical']}/{count['of']} identical")
        for name, speed in result["seconds_per_token"][sampling].items():
            print(f"{'':34} {name:34} {1000 * speed['seconds'] / speed['tokens']:.3f} ms a token")


if __name__ == "__main__":
    main()
