"""Interprets a configuration: from `config.json` itself where that is complete, else through `transformers`.

Importing a configuration class of `transformers` takes longer than decoding a short answer, hence the direct way.
"""

from collections.abc import Mapping
from typing import Any

from hispec.models.config import ModelConfig, check_rotary, describe, parse_config, rope_type_of, says_all
from hispec.models.families import FAMILIES
from hispec.models.parts import check_architecture, not_in_spans
from hispec.models.rotary import check_frequencies
from hispec.models.values import check_names, check_values


def interpret(values: Mapping[str, Any], name: str) -> ModelConfig | None:
    """Return the configuration in a `config.json`, None if `transformers` must read it.

    Args:
        values: the values of the file.
        name: the model, as the loading libraries call it.

    Raises:
        UsageError: values that no model can have.
    """
    check_values(values, name)
    check_names(values, name)
    return parse_config(values) if says_all(values) else None


def interpret_original(original: Any, name: str) -> ModelConfig:
    """Return the configuration that one of `transformers` describes; arguments as `interpret`.

    Raises:
        UsageError: an architecture that cannot be decoded hierarchically.
    """
    check_rotary(rope_type_of(original), name)
    if original.model_type in FAMILIES:
        config = describe(original, name)
        check_frequencies(config, name)
        return config
    try:
        check_architecture(original, name)
        return describe(original, name)
    except AttributeError as error:  # sizes under names of its own, or none
        raise not_in_spans(original.model_type, name, f"a configuration of its own: {error}") from error
