"""Checks that answers under 200 JSON schemas fit them, with the token ids of the target alone.

Every schema is answered greedily and sampled: by the target alone, and by some of all kinds of hierarchies in turn, whose
ids are compared. The result is kept after each schema, and the same command goes on from there.

    python benchmarks/structured.py --model DIR --raw --schemas 200 --name structured-NAME

The cost of the mask is measured separately, with nothing else on the machine, and is added to the result: the seconds of a
token with the mask, and of a token of a text of the same length without it, for the target alone and for exits.

    python benchmarks/structured.py --model DIR --raw --speed 20 --name structured-NAME
"""

import argparse
import json
from dataclasses import replace
from datetime import date
from time import perf_counter
from typing import Any

import jsonschema
from comparison import Comparison, add_arguments, comparison
from schemas import Schema, schemas

from hispec.decoding.decoder import Decoder
from hispec.decoding.state import PrefixCache
from hispec.events import Committed
from hispec.grammar import Grammar
from hispec.text import encode_prompt

SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 1, top-p 0.9, penalty": {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1},
}
TIMED = "exit > exit > target"
"""The kind of hierarchy that is timed beside the target alone."""


def is_date(value: object) -> bool:
    """Return whether a text is a date of RFC 3339, which has a year 0000 where Python has none."""
    return not isinstance(value, str) or bool(date.fromisoformat(value.replace("0000-", "2000-", 1)))


FORMATS = jsonschema.FormatChecker()
FORMATS.checks("date", raises=ValueError)(is_date)


def fits(text: str, schema: Schema) -> bool:
    """Return whether a text is JSON that a schema accepts."""
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def in_turn(all_of_them: list[Any], number: int, count: int) -> list[Any]:
    """Return as many as each schema gets, in turn: the next schema begins with the next one."""
    return [all_of_them[(number + at) % len(all_of_them)] for at in range(count)]


def prompt_of(compared: Comparison, schema: Schema, args: argparse.Namespace) -> tuple[list[int], int]:
    """Return the prompt of a schema, and the most tokens of its answer."""
    text = f"Answer in JSON with these keys: {', '.join(map(json.dumps, schema['properties']))}.\n"
    prompt = encode_prompt(compared.engine.tokenizer, text, raw=args.raw)
    return prompt, min(args.max_new_tokens, compared.engine.context - len(prompt))


def compare(compared: Comparison, args: argparse.Namespace) -> None:
    """Answer each schema that has not been answered yet, and compare."""
    engine, result = compared.engine, compared.result
    for number, schema in enumerate(schemas(args.schemas)):
        if number < result["prompts"]:
            continue
        grammar = Grammar.json_schema(schema)
        prompt, limit = prompt_of(compared, schema, args)
        prefix = PrefixCache()  # the prompt is run once
        for sampling in in_turn(list(SAMPLINGS), number, args.samplings):
            settings = SAMPLINGS[sampling]
            decoder = engine.with_settings(**settings).decoder(grammar=grammar)
            counts = result["results"].setdefault(
                sampling, {"valid": 0, "complete": 0, "of": 0, "tokens": 0, "invalid": [], "hierarchies": {}}
            )
            expected = decoder.token_ids(prompt, limit, number, prefix)
            valid = fits(engine.tokenizer.decode(expected, skip_special_tokens=True), schema)
            counts["valid"] += valid
            counts["complete"] += engine.models.grammars.is_complete(grammar, expected)
            counts["of"] += 1
            counts["tokens"] += len(expected)
            if not valid:
                counts["invalid"].append(number)
            for kind in in_turn(compared.kinds, number, args.kinds):
                count = counts["hierarchies"].setdefault(kind.name, {"identical": 0, "of": 0, "differences": []})
                ids = kind.decoder(decoder).token_ids(prompt, limit, number, prefix)
                count["identical"] += ids == expected
                count["of"] += 1
                if ids != expected:
                    count["differences"].append(number)
        result["prompts"] = number + 1
        compared.keep()
    for sampling, counts in result["results"].items():
        print(f"{sampling:34} {counts['valid']}/{counts['of']} valid, {counts['complete']} complete")
        for name, count in counts["hierarchies"].items():
            print(f"{'':34} {name:34} {count['identical']}/{count['of']} identical")


def measure(compared: Comparison, args: argparse.Namespace) -> None:
    """Time the first schemas' answers with the mask, and as many tokens without."""
    result = compared.result
    kind = next(kind for kind in compared.kinds if kind.name == TIMED)
    speeds: dict[str, Any] = {}
    for number, schema in enumerate(schemas(args.speed)):
        grammar = Grammar.json_schema(schema)
        prompt, limit = prompt_of(compared, schema, args)
        for sampling, settings in SAMPLINGS.items():
            own = compared.engine.with_settings(**settings)
            masked, free = own.decoder(grammar=grammar), replace(own.decoder(), eos_ids=())
            of = speeds.setdefault(sampling, {})
            length = timed(masked, prompt, limit, number, of, "target, masked")
            timed(free, prompt, length, number, of, "target, free")
            timed(kind.decoder(free), prompt, length, number, of, f"{TIMED}, free")
            timed(kind.decoder(masked), prompt, limit, number, of, f"{TIMED}, masked")
    result["seconds_per_token"] = speeds
    compared.keep()
    for sampling, of in speeds.items():
        for name, speed in of.items():
            print(f"{sampling:34} {name:34} {1000 * speed['seconds'] / speed['tokens']:.3f} ms a token")


def timed(decoder: Decoder, prompt: list[int], limit: int, seed: int, speeds: dict[str, Any], name: str) -> int:
    """Decode, and add tokens and seconds of all but the first token, which is the prompt's; return the tokens."""
    count = speeds.setdefault(name, {"tokens": 0, "seconds": 0.0})
    tokens, began = 0, 0.0
    for event in decoder.decode(prompt, limit, seed):
        tokens += len(event.token_ids) if isinstance(event, Committed) else 0
        began = began or perf_counter()
    count["tokens"] += tokens - 1
    count["seconds"] += perf_counter() - began
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--kinds", type=int, default=3, help="kinds of hierarchies for each schema, in turn")
    parser.add_argument("--samplings", type=int, default=3, choices=(1, 2, 3), help="and ways to sample, likewise")
    parser.add_argument(
        "--speed", type=int, default=0, help="measure the cost of the mask with so many schemas instead"
    )
    add_arguments(parser, max_new_tokens=600, dtype="auto")
    args = parser.parse_args()
    (measure if args.speed else compare)(comparison(args), args)


if __name__ == "__main__":
    main()
