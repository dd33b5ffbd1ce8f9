"""A loaded `transformers` model as a layer stack: its own modules, driven span by span with our cache."""

import inspect
from typing import Any

import torch
from torch import Tensor

from hispec.errors import UsageError
from hispec.models.cache import KVCache

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose layers are known to run as spans; all are tested against `generate`."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on how long the text has become."""


def check_supported(config: Any, name: str) -> None:
    """Refuse, by name, a model that cannot be run in spans.

    Args:
        config: a `transformers` configuration.
        name: the model, as the user named it.

    Raises:
        UsageError: for another architecture, or a rotary embedding that changes with the length of the text.
    """
    if config.model_type not in FAMILIES:
        raise UsageError(
            f"{name} is a {config.model_type!r} model, whose layers cannot be run in spans here",
            f"choose a model of one of these families: {', '.join(FAMILIES)}",
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise UsageError(
            f"{name} uses {rope!r} rotary embeddings, which change as the text grows",
            f"choose a model with one of these: {', '.join(ROPE_TYPES)}",
        )


class TransformersStack:
    """Any model of `FAMILIES` as `transformers` loads it; see `LayerStack` for the protocol.

    Args:
        model: a decoder-only model with `sdpa` attention, on one device.
        name: how users know it.

    Raises:
        UsageError: another architecture or attention.
    """

    def __init__(self, model: Any, name: str) -> None:
        config = model.config
        check_supported(config, name)
        if config._attn_implementation != "sdpa":
            raise UsageError(
                f"{name} is loaded with {config._attn_implementation!r} attention, which masks in another way",
                'load it with attn_implementation="sdpa"',
            )
        self.name = name
        self.model = model.eval()
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        # Inside its sliding window a windowed layer is an ordinary one, so the window bounds the context instead.
        self.context: int = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or 1 << 60)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shapes = [(heads, size)] * self.num_layers
        self._decoder = model.model
        self._layers = list(model.model.layers)
        # `transformers` 5.24 renamed the argument; an older layer would swallow the new name without using it.
        names = inspect.signature(type(self._layers[0]).forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"
        self.cache: KVCache | None = None
        self.lease: object = None

    @torch.inference_mode()
    def reserve(self, positions: int) -> None:
        """See `LayerStack.reserve`; also tabulates the rotary embedding of every position."""
        if self.cache is None or self.cache.positions < positions:
            self.cache = None  # freed first: two caches never exist at once
            self.cache = KVCache(self._shapes, positions, self.dtype, [self.device] * self.num_layers)
            probe = torch.empty(1, 1, 1, dtype=self.dtype, device=self.device)
            self._cos, self._sin = self._decoder.rotary_emb(probe, torch.arange(positions, device=self.device)[None])

    @torch.inference_mode()
    def embed(self, token_ids: list[int]) -> Tensor:
        """See `LayerStack.embed`."""
        embedded: Tensor = self._decoder.embed_tokens(torch.tensor(token_ids, device=self.device))
        return embedded

    @torch.inference_mode()
    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int) -> Tensor:
        """See `LayerStack.run`."""
        assert self.cache is not None, "reserve() comes first"
        rows = hidden.shape[0]
        end = position + rows
        self.cache.position = position
        rotary = self._cos[:, position:end], self._sin[:, position:end]
        mask = None
        if rows > 1:
            mask = torch.ones(rows, end, dtype=torch.bool, device=self.device).tril_(position)[None, None]
        hidden = hidden[None]
        arguments = {self._cache_argument: self.cache, "attention_mask": mask, "position_embeddings": rotary}
        for layer in self._layers[start_layer:end_layer]:
            hidden = layer(hidden, **arguments)
        return hidden[0]

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """See `LayerStack.head`."""
        logits: Tensor = self.model.lm_head(self._decoder.norm(hidden))
        return logits
