"""The differences between the families of Llama-like models."""

from dataclasses import dataclass
from typing import Literal

Bias = Literal["configured", "qkv", "none"]
Window = Literal["layers", "all", "switched"]


@dataclass(frozen=True)
class Family:
    """A family of models that the fused stack runs; a file in this folder that defines one is all that it takes.

    Its layers are those of Llama: RMS norms before attention and before a gated MLP, and rotary embeddings that turn the
    two halves of each head. Its checkpoints name their tensors as Llama's do. What may differ is below.

    Attributes:
        name: its `model_type` in `config.json`.
        attention_bias: the attention's projections that have a bias: all four if the key `attention_bias` is true,
            always those of queries, keys and values, or none.
        mlp_bias: the key `mlp_bias` gives the MLP's projections a bias.
        qk_norm: queries and keys are normalised, head by head.
        kv_heads: key and value heads where the configuration is silent; None: as many as query heads.
        head_size: size of a head where the configuration is silent; None: the hidden size over the query heads.
        whole_heads: whether the hidden size must be a multiple of the number of query heads, even if the head size is
            given.
        window: the layers that have a sliding window: those that `layer_types` names, all, or, if `use_sliding_window`
            is true, those of `layer_types` or above `max_window_layers`.
        gguf: files of the llama.cpp project call the family by the same name and are read here.
        turned: such files have the two halves of each head of queries and keys interleaved.
    """

    name: str
    attention_bias: Bias = "none"
    mlp_bias: bool = False
    qk_norm: bool = False
    kv_heads: int | None = None
    head_size: int | None = None
    whole_heads: bool = False
    window: Window = "layers"
    gguf: bool = False
    turned: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """Return the keys, besides those of all families, that a `config.json` must have."""
        return (
            *["attention_bias"] * (self.attention_bias == "configured"),
            *["mlp_bias"] * self.mlp_bias,
            *["head_dim"] * (self.head_size is not None),
            *["sliding_window"] * (self.window == "all"),
            *["use_sliding_window"] * (self.window == "switched"),
        )
