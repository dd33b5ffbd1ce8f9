"""Weight matrices that multiply a few rows at a time: torch's own multiplication, or oneDNN's on packed weights.

On a CPU oneDNN's kernels on weights that it has packed once are two to four times as fast for 2 to 16 rows as
`torch.mm`, in float32 and bfloat16, and compute a row in the same way however many there are (docs/performance.md).
"""

from typing import Any

import torch
from torch import Tensor

from hispec.limits import SMALL_MATRIX


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
    """The same on a copy that oneDNN has packed.

    Args:
        linear: the matrix to pack.
    """

    def __init__(self, linear: Linear) -> None:
        self.bias = linear.bias
        with torch.inference_mode(False), torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.matrix.t().contiguous(), TYPICAL_ROWS)
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

    def select(self, outputs: Tensor) -> Linear:
        """Return a copy of some columns, in the order of their numbers [n], held in the same way; see `Linear`."""
        return PackedLinear(super().select(outputs))


TYPICAL_ROWS = 8
"""Rows that oneDNN lays the weights out for."""


def packs(dtype: torch.dtype, device: torch.device, largest: int) -> bool:
    """Return whether oneDNN is to multiply packed weights.

    Args:
        dtype: the dtype of the weights.
        device: the device of the weights.
        largest: numbers of a layer's largest matrix.
    """
    if dtype == torch.float32 and largest < SMALL_MATRIX:
        return False
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
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


def right_factor(rows: int, columns: int, dtype: torch.dtype, device: torch.device, *, packed: bool = False) -> Tensor:
    """Return an empty [rows, columns] matrix, laid out as multiplications with few rows on its left are fastest.

    In float32 on a CPU it is itself contiguous: one or two rows take three quarters of the time, while in bfloat16 they
    would take four times as long (docs/performance.md). Elsewhere, and where oneDNN will pack it, its transpose is, as
    in every linear layer.
    """
    if device.type == "cpu" and dtype == torch.float32 and not packed:
        return torch.empty(rows, columns, dtype=dtype, device=device)
    return torch.empty(columns, rows, dtype=dtype, device=device).t()
