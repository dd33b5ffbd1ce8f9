"""JSON schemas to answer: generated, nested, with enums, patterns, formats, unions, references and words of many scripts.

Each has a bounded answer, so that a model that writes on and on under it still comes to its end.
"""

from random import Random
from typing import Any

Schema = dict[str, Any]

NAMES = (
    "name",
    "age",
    "city",
    "items",
    "price",
    "tags",
    "größe",
    "名前",
    "имя",
    "prix_€",
    "emoji 🙂",
    'a"b\\c',
    "x/y",
    "",
)
WORDS = (
    "red",
    "green",
    "blue",
    "naïve",
    "東京",
    "Привет",
    "مرحبا",
    "🙂👍🏽",
    "line\nbreak",
    'quote"d',
    "tab\t",
    "e\u0301",
    " ",
)
PATTERNS = (
    "^[A-Z]{2}-[0-9]{3}$",
    "^(foo|bar){1,3}$",
    "^[äöüß]{1,5}$",
    "^[0-9]{1,3}(\\.[0-9]{1,2})?$",
    "^#[0-9a-f]{6}$",
)
FORMATS = ("date", "uuid", "ipv4")


def schemas(count: int, seed: int = 0) -> list[Schema]:
    """Return schemas; a larger count adds to the same first ones."""
    return [_object(Random(f"{seed} {number}"), 1 + number % 4) for number in range(count)]


def _object(rng: Random, depth: int) -> Schema:
    """Return the schema of an object that is nested at most so deep."""
    names = rng.sample(NAMES, rng.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.8],
        "additionalProperties": False,
    }
    if depth > 2:
        schema["$defs"] = {"shared": _scalar(rng)}
        schema["properties"]["shared"] = {"$ref": "#/$defs/shared"}
    return schema


def _value(rng: Random, depth: int) -> Schema:
    if depth < 1 or rng.random() < 0.4:
        return _scalar(rng)
    match rng.randrange(4):
        case 0:
            return _object(rng, min(depth, 2))  # no deeper: $ref is resolved at the root
        case 1:
            least = rng.randint(0, 2)
            items = _value(rng, depth - 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randint(0, 2)}
        case 2:
            return {"type": "array", "prefixItems": [_scalar(rng), _scalar(rng)], "items": False, "minItems": 2}
        case _:
            return {"anyOf": [_scalar(rng), {"type": "null"}, _object(rng, min(depth, 2))]}


def _scalar(rng: Random) -> Schema:
    match rng.randrange(8):
        case 0:
            return {"enum": rng.sample(WORDS, rng.randint(1, 5))}
        case 1:
            return {"const": rng.choice((*WORDS, 7, None, True, [1, "é"], {"k": "ü"}))}
        case 2:
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        case 3:
            return {"type": "string", "format": rng.choice(FORMATS)}
        case 4:
            return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 16)}
        case 5:
            least = rng.randint(-1000, 1000)
            return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 5000)}
        case 6:
            return {"type": "number", "minimum": 0, "exclusiveMaximum": rng.choice((1, 10, 99.5)), "multipleOf": 0.25}
        case _:
            return {"type": ["boolean", "null"]}
