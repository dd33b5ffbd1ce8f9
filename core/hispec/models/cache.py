"""The KV cache: preallocated, one for all levels, rewound by writing at an earlier position."""

from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer for one sequence.

    It offers the `update` that `transformers` layers call, and nothing else of that library's cache classes,
    whose rewinding changed between releases.

    Args:
        shapes: per layer, (key/value heads, head size).
        positions: capacity in tokens.
        dtype: of keys and values.
        devices: per layer, where it runs.
    """

    def __init__(
        self, shapes: list[tuple[int, int]], positions: int, dtype: torch.dtype, devices: list[torch.device]
    ) -> None:
        self.positions = positions
        self.position = 0
        """Where the next `update` writes; set before a span is run."""
        self._keys, self._values = (
            [
                torch.empty(1, heads, positions, size, dtype=dtype, device=device)
                for (heads, size), device in zip(shapes, devices, strict=True)
            ]
            for _ in range(2)
        )

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, n, head size] at the position; return everything from the start to the new rows."""
        end = self.position + key.shape[2]
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[:, :, self.position : end] = key
        values[:, :, self.position : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def read(self, layer_idx: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions 0..end-1 of one layer, each [heads, end, head size]."""
        return self._keys[layer_idx][0, :, :end], self._values[layer_idx][0, :, :end]
