"""What a decoder is made of: read from `config.json` itself where that says it all, else through `transformers`.

Importing a configuration class of `transformers` takes longer than decoding a short answer, hence the direct way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hispec.errors import UsageError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s that the fused stack knows. The modules of `transformers` run many more."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on how long the text has become."""

DIRECT = frozenset(
    [
        "architectures",
        "attention_bias",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "pretraining_tp",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_sliding_window",
        "vocab_size",
        "_name_or_path",
    ]
)
"""Keys of `config.json` that are read here or shape nothing. With any other, `transformers` reads the file."""

SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only model; outside of `FAMILIES`, what only the fused stack reads means nothing.

    Attributes:
        family: its `model_type`.
        num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_size, vocab_size: its sizes.
        context: the most positions that it supports.
        norm_eps: of every RMS norm.
        activation: of the MLP's gate.
        tied: the head is the embedding.
        qkv_bias, output_bias, mlp_bias: which projections have one.
        rope_type: one of `ROPE_TYPES`.
        rope_theta: base of the rotary frequencies.
        quantized: whether the checkpoint's matrices are not plain numbers.
        dtype: the checkpoint's own, None where the configuration does not say.
        eos_ids: ids that end a text, where the generation config does not say.
        original: the `transformers` configuration, None where it was not needed.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    context: int
    norm_eps: float
    activation: str
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope_type: str
    rope_theta: float
    quantized: bool
    dtype: str | None
    eos_ids: frozenset[int]
    original: Any = None

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised, head by head."""
        return self.family == "qwen3"


def check_rotary(rope_type: str, name: str) -> None:
    """Refuse, by name, a rotary embedding that changes with the length of the text.

    Args:
        rope_type: its kind.
        name: the model, as the user named it.

    Raises:
        UsageError: for one that is not of `ROPE_TYPES`.
    """
    if rope_type not in ROPE_TYPES:
        raise UsageError(
            f"{name} uses {rope_type!r} rotary embeddings, which change as the text grows",
            f"choose a model with one of these: {', '.join(ROPE_TYPES)}",
        )


def rope_type_of(config: Any) -> str:
    """The kind of rotary embedding of a `transformers` configuration."""
    return str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))


def as_ids(value: int | Sequence[int] | None) -> frozenset[int]:
    """What configurations call `eos_token_id`: one id, several or none."""
    return frozenset(() if value is None else (value,) if isinstance(value, int) else value)


def context_of(max_positions: int, sliding_window: int | None) -> int:
    """Inside its sliding window a windowed layer is an ordinary one, so the window bounds the context instead."""
    return min(max_positions, sliding_window or max_positions)


def rope_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the rotary embedding: `transformers` lets `rope_scaling` replace `rope_parameters`."""
    return values.get("rope_scaling") or values.get("rope_parameters") or {}


def window_of(values: Mapping[str, Any]) -> int | None:
    """Return the sliding window of a model's layers, None where none of them has one.

    Qwen's layers have one only where the configuration puts it to use. Llama's modules know none, but the cache that
    `generate` of `transformers` makes for them keeps no more positions than it says: only inside it do the two agree.

    Args:
        values: of `config.json`, or of a configuration of `transformers`, whose defaults stand for absent ones.
    """
    family, kinds = values.get("model_type"), values.get("layer_types")
    window: int | None = values.get("sliding_window", 4096 if family in ("mistral", "qwen2", "qwen3") else None)
    if family not in ("llama", "qwen2", "qwen3"):
        return window
    if family != "llama":
        if not values.get("use_sliding_window"):
            return None
        if kinds is None and values.get("max_window_layers", 28) >= values.get("num_hidden_layers", 32):
            return None
    return window if kinds is None or "sliding_attention" in kinds else None


def parse_config(values: Mapping[str, Any], original: Any = None) -> ModelConfig:
    """Read a configuration that leaves nothing to defaults, which differ between families and releases.

    Args:
        values: the keys of `config.json`.
        original: the `transformers` configuration that they are from.

    Raises:
        KeyError: something is not said, or not as it should be, or not known: let `transformers` read it.
    """
    family = values["model_type"]
    if family not in FAMILIES:
        raise KeyError(family)
    if original is None and (unknown := values.keys() - DIRECT):
        raise KeyError(min(unknown))
    if family == "mistral" and "layer_types" in values:  # `transformers` takes it for another family
        raise KeyError("layer_types")
    rope = rope_of(values)
    if original is None and rope.get("rope_type") != "default":  # these are computed from the whole configuration
        raise KeyError("rope_type")
    heads = values["num_attention_heads"]
    size = values.get("head_dim")
    if size is None:
        if family == "qwen3" and original is None:
            raise KeyError("head_dim")
        size = values["hidden_size"] // heads
    windowed = values["use_sliding_window"] if family.startswith("qwen") else family == "mistral"
    if windowed and "sliding_window" not in values:
        raise KeyError("sliding_window")
    if windowed and family != "mistral" and not values.keys() & {"layer_types", "max_window_layers"}:
        raise KeyError("max_window_layers")
    biased = bool(values["attention_bias"]) if family in ("llama", "qwen3") else False
    if not all(type(values[name]) is int and values[name] > 0 for name in SIZES):
        raise KeyError("sizes")
    return ModelConfig(
        family=family,
        num_layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"],
        head_size=size,
        vocab_size=values["vocab_size"],
        context=context_of(values["max_position_embeddings"], window_of(values)),
        norm_eps=values["rms_norm_eps"],
        activation=values["hidden_act"],
        tied=values["tie_word_embeddings"],
        qkv_bias=biased or family == "qwen2",
        output_bias=biased,
        mlp_bias=bool(values["mlp_bias"]) if family == "llama" else False,
        rope_type=rope["rope_type"],
        rope_theta=rope["rope_theta"],
        quantized=values.get("quantization_config") is not None,
        dtype=values.get("dtype") or values.get("torch_dtype"),
        eos_ids=as_ids(values["eos_token_id"]),
        original=original,
    )


def describe_foreign(config: Any, name: str) -> ModelConfig:
    """The shape of a model outside of `FAMILIES`, as far as anybody but its own modules needs it.

    Args:
        config: as `transformers` reads it.
        name: the model, as the user named it.

    Raises:
        UsageError: it does not say how long a text the model reads.
    """
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise UsageError(f"{name} does not say how long a text it reads", "add max_position_embeddings to its config")
    heads = config.num_attention_heads
    return ModelConfig(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        context=context_of(context, getattr(config, "sliding_window", None)),
        norm_eps=0.0,
        activation="",
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        rope_type=rope_type_of(config),
        rope_theta=0.0,
        quantized=bool(getattr(config, "quantization_config", None)),
        dtype=None if config.dtype is None else str(config.dtype).removeprefix("torch."),
        eos_ids=as_ids(config.eos_token_id),
        original=config,
    )
