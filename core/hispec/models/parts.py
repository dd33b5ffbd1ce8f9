"""Finds the parts of a decoder-only `transformers` model that running its layers in spans needs."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from hispec.errors import UsageError
from hispec.models.families import FAMILIES

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")
"""The name that layers have for their cache; `transformers` 5.24 renamed it, and an older layer would ignore the new
name.
"""


@dataclass(frozen=True)
class Parts:
    """Modules of a model, called as its own `forward` calls them.

    Attributes:
        embedding: ids -> hidden states.
        layers: hidden states -> hidden states.
        norm: before the head.
        rotary: positions -> cosines and sines, the same for every layer.
        head: hidden states -> logits.
        cache_argument: under which a layer takes its cache.
    """

    embedding: Any
    layers: list[Any]
    norm: Any
    rotary: Any
    head: Any
    cache_argument: str


def find_parts(model: Any, name: str) -> Parts:
    """Take a model apart.

    Args:
        model: a model from `AutoModelForCausalLM`, with or without weights.
        name: the name that users know the model by.

    Raises:
        UsageError: the model lacks a part, so its layers cannot be run in spans.
    """
    decoder = model.base_model
    layers = list(getattr(decoder, "layers", ()))
    norm = next((getattr(decoder, norm) for norm in NORMS if hasattr(decoder, norm)), None)
    rotary = getattr(decoder, "rotary_emb", None)
    head = model.get_output_embeddings()
    known = inspect.signature(type(layers[0]).forward).parameters if layers else {}
    cache = next((argument for argument in CACHE_ARGUMENTS if argument in known), None)
    lacking = {
        "no list of layers": not layers,
        "no rotary embedding that all layers share": rotary is None,
        "no norm before its head": norm is None,
        "no head": head is None,
        "layers that take no cache of ours": cache is None,
    }
    if reason := next((reason for reason, lacks in lacking.items() if lacks), None):
        raise not_in_spans(model.config.model_type, name, reason)
    return Parts(model.get_input_embeddings(), layers, norm, rotary, head, str(cache))


def check_architecture(config: Any, name: str) -> None:
    """Raise if an architecture lacks a part, from its configuration alone; arguments and errors are those of
    `find_parts`.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not getattr(kind, "_supports_sdpa", True):
        reason = "no attention through torch's scaled_dot_product_attention"
        raise not_in_spans(config.model_type, name, reason)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    find_parts(model, name)


def not_in_spans(family: str, name: str, reason: str) -> UsageError:
    """Return the refusal of an architecture, by its name and the model's."""
    return UsageError(
        f"{name} is a {family!r} model, whose layers cannot be run in spans here: it has {reason}",
        f"choose a model of one of these families: {', '.join(FAMILIES)}, or another built like them",
    )
