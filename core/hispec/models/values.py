"""The values of a `config.json`, checked before anything is computed from them: each error names the key."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hispec.errors import UsageError
from hispec.models.config import rope_of, window_of
from hispec.models.families import FAMILIES, Family

HINT = "correct config.json, or download or save the model again"


class Kind(NamedTuple):
    """A condition on a value: a description and a test."""

    description: str
    fits: Callable[[Any], bool]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _are_ids(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value))


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.description}, or null", lambda value: value is None or kind.fits(value))


SIZE = Kind("a whole number above 0", _is_size)
NUMBER = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = Kind("a number, 0 or above", _is_number)
FLAG = Kind("true or false", lambda value: type(value) is bool)
NAME = Kind("a name", lambda value: isinstance(value, str) and bool(value))
IDS = Kind("a token id or a list of token ids", _are_ids)
OBJECT = Kind("an object that is not empty", lambda value: isinstance(value, dict) and bool(value))
ROTARY = Kind("an object", lambda value: isinstance(value, dict))
CAUSAL = Kind("true, since only attention to what came before can be decoded", lambda value: value is True)
ABSENT = Kind("absent, since no stack here applies it", lambda value: value is None)

LAYERS = {
    "sliding_window": Kind("a whole number, or null", lambda value: value is None or type(value) is int),
    "layer_types": Kind(
        "a list of full_attention and sliding_attention, or null",
        lambda value: (
            value is None
            or (isinstance(value, list) and all(one in ("full_attention", "sliding_attention") for one in value))
        ),
    ),
}
WINDOW = {
    **LAYERS,
    "use_sliding_window": FLAG,
    "max_window_layers": Kind("a whole number", lambda value: type(value) is int),
}
READ: dict[str, Kind] = {
    "num_hidden_layers": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_attention_heads": SIZE,
    "num_key_value_heads": _or_null(SIZE),
    "head_dim": _or_null(SIZE),
    "vocab_size": SIZE,
    "max_position_embeddings": SIZE,
    "rms_norm_eps": NOT_NEGATIVE,
    "hidden_act": NAME,
    "tie_word_embeddings": FLAG,
    "rope_parameters": _or_null(ROTARY),
    "rope_scaling": _or_null(ROTARY),
    "eos_token_id": _or_null(IDS),
    "dtype": _or_null(NAME),
    "torch_dtype": _or_null(NAME),
    "quantization_config": _or_null(OBJECT),
    "is_causal": CAUSAL,
    "per_layer_config": ABSENT,
    "attention_chunk_size": ABSENT,
    "kv_sharing_modes": ABSENT,
    "transformers_weights": ABSENT,
}
"""Keys of all families that affect what a model computes."""
_SIZE_ELSEWHERE = Kind(SIZE.description, lambda value: not isinstance(value, int | str) or _is_size(value))
READ_ELSEWHERE: dict[str, Kind] = {
    **dict.fromkeys(
        ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"), _SIZE_ELSEWHERE
    ),
    "sliding_window": Kind("a whole number, or null", lambda value: not isinstance(value, str)),
    **{key: READ[key] for key in ("dtype", "torch_dtype", "quantization_config")},
}
"""Keys of other families; `transformers` knows which of them may be null or have one value for each layer."""

ROPE_NUMBERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
"""Numbers that a rotary embedding cannot do without, by its type; the base apart, which all have."""
ROPE_OPTIONS = (
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
)


def read_by(family: Family) -> dict[str, Kind]:
    """Return the keys that affect what a model of one family computes, besides those of all families."""
    windows = {"layers": LAYERS, "all": {"sliding_window": _or_null(SIZE)}, "switched": WINDOW}
    own = {"attention_bias": FLAG, "mlp_bias": FLAG, "head_dim": SIZE}
    return {**windows[family.window], **{key: kind for key, kind in own.items() if key in family.needed}}


def check_values(values: Mapping[str, Any], name: str) -> None:
    """Refuse a value that is null, of another type or impossible, among those that are read; absent ones have defaults.

    Args:
        values: the values of `config.json`. Outside of `FAMILIES`, only sizes, dtypes and the rotary embedding are
            checked.
        name: the model, as the user named it.

    Raises:
        UsageError: naming the key.
    """
    family = values.get("model_type")
    if "model_type" in values:
        _check("model_type", family, NAME, name)
    for key, kind in ({**READ, **read_by(FAMILIES[family])} if family in FAMILIES else READ_ELSEWHERE).items():
        if key in values:
            _check(key, values[key], kind, name)
    if family not in FAMILIES:
        _check_rope(values, name)
        return
    _check_window(values, name)
    _check_heads(values, name)
    _check_rope(values, name)


def check_names(values: Mapping[str, Any], name: str) -> None:
    """Refuse a dtype or an activation that does not exist; imports torch. Arguments as `check_values`.

    Raises:
        UsageError: naming the key.
    """
    import torch

    for key in ("dtype", "torch_dtype"):
        if (dtype := values.get(key)) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UsageError(f"config.json of {name}: {key} {dtype!r} is not a dtype", HINT)
    if values.get("model_type") in FAMILIES and (activation := values.get("hidden_act", "silu")) != "silu":
        from transformers.activations import ACT2FN

        if activation not in ACT2FN:
            raise UsageError(f"config.json of {name}: hidden_act {activation!r} is not an activation", HINT)


def _check_window(values: Mapping[str, Any], name: str) -> None:
    """Raise if a window has no size, or if layers need a window and there is none."""
    window, kinds = window_of(values), values.get("layer_types")
    if window is not None and window < 1:
        raise _wrong("sliding_window", window, SIZE, name)
    if FAMILIES[values["model_type"]].window == "all" or kinds is None:
        return
    if len(kinds) != values.get("num_hidden_layers", len(kinds)):
        kind = Kind(f"a list with one entry for each of {values['num_hidden_layers']} layers", bool)
        raise _wrong("layer_types", kinds, kind, name)
    if "sliding_attention" in kinds and window is None:
        kind = Kind("free of sliding_attention where no sliding window is in use", bool)
        raise _wrong("layer_types", kinds, kind, name)


def _check_heads(values: Mapping[str, Any], name: str) -> None:
    """Raise if the number of heads is not divisible as required."""
    heads, hidden, size = (values.get(key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
    kv_heads = values.get("num_key_value_heads")
    if heads and kv_heads and heads % kv_heads:
        kind = Kind(f"a divisor of num_attention_heads, {heads}", bool)
        raise _wrong("num_key_value_heads", kv_heads, kind, name)
    if heads and hidden and FAMILIES[values["model_type"]].whole_heads and hidden % heads:
        raise _wrong("num_attention_heads", heads, Kind(f"a divisor of hidden_size, {hidden}", bool), name)
    if size and size % 2:
        raise _wrong("head_dim", size, Kind("even, as rotary embeddings turn pairs", bool), name)


def _check_rope(values: Mapping[str, Any], name: str) -> None:
    """Refuse parameters of the rotary embedding that are no numbers."""
    rope, place = rope_of(values), "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    _check(place, rope, ROTARY, name)
    if nested := next((key for key, value in rope.items() if isinstance(value, dict)), None):
        if values.get("model_type") not in FAMILIES:
            return
        kind = Kind("absent, since all layers share one rotary embedding here", bool)
        raise _wrong(f"{place}.{nested}", rope[nested], kind, name)
    if "rope_theta" in rope or "rope_theta" in values:
        inside = "rope_theta" in rope
        theta = rope["rope_theta"] if inside else values["rope_theta"]
        _check(f"{place}.rope_theta" if inside else "rope_theta", theta, NUMBER, name)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _check(f"{place}.rope_type", rope_type, NAME, name)
    for key in ROPE_NUMBERS.get(rope_type, ()):
        _check(f"{place}.{key}", rope.get(key), NUMBER, name)
    for key in ROPE_OPTIONS if rope_type in ROPE_NUMBERS else ():
        _check(f"{place}.{key}", rope.get(key), _or_null(NOT_NEGATIVE), name)


def _check(key: str, value: Any, kind: Kind, name: str) -> None:
    if not kind.fits(value):
        raise _wrong(key, value, kind, name)


def _wrong(key: str, value: Any, kind: Kind, name: str) -> UsageError:
    return UsageError(f"config.json of {name}: {key} must be {kind.description}, not {json.dumps(value)[:60]}", HINT)
