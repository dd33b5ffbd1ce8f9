"""The sizes and options of a decoder, read from `config.json` or from a configuration of `transformers`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hispec.errors import UsageError
from hispec.models.dtypes import FLOATS, PER_WEIGHT, fastest_dtype
from hispec.models.families import FAMILIES

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
        "gguf",
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
NEEDED = (*SIZES, "eos_token_id", "hidden_act", "rms_norm_eps", "tie_word_embeddings")
"""Keys that every `config.json` must have, besides those of its family, where only the fused stack reads it."""
OPTIONAL = (
    "attention_bias",
    "head_dim",
    "hidden_act",
    "intermediate_size",
    "num_key_value_heads",
    "quantization_config",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)
"""Keys that a configuration of `transformers` outside of `FAMILIES` may omit."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only model; outside of `FAMILIES`, what only the fused stack reads means nothing.

    Attributes:
        family: its `model_type`.
        num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_size, vocab_size: its sizes.
        context: the most positions that it supports.
        norm_eps: the epsilon of every RMS norm.
        activation: the activation of the MLP's gate.
        tied: the head is the embedding.
        qkv_bias, output_bias, mlp_bias: whether these projections have a bias.
        rope_type: one of `ROPE_TYPES`.
        rope_theta: base of the rotary frequencies.
        quantization: the quantization of the checkpoint's matrices, None for plain numbers.
        dtype: the checkpoint's own, None where the configuration does not say.
        eos_ids: ids that end a text, where the generation config does not say.
        original: the `transformers` configuration, None where it was not needed.
        gguf: for a GGUF file, whether its weights are `plain` numbers or in `blocks`, which have no dtype; else None.
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
    quantization: Any
    dtype: str | None
    eos_ids: frozenset[int]
    original: Any = None
    gguf: str | None = None

    @property
    def qk_norm(self) -> bool:
        """Return whether queries and keys are normalised, head by head."""
        return self.family in FAMILIES and FAMILIES[self.family].qk_norm

    @property
    def quantized(self) -> bool:
        """Return whether the checkpoint's matrices are not plain numbers."""
        return self.quantization is not None

    @property
    def why_not_fused(self) -> str | None:
        """Return the reason why the fused stack cannot run the model, None if it can."""
        if self.family not in FAMILIES:
            return f"it is a {self.family!r} model"
        if self.quantized:
            return "its weights are quantized"
        if self.activation != "silu":
            return f"its activation is {self.activation!r}"
        return None

    @property
    def stored_bits(self) -> float | None:
        """Return bits of a quantized checkpoint's weights; None for plain ones and for methods that are not known."""
        config = self.quantization
        if not isinstance(config, Mapping):
            return None
        if config.get("load_in_4bit"):
            return PER_WEIGHT["4bit"]
        if config.get("load_in_8bit") or config.get("quant_method") == "fp8":
            return PER_WEIGHT["8bit"]
        bits, group = config.get("bits"), config.get("group_size")
        if not isinstance(bits, int):
            return None
        # GPTQ and AWQ: a float16 scale and a zero point of as many bits for every group.
        return bits + (16 + bits) / group if isinstance(group, int) and group > 0 else float(bits)

    def faster_dtype(self, asked: str, device: str, *, as_stored: bool = False) -> str:
        """Return the dtype that is asked for; for `auto`, one that is faster than the checkpoint's own, else `auto`.

        Args:
            asked: a key of `FLOATS`, or `auto`.
            device: kind of device.
            as_stored: whether nothing but the checkpoint's own will do.
        """
        if asked == "auto" and self.gguf == "blocks":
            # Rounded to bfloat16, SmolLM2 in 4 bits gives other answers, and worse ones. GPUs have memory for no more.
            return "float32" if device == "cpu" else "bfloat16"
        if asked != "auto" or self.quantized or as_stored:
            return asked
        fastest = fastest_dtype(self.dtype, self.hidden_size, device)
        return "auto" if fastest is None or fastest == self.dtype else fastest

    def settle_dtype(self, asked: str, stored: str | None) -> str:
        """Return the dtype that weights are computed with, a key of `FLOATS`.

        Args:
            asked: the dtype from `faster_dtype`; with `auto`, the configuration's own is taken.
            stored: the dtype of the tensors, for a configuration without one.
        """
        return next(name for name in (asked, self.dtype, stored, "float32") if name in FLOATS)

    @property
    def layer_matrices(self) -> int:
        """Return weights of all layers' linear maps: queries, keys, values, output, and gate, up and down of the MLP."""
        attention = 2 * self.hidden_size * (self.num_heads + self.num_kv_heads) * self.head_size
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """Return (inputs, outputs) of a layer's matrices as the fused stack has them: projections, output, gate and up, down."""
        projected = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        return (
            (self.hidden_size, projected),
            (self.num_heads * self.head_size, self.hidden_size),
            (self.hidden_size, 2 * self.intermediate_size),
            (self.intermediate_size, self.hidden_size),
        )

    @property
    def largest_matrix(self) -> int:
        """Return numbers of a layer's largest matrix as the fused stack has it: gate and up of the MLP in one."""
        return 2 * self.hidden_size * self.intermediate_size

    @property
    def layer_vectors(self) -> int:
        """Return norms and biases of all layers."""
        norms = 2 * self.hidden_size + 2 * self.head_size * self.qk_norm
        projected = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        attention = projected * self.qkv_bias + self.hidden_size * self.output_bias
        return self.num_layers * (norms + attention + (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias)

    @property
    def tables(self) -> int:
        """Return the embedding, the head where it is another matrix, and the final norm."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def parameters(self) -> int:
        """Return the number of all parameters."""
        return self.layer_matrices + self.layer_vectors + self.tables

    def weights(self, dtype: str, bits: float | None = None) -> int:
        """Return the bytes of all weights.

        Args:
            dtype: a key of `FLOATS`.
            bits: the bits of each weight of the layers' linear maps, where these are quantized; other weights never
                are.
        """
        plain = FLOATS[dtype]
        small = (self.layer_vectors + self.tables) * plain
        return int(self.layer_matrices * (plain if bits is None else bits) + small) // 8

    def kv_cache(self, positions: int, dtype: str) -> int:
        """Return the bytes of keys and values of all layers for one sequence.

        These are 2 x layers x heads x size x positions x item.
        """
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * positions * FLOATS[dtype] // 8


def check_rotary(rope_type: str, name: str) -> None:
    """Refuse, by name, a rotary embedding that changes with the length of the text.

    Args:
        rope_type: its kind.
        name: the model, as the user named it.

    Raises:
        UsageError: the type is not one of `ROPE_TYPES`.
    """
    if rope_type not in ROPE_TYPES:
        raise UsageError(
            f"{name} uses {rope_type!r} rotary embeddings, which change as the text grows",
            f"choose a model with one of these: {', '.join(ROPE_TYPES)}",
        )


def rope_type_of(config: Any) -> str:
    """Return the kind of rotary embedding of a `transformers` configuration."""
    return str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))


def as_ids(value: int | Sequence[int] | None) -> frozenset[int]:
    """Return the value of `eos_token_id` in configurations, which is one id, several or none, as ids."""
    return frozenset(() if value is None else (value,) if isinstance(value, int) else value)


def rope_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the rotary embedding: `transformers` lets `rope_scaling` replace `rope_parameters`."""
    return values.get("rope_scaling") or values.get("rope_parameters") or {}


def window_of(values: Mapping[str, Any]) -> int | None:
    """Return the sliding window of a model's layers, None where none of them has one.

    Qwen's layers have one only where the configuration puts it to use. Llama's modules know none, but the cache that
    `generate` of `transformers` makes for them keeps no more positions than it says: only inside it do the two agree.

    Args:
        values: the values of `config.json`, or of a configuration of `transformers`, whose defaults replace absent
            ones.
    """
    family, kinds = FAMILIES.get(values.get("model_type", "")), values.get("layer_types")
    window: int | None = values.get("sliding_window", 4096 if family and family.window != "layers" else None)
    if family is None or family.window == "all":
        return window
    if family.window == "switched":
        if not values.get("use_sliding_window"):
            return None
        if kinds is None and values.get("max_window_layers", 28) >= values.get("num_hidden_layers", 32):
            return None
    return window if kinds is None or "sliding_attention" in kinds else None


def says_all(values: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` leaves nothing to defaults, which differ between families and releases.

    Where it does not, and where it says something that is not known here, `transformers` must read it.
    """
    family, rope = FAMILIES.get(values.get("model_type", "")), rope_of(values)
    if family is None or values.keys() - DIRECT:
        return False
    if any(key not in values for key in (*NEEDED, *family.needed)):
        return False
    if family.window == "all" and "layer_types" in values:  # `transformers` takes Mistral for another family then
        return False
    if family.head_size is not None and values["head_dim"] is None:
        return False
    if rope.get("rope_type") != "default" or "rope_theta" not in rope:  # computed from the whole configuration
        return False
    windowed = values.get("use_sliding_window") and family.window == "switched"
    told = "sliding_window" in values and values.keys() & {"layer_types", "max_window_layers"}
    return bool(told or not windowed) and all(_is_size(values[name]) for name in SIZES)


def parse_config(values: Mapping[str, Any], original: Any = None) -> ModelConfig:
    """Read a configuration, with the defaults of `transformers` for the sizes that it leaves out.

    Args:
        values: the keys of `config.json`, or of a configuration of `transformers`.
        original: the `transformers` configuration that they are from.

    Raises:
        KeyError: a size that is not said.
        TypeError: one that is no size.
    """
    name, heads, hidden = (values[key] for key in ("model_type", "num_attention_heads", "hidden_size"))
    family = FAMILIES.get(name)
    sizes: dict[str, Any] = {
        "num_layers": values["num_hidden_layers"],
        "hidden_size": hidden,
        "intermediate_size": values["intermediate_size"],
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads", family.kv_heads if family else None) or heads,
        "head_size": values.get("head_dim") or (family.head_size if family else None) or hidden // heads,
        "vocab_size": values["vocab_size"],
        "context": values["max_position_embeddings"],
    }
    for key, size in sizes.items():
        if not _is_size(size):
            raise TypeError(f"{key} is {size!r}")
    window = window_of(values)
    if _is_size(window):  # inside its window a windowed layer is an ordinary one, so the window bounds the context
        sizes["context"] = min(sizes["context"], window)
    biased = bool(values.get("attention_bias")) and (family is None or family.attention_bias == "configured")
    rope = rope_of(values)
    dtype = values.get("dtype") or values.get("torch_dtype")
    return ModelConfig(
        family=name,
        **sizes,
        norm_eps=values.get("rms_norm_eps", 0.0),
        activation=values.get("hidden_act", "silu"),
        tied=bool(values.get("tie_word_embeddings")),
        qkv_bias=biased or (family is not None and family.attention_bias == "qkv"),
        output_bias=biased,
        mlp_bias=bool(values.get("mlp_bias")) and family is not None and family.mlp_bias,
        rope_type=rope.get("rope_type", "default"),
        rope_theta=rope.get("rope_theta", 0.0),
        quantization=values.get("quantization_config"),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        eos_ids=as_ids(values.get("eos_token_id")),
        original=original,
        gguf=values.get("gguf"),
    )


def read_config(values: Mapping[str, Any]) -> ModelConfig | None:
    """Return the configuration in a `config.json`, None if it lacks sizes: loading will report the error."""
    try:
        return parse_config(values)
    except (KeyError, TypeError, ZeroDivisionError, AttributeError):
        return None


def describe(config: Any, name: str) -> ModelConfig:
    """Read a configuration of `transformers`, of any architecture.

    Args:
        config: a configuration of `transformers`.
        name: the model, as the user named it.

    Raises:
        UsageError: the configuration does not give the model's context length.
        AttributeError: sizes are missing, or have other names.
    """
    if config.model_type in FAMILIES:
        return parse_config(config.to_dict(), config)
    values = {key: getattr(config, key, None) for key in OPTIONAL}
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise UsageError(f"{name} does not say how long a text it reads", "add max_position_embeddings to its config")
    for key in ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size", "dtype", "eos_token_id"):
        values[key] = getattr(config, key)
    if not _is_size(values["intermediate_size"]):
        values["intermediate_size"] = 4 * config.hidden_size
    return parse_config(values | {"model_type": config.model_type, "max_position_embeddings": context}, config)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0
