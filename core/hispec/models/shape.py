"""How many numbers a model is made of, from its `config.json` alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hispec.machine import has_bfloat16
from hispec.models.config import context_of, window_of

FLOATS = {"float32": 32, "bfloat16": 16, "float16": 16}
"""Bits of the dtypes that weights are computed with."""
PER_WEIGHT = {"4bit": 4.5, "8bit": 8.0}
"""Bits of a quantized weight: NF4 adds a float32 for every 64 of them (QLoRA, arXiv 2305.14314, section 2); the
float32 that LLM.int8() keeps for every row (arXiv 2208.07339) is not worth counting."""

KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
"""Key and value heads of families where the configuration is silent; elsewhere there are as many as query heads."""
BFLOAT16_FROM = 512
"""Hidden size from which bfloat16 is the faster on processors that have it; see docs/performance.md."""


def fastest_dtype(own: str | None, hidden: int, device: str) -> str | None:
    """What the weights of a checkpoint are computed with, where nobody says: its own dtype, but for a CPU's sake.

    Args:
        own: the checkpoint's dtype, None where it does not say.
        hidden: its hidden size.
        device: kind of device.
    """
    fast = device == "cpu" and own == "float32" and hidden >= BFLOAT16_FROM and has_bfloat16()
    return "bfloat16" if fast else own


@dataclass(frozen=True)
class Shape:
    """The sizes that memory depends on; those of `hispec.models.config.ModelConfig`, read more leniently.

    Attributes:
        family: its `model_type`.
        layers, hidden, inner, heads, kv_heads, head_size, vocab, context: its sizes; `inner` is that of the MLP.
        tied: the head is the embedding.
        qkv_bias, output_bias, mlp_bias, qk_norm: which small vectors its layers have.
        dtype: the checkpoint's own, None where the configuration does not say.
        stored_bits: of each weight of the layers, where the checkpoint is quantized.
    """

    family: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    context: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str | None = None
    stored_bits: float | None = None

    @property
    def layer_matrices(self) -> int:
        """Weights of all layers' linear maps: queries, keys, values, output, and gate, up and down of the MLP."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_size
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def layer_vectors(self) -> int:
        """Norms and biases of all layers."""
        norms = 2 * self.hidden + 2 * self.head_size * self.qk_norm
        attention = (self.heads + 2 * self.kv_heads) * self.head_size * self.qkv_bias + self.hidden * self.output_bias
        return self.layers * (norms + attention + (2 * self.inner + self.hidden) * self.mlp_bias)

    @property
    def tables(self) -> int:
        """The embedding, the head where it is another matrix, and the final norm."""
        return (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layer_matrices + self.layer_vectors + self.tables

    def weights(self, dtype: str, bits: float | None = None) -> int:
        """Bytes of all weights.

        Args:
            dtype: a key of `FLOATS`.
            bits: of each weight of the layers' linear maps, where these are quantized; the rest never is.
        """
        plain = FLOATS[dtype]
        small = (self.layer_vectors + self.tables) * plain
        return int(self.layer_matrices * (plain if bits is None else bits) + small) // 8

    def kv_cache(self, positions: int, dtype: str) -> int:
        """Bytes of keys and values of all layers for one sequence: 2 x layers x heads x size x positions x item."""
        return 2 * self.layers * self.kv_heads * self.head_size * positions * FLOATS[dtype] // 8


def read_shape(values: Mapping[str, Any]) -> Shape | None:
    """The shape that a `config.json` describes, with the defaults of `transformers`; None where sizes are missing."""
    family, heads, hidden = (values.get(key) for key in ("model_type", "num_attention_heads", "hidden_size"))
    if not (isinstance(family, str) and isinstance(heads, int) and isinstance(hidden, int) and heads > 0):
        return None
    sizes: dict[str, Any] = {
        "layers": values.get("num_hidden_layers"),
        "hidden": hidden,
        "inner": values.get("intermediate_size"),
        "heads": heads,
        "kv_heads": values.get("num_key_value_heads", KV_HEADS.get(family)) or heads,
        "head_size": values.get("head_dim") or (128 if family == "qwen3" else hidden // heads),
        "vocab": values.get("vocab_size"),
        "context": values.get("max_position_embeddings"),
    }
    if not all(type(size) is int and size > 0 for size in sizes.values()):
        return None
    try:
        window = window_of(values)
    except TypeError:  # loading the model will say what is wrong with it
        return None
    if isinstance(window, int) and window > 0:
        sizes["context"] = context_of(sizes["context"], window)
    dtype = values.get("dtype") or values.get("torch_dtype")
    biased = bool(values.get("attention_bias")) and family not in ("mistral", "qwen2")
    return Shape(
        family=family,
        tied=bool(values.get("tie_word_embeddings")),
        qkv_bias=biased or family == "qwen2",
        output_bias=biased,
        mlp_bias=bool(values.get("mlp_bias")) and family == "llama",
        qk_norm=family == "qwen3",
        dtype=dtype if isinstance(dtype, str) else None,
        stored_bits=_stored_bits(values.get("quantization_config")),
        **sizes,
    )


def _stored_bits(config: Any) -> float | None:
    """Bits of a quantized checkpoint's weights; None for plain ones and for methods that are not known."""
    if not isinstance(config, dict):
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
