"""Weights packed for few large multiplications, filled tensor by tensor so that no second copy ever exists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from hispec.models.checkpoint import read_shapes, read_tensors
from hispec.models.config import ModelConfig


@dataclass(slots=True)
class Layer:
    """One decoder layer. Matrices multiply from the right, [in, out]; biases and the norms of heads may be lacking."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    """[query heads + key heads, head size]"""
    output: Tensor
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class FusedWeights:
    """All weights of a model of the Llama family, allocated but not filled.

    Args:
        config: its shape.
        dtype: of all weights.
        device: where they go.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self.parts: dict[str, Tensor] = {}
        """Where each tensor of a checkpoint goes, by its name there: views of the packed ones, in its own shape."""
        hidden = config.hidden_size
        self.layers = [self._layer(f"model.layers.{index}.") for index in range(config.num_layers)]
        self.norm = self._vector({"model.norm.weight": hidden})
        if config.tied:
            self.head = self._matrix(hidden, {"model.embed_tokens.weight": config.vocab_size})
            self.embedding = self.head.t()
        else:
            self.head = self._matrix(hidden, {"lm_head.weight": config.vocab_size})
            self.embedding = torch.empty(config.vocab_size, hidden, dtype=dtype, device=device)
            self.parts["model.embed_tokens.weight"] = self.embedding

    def fill(self, files: dict[str, Path], read: Callable[[int], None] = lambda _: None) -> list[str]:
        """Read a checkpoint: a file is mapped for one layer at a time, or what was read of it would pile up in memory.

        Args:
            files: which file holds each tensor.
            read: told after each tensor how many bytes it has in its file.

        Returns:
            As `misfits`; if any, nothing is read.
        """
        wrong = self.misfits(files)
        for names in self._groups() if not wrong else ():
            for name, tensor in read_tensors(files, names):
                self.parts[name].copy_(tensor)
                read(tensor.nbytes)
        return wrong

    def misfits(self, files: dict[str, Path]) -> list[str]:
        """Return the names of tensors that are missing in a checkpoint or misshapen; only its headers are read."""
        shapes = read_shapes(files, [name for name in self.parts if name in files])
        return sorted(name for name, part in self.parts.items() if shapes.get(name) != tuple(part.shape))

    def _groups(self) -> Iterator[list[str]]:
        """Names of `parts`, layer by layer, the large tables one by one."""
        for _, names in groupby(self.parts, key=lambda name: name.split(".")[:3]):
            yield list(names)

    def _layer(self, prefix: str) -> Layer:
        config = self._config
        queries, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        hidden, inner = config.hidden_size, config.intermediate_size
        attention = prefix + "self_attn."
        qkv = {f"{attention}{part}_proj": rows for part, rows in (("q", queries), ("k", keys), ("v", keys))}
        output = {attention + "o_proj": hidden}
        gate_up = {f"{prefix}mlp.{part}_proj": inner for part in ("gate", "up")}
        down = {prefix + "mlp.down_proj": hidden}
        return Layer(
            attention_norm=self._vector({prefix + "input_layernorm.weight": hidden}),
            qkv=self._matrix(hidden, _named(qkv, "weight")),
            qkv_bias=self._vector(_named(qkv, "bias")) if config.qkv_bias else None,
            qk_norm=self._head_norms(attention) if config.qk_norm else None,
            output=self._matrix(queries, _named(output, "weight")),
            output_bias=self._vector(_named(output, "bias")) if config.output_bias else None,
            mlp_norm=self._vector({prefix + "post_attention_layernorm.weight": hidden}),
            gate_up=self._matrix(hidden, _named(gate_up, "weight")),
            gate_up_bias=self._vector(_named(gate_up, "bias")) if config.mlp_bias else None,
            down=self._matrix(inner, _named(down, "weight")),
            down_bias=self._vector(_named(down, "bias")) if config.mlp_bias else None,
        )

    def _matrix(self, columns: int, rows: dict[str, int]) -> Tensor:
        """Some [rows, columns] matrices of the checkpoint side by side, as one [columns, all rows]."""
        matrix = right_factor(columns, sum(rows.values()), self._dtype, self._device)
        self._split(matrix.t(), rows)
        return matrix

    def _vector(self, lengths: dict[str, int]) -> Tensor:
        vector = torch.empty(sum(lengths.values()), dtype=self._dtype, device=self._device)
        self._split(vector, lengths)
        return vector

    def _head_norms(self, attention: str) -> Tensor:
        """The norm of query heads and that of key heads, repeated for each of them."""
        config = self._config
        norms = torch.empty(2, config.head_size, dtype=self._dtype, device=self._device)
        self.parts[attention + "q_norm.weight"], self.parts[attention + "k_norm.weight"] = norms
        return norms

    def _split(self, packed: Tensor, lengths: dict[str, int]) -> None:
        self.parts.update(zip(lengths, packed.split_with_sizes(list(lengths.values())), strict=True))


def right_factor(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty [rows, columns] matrix, laid out as multiplications with few rows on its left are fastest.

    In float32 on a CPU it is itself contiguous: one or two rows take three quarters of the time, while in bfloat16 they
    would take four times as long (docs/performance.md). Elsewhere its transpose is, as in every linear layer.
    """
    if device.type == "cpu" and dtype == torch.float32:
        return torch.empty(rows, columns, dtype=dtype, device=device)
    return torch.empty(columns, rows, dtype=dtype, device=device).t()


def _named(parts: dict[str, int], kind: str) -> dict[str, int]:
    return {f"{part}.{kind}": length for part, length in parts.items()}
