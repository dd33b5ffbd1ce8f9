"""A loaded `transformers` model as a layer stack: its own modules, driven span by span with our cache."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.errors import UsageError
from hispec.models.cache import KVCache
from hispec.models.config import check_supported, context_of, rope_type_of
from hispec.models.stack import ReducedHead


class TransformersStack:
    """Any model of `hispec.models.config.FAMILIES` as `transformers` loads it; see `LayerStack` for the protocol.

    Args:
        model: a decoder-only model with `sdpa` attention, on one device.
        name: how users know it.

    Raises:
        UsageError: another architecture or attention.
    """

    kind = "transformers"

    def __init__(self, model: Any, name: str) -> None:
        config = model.config
        check_supported(config.model_type, rope_type_of(config), name)
        if config._attn_implementation != "sdpa":
            raise UsageError(
                f"{name} is loaded with {config._attn_implementation!r} attention, which masks in another way",
                'load it with attn_implementation="sdpa"',
            )
        self.name = name
        self.model = model.eval()
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        self.context = context_of(config.max_position_embeddings, getattr(config, "sliding_window", None))
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache = KVCache([(heads, size)] * self.num_layers, self.dtype, [self.device] * self.num_layers)
        self._decoder = model.model
        self._layers = list(model.model.layers)
        # `transformers` 5.24 renamed the argument; an older layer would swallow the new name without using it.
        names = inspect.signature(type(self._layers[0]).forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"
        self.lease: object = None
        self._tabulated = 0

    @torch.inference_mode()
    def reserve(self, positions: int) -> None:
        """See `LayerStack.reserve`; also tabulates the rotary embedding of every position."""
        self.cache.grow(positions)
        if self._tabulated != self.cache.positions:
            probe = torch.empty(1, 1, 1, dtype=self.dtype, device=self.device)
            places = torch.arange(self.cache.positions, device=self.device)
            self._cos, self._sin = self._decoder.rotary_emb(probe, places[None])
            self._tabulated = self.cache.positions

    @torch.inference_mode()
    def embed(self, token_ids: list[int]) -> Tensor:
        """See `LayerStack.embed`."""
        embedded: Tensor = self._decoder.embed_tokens(torch.tensor(token_ids, device=self.device))
        return embedded

    @torch.inference_mode()
    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int) -> Tensor:
        """See `LayerStack.run`."""
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
    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """See `LayerStack.head`."""
        normed = self._decoder.norm(hidden)
        logits: Tensor = self.model.lm_head(normed) if reduced is None else F.linear(normed, reduced.weight)
        return logits

    @torch.inference_mode()
    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """See `LayerStack.reduce_head`."""
        ids = ids.to(self.device)
        return ReducedHead(ids, self.model.lm_head.weight.index_select(0, ids))
