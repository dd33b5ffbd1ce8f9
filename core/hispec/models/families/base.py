"""What tells one family of Llama-like models from another."""

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
        attention_bias: which projections of the attention have a bias: all four where the key `attention_bias` says so,
            always those of queries, keys and values, or none.
        mlp_bias: the key `mlp_bias` gives the MLP's projections a bias.
        qk_norm: queries and keys are normalised, head by head.
        kv_heads: key and value heads where the configuration is silent; None: as many as query heads.
        head_size: size of a head where the configuration is silent; None: the hidden size over the query heads.
        whole_heads: the hidden size must be a multiple of the query heads, whatever the size of a head is.
        window: where a sliding window is in use: in the layers that `layer_types` names, in all layers, or, where
            `use_sliding_window` switches it on, in those of `layer_types` or above `max_window_layers`.
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
        """Return keys beside those of all families without which a `config.json` leaves something to defaults."""
        return (
            *["attention_bias"] * (self.attention_bias == "configured"),
            *["mlp_bias"] * self.mlp_bias,
            *["head_dim"] * (self.head_size is not None),
            *["sliding_window"] * (self.window == "all"),
            *["use_sliding_window"] * (self.window == "switched"),
        )
