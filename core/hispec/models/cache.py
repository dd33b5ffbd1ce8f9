"""The KV cache: preallocated, one for all levels, rewound by writing at an earlier position."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from hispec.limits import CACHE_STEP


class KVCache:
    """Keys and values of every layer for one sequence.

    It offers the `update` that `transformers` layers call, and nothing else of that library's cache classes,
    whose rewinding changed between releases.

    Args:
        shapes: per layer, (key/value heads, head size).
        dtype: the dtype of keys and values.
        devices: per layer, where it runs.
    """

    def __init__(self, shapes: list[tuple[int, int]], dtype: torch.dtype, devices: list[torch.device]) -> None:
        self.lease: object = None
        """The decoding whose rows the cache holds, set by its state; another one loses them then."""
        self.lock = RLock()
        """Held by the thread that uses it."""
        self.positions = 0
        """Capacity in tokens."""
        self.position = 0
        """The position where the next `update` writes; set before a span is run."""
        self.rows = 0
        """The number of rows that it writes, without padding; set before a span is run."""
        self.end = 0
        """The number of positions that it returns; set before a span is run."""
        self.layers = [
            torch.empty(2, 1, heads, 0, size, dtype=dtype, device=device)
            for (heads, size), device in zip(shapes, devices, strict=True)
        ]
        """Per layer, keys and values: [2, 1, heads, positions, head size]."""

    def grow(self, positions: int) -> bool:
        """Make room for at least `positions` tokens, keep the content, and return whether the buffers changed."""
        if positions <= self.positions:
            return False
        capacity = -(-positions // CACHE_STEP) * CACHE_STEP
        with torch.inference_mode(False):  # a tensor made in inference mode could be written in that mode only
            for index, old in enumerate(self.layers):  # layer by layer, so that there are never two whole caches
                if old.shape[3] >= capacity:  # grown already when memory ran out the last time
                    continue
                # Padding and attention in whole buckets read rows that were never written. A mask can exclude a number,
                # but not NaN, so these rows must be numbers.
                new = old.new_zeros(*old.shape[:3], capacity, old.shape[4])
                new[:, :, :, : old.shape[3]] = old
                self.layers[index] = new
        self.positions = capacity  # last: what ran out of memory half-way is done again, with nothing lost
        return True

    def scratch(self) -> "KVCache":
        """Return an empty cache of the first layer."""
        heads, size = self.layers[0].shape[2], self.layers[0].shape[4]
        return KVCache([(heads, size)], self.layers[0].dtype, [self.layers[0].device])

    @contextmanager
    def borrowed(self, positions: int) -> Iterator[None]:
        """Let others write to the first `positions` tokens within the context, and restore content and owner at its
        end.
        """
        lease, held = self.lease, [layer[:, :, :, :positions].clone() for layer in self.layers]
        try:
            yield
        finally:
            with torch.inference_mode(False):
                for layer, own in zip(self.layers, held, strict=True):
                    layer[:, :, :, :positions] = 0
                    layer[:, :, :, : own.shape[3]] = own
            self.lease = lease

    def clear(self) -> None:
        """Zero all keys and values."""
        with torch.inference_mode(False):
            for layer in self.layers:
                layer.zero_()

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write `rows` of [1, heads, n, head size] at the position; return the first `end` positions."""
        after = self.position + self.rows
        keys, values = self.layers[layer_idx]
        keys[:, :, self.position : after] = key[:, :, : self.rows]
        values[:, :, self.position : after] = value[:, :, : self.rows]
        return keys[:, :, : self.end], values[:, :, : self.end]

    def read(self, layer_idx: int, end: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of positions 0..end-1 of one layer, each [heads, end, head size]."""
        keys, values = self.layers[layer_idx][:, 0, :, :end]
        return keys, values
