"""Weight matrices that multiply a few rows at a time: torch's own multiplication, or that of a library on packed weights.

On a CPU, oneDNN and fbgemm have kernels on weights that they have packed once, which are several times as fast for a few
rows as `torch.mm`, and compute a row in the same way for most numbers of rows.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hispec.limits import SMALL_MATRIX
from hispec.models.rows import equal_counts


class Linear:
    """A matrix and perhaps a bias: rows [n, in] -> [n, out].

    Args:
        matrix: [in, out]; its memory should be laid out as `right_factor` does it.
        bias: [out].
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None = None) -> None:
        self.matrix, self.bias = matrix, bias

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply [n, in] -> [n, out], into `out` if given."""
        if self.bias is None:
            return torch.mm(rows, self.matrix) if out is None else torch.mm(rows, self.matrix, out=out)
        return torch.addmm(self.bias, rows, self.matrix, out=out)

    def add_to(self, hidden: Tensor, rows: Tensor) -> None:
        """Add the product [n, out] to `hidden`, in place."""
        hidden.addmm_(rows, self.matrix)
        if self.bias is not None:
            hidden.add_(self.bias)

    def dense(self) -> Tensor:
        """Return the matrix, [in, out]: a view where it is held as it is, else a copy."""
        return self.matrix

    def select(self, outputs: Tensor) -> "Linear":
        """Return a copy of some columns, in the order of their numbers [n], held in the same way."""
        dense = self.dense()
        matrix = right_factor(len(dense), len(outputs), dense.dtype, dense.device).copy_(dense[:, outputs])
        return Linear(matrix, None if self.bias is None else self.bias[outputs])


class PackedLinear(Linear):
    """The same on a copy that a library has packed for the processor; the matrix itself is not held.

    Args:
        linear: the matrix to pack.
    """

    def __init__(self, linear: Linear) -> None:
        self.bias = linear.bias
        with torch.inference_mode(False), torch.no_grad():
            self._pack(linear.matrix.t())

    @staticmethod
    def row_counts(candidates: Sequence[int]) -> Sequence[int]:
        """Return the row counts that may compute a row in the same way, of some ascending ones."""
        return candidates

    @staticmethod
    def packers() -> int:
        """Return how many threads should pack matrices, for a library whose packing has one."""
        return 1

    @abstractmethod
    def _pack(self, weight: Tensor) -> None:
        """Pack a matrix as a checkpoint has it, [out, in]."""

    def select(self, outputs: Tensor) -> Linear:
        """Return a copy of some columns, in the order of their numbers [n], held in the same way; see `Linear`."""
        return type(self)(super().select(outputs))


class OneDnnLinear(PackedLinear):
    """Weights that oneDNN has packed.

    Its kernels are two to four times as fast for 2 to 16 rows as `torch.mm`, in float32 and bfloat16, and compute a row
    in the same way however many there are (docs/performance.md).
    """

    def _pack(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        self._multiply: Any = torch.ops.mkldnn._linear_pointwise.default
        self._multiply_add: Any = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply [n, in] -> [n, out], into `out` if given; see `Linear`."""
        product: Tensor = self._multiply(rows, self._packed, self.bias, "none", [], "")
        return product if out is None else out.copy_(product)

    def add_to(self, hidden: Tensor, rows: Tensor) -> None:
        """Add the product [n, out] to `hidden`, in place; see `Linear`."""
        hidden.copy_(self._multiply_add(rows, hidden, self._packed, self.bias, "add"))

    def dense(self) -> Tensor:
        """Return a copy of the matrix, [in, out]; see `Linear`."""
        dense: Tensor = self._packed.to_dense()
        return dense.t()


class Float16Linear(PackedLinear):
    """Weights of 16 bits that fbgemm has packed as float16, multiplied by float32 rows and added up in float32.

    On a processor without instructions for its dtype, `torch.mm` reads all weights once for every row; this reads them
    once for up to six rows (docs/performance.md). The weights keep their values: each output's are multiplied by the
    power of two that brings the largest of them close to float16's largest number, so that a bfloat16 weight loses bits only
    where it is smaller by a factor of more than 2^30.
    """

    def _pack(self, weight: Tensor) -> None:
        self._dtype, values = weight.dtype, weight.float()
        largest = torch.linalg.vector_norm(values, torch.inf, 1)
        exponents = (FLOAT16_EXPONENT - torch.frexp(largest).exponent).clamp_(max=MAX_EXPONENT)
        if weight.dtype == torch.float16:
            exponents.zero_()
        factors = torch.ldexp(torch.ones_like(largest), torch.where(largest.isfinite(), exponents, 0))
        # Weights that are no numbers would be packed as some number.
        self._scales = torch.where(largest.isfinite(), 1 / factors, torch.nan)
        self._packed = torch.ops.quantized.linear_prepack_fp16(values.mul_(factors[:, None]), None)
        self._multiply: Any = torch.ops.quantized.linear_dynamic_fp16
        self._float_bias = None if self.bias is None else self.bias.float()

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply [n, in] -> [n, out], into `out` if given; see `Linear`."""
        product = self._multiply(rows.float(), self._packed)
        if out is None:
            out = rows.new_empty(product.shape)
        if self._float_bias is None:
            return torch.mul(product, self._scales, out=out)
        return torch.addcmul(self._float_bias, product, self._scales, out=out)

    def add_to(self, hidden: Tensor, rows: Tensor) -> None:
        """Add the product [n, out] to `hidden`, in place; see `Linear`."""
        product = self._multiply(rows.float(), self._packed)
        torch.addcmul(hidden, product, self._scales, out=hidden)
        if self.bias is not None:
            hidden.add_(self.bias)

    @staticmethod
    def row_counts(candidates: Sequence[int]) -> Sequence[int]:
        """Return the row counts that add in the same order, see `PackedLinear`.

        They are tried on float32 sums: rounded to 16 bits, one number in ten thousand shows that the order differs.
        """
        rng = torch.Generator().manual_seed(0)
        weight, text = torch.randn(64, 640, generator=rng), torch.randn(max(candidates), 640, generator=rng)
        packed = torch.ops.quantized.linear_prepack_fp16(weight, None)

        def compute(first: int, rows: int, padded: int) -> Tensor:
            given = torch.zeros(padded, text.shape[1])
            given[:rows] = text[first : first + rows]
            product: Tensor = torch.ops.quantized.linear_dynamic_fp16(given, packed)
            return product[:rows]

        return equal_counts(compute, candidates, len(text))

    @staticmethod
    def packers() -> int:
        """Return how many threads should pack matrices; see `PackedLinear`. Each holds one in float32."""
        return min(torch.get_num_threads(), 4)

    def dense(self) -> Tensor:
        """Return a copy of the matrix, [in, out]; see `Linear`."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return (weight * self._scales[:, None]).to(self._dtype).t()


TYPICAL_ROWS = 8
"""Rows that oneDNN lays the weights out for."""
FLOAT16_EXPONENT = 15
"""The exponent, as `frexp` has it, of numbers that are at most half of float16's largest."""
MAX_EXPONENT = 126
"""The exponent of the largest factor whose inverse is an ordinary float32 number."""


def packing(dtype: torch.dtype, device: torch.device, largest: int) -> type[PackedLinear] | None:
    """Return the packed form in which matrices multiply fastest, or None where that is `Linear`.

    Args:
        dtype: the dtype of the weights.
        device: the device of the weights.
        largest: numbers of a layer's largest matrix.
    """
    if device.type != "cpu":
        return None
    large = largest >= SMALL_MATRIX
    if _has_onednn(dtype):
        return OneDnnLinear if large or dtype != torch.float32 else None
    return Float16Linear if large and dtype in (torch.bfloat16, torch.float16) and has_float16_kernel() else None


def _has_onednn(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies packed weights of a dtype."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        pack = torch.ops.mkldnn._reorder_linear_weight
        match dtype:
            case torch.float32:
                return bool(pack)
            case torch.bfloat16:
                return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
            case _:
                return False
    except AttributeError:  # a build of torch without it
        return False


@lru_cache
def has_float16_kernel() -> bool:
    """Return whether this build of torch multiplies by packed float16 weights on this processor, and correctly."""
    weight, rows = torch.arange(-16.0, 16.0).view(4, 8).half(), torch.ones(3, 8, dtype=torch.float16)
    try:
        return torch.equal(Float16Linear(Linear(weight.t()))(rows), weight.sum(1).expand(3, 4))
    except (AttributeError, RuntimeError):
        return False


def right_factor(rows: int, columns: int, dtype: torch.dtype, device: torch.device, *, packed: bool = False) -> Tensor:
    """Return an empty [rows, columns] matrix, laid out as multiplications with few rows on its left are fastest.

    In float32 on a CPU it is itself contiguous: one or two rows take three quarters of the time, while in bfloat16 they
    would take four times as long (docs/performance.md). Elsewhere, and where oneDNN will pack it, its transpose is, as
    in every linear layer.
    """
    if device.type == "cpu" and dtype == torch.float32 and not packed:
        return torch.empty(rows, columns, dtype=dtype, device=device)
    return torch.empty(columns, rows, dtype=dtype, device=device).t()
