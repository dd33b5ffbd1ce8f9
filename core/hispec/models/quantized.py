"""Linear layers whose weights are 8-bit or 4-bit numbers, multiplied by the kernels that torch ships.

`int8` has one scale for each output. On a CPU the activations are 8-bit numbers too, with one scale for each *row* of
them, so that rows do not depend on each other: a product is the same to the last bit for any count of rows, and with
any of the kernels. `int4` has a scale and a zero point for each group of inputs of one output; a weight is
(code - 8) * scale + zero.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.errors import UnavailableError
from hispec.models.dtypes import GROUP, packed_int8
from hispec.models.linear import Linear
from hispec.settings import Quantization

OUTPUTS = 16
"""Outputs of 4-bit weights are padded to a multiple of this for their kernels."""

BLOCK = 64
"""The outputs that the 4-bit layout of a CPU keeps together; on CUDA it is a part of this."""

CHUNK = 1 << 20
"""The number of weights that are quantized together, so that no large matrix is ever held in float32."""

CLIPS = (1.0, 0.95, 0.9, 0.85)
"""Shares of a group's range that are tried in 4 bits; weights beyond are clipped, and the least square error wins."""

TINY = 1e-9
"""Keeps scales of zeros from dividing by zero."""


class QuantizedLinear(Linear):
    """A matrix of quantized weights and perhaps a bias: rows [n, in] -> [n, out], in the rows' dtype.

    Args:
        bias: [out].

    Attributes:
        quantization: format of the weights.
        kernel: name of what multiplies.
        wide: the full weights, which multiply more rows than `narrow`; None where there are none.
        narrow: the most rows that the quantized weights multiply where there are full ones.
    """

    quantization: Quantization = "int8"
    kernel: str

    def __init__(self, bias: Tensor | None) -> None:
        self.bias = bias
        self.wide: Linear | None = None
        self.narrow = 0

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply [n, in] -> [n, out], into `out` if given; see `Linear`."""
        if self.wide is not None and len(rows) > self.narrow:
            return self.wide(rows, out)
        return self._multiply(rows, out)

    def add_to(self, hidden: Tensor, rows: Tensor) -> None:
        """Add the product [n, out] to `hidden`, in place; see `Linear`."""
        if self.wide is not None and len(rows) > self.narrow:
            self.wide.add_to(hidden, rows)
        else:
            hidden.add_(self._multiply(rows, None))

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Return bytes that the quantized weights take."""

    @abstractmethod
    def _multiply(self, rows: Tensor, out: Tensor | None) -> Tensor:
        """Multiply by the quantized weights, [n, in] -> [n, out]."""


@dataclass(frozen=True)
class Int8Kernel:
    """A kernel of a CPU for 8-bit weights and activations.

    Attributes:
        pack: lays codes, int8 [out, in], and scales, float32 [out], out for the kernel.
        multiply: multiplies rows of integers, held as float32, by them: [n, in] -> float32 [n, out]. The last argument
            is what is added to make them positive, one more than the largest.
        unpack: returns the codes.
    """

    pack: Callable[[Tensor, Tensor], Any]
    multiply: Callable[[Tensor, Any, int], Tensor]
    unpack: Callable[[Any], Tensor]


def _pack_fbgemm(codes: Tensor, scales: Tensor) -> Any:
    zeros = torch.zeros(len(codes), dtype=torch.long)
    with warnings.catch_warnings():  # torch will retire quantized tensors; the other kernels do without them
        warnings.simplefilter("ignore")
        quantized = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, None)


def _multiply_fbgemm(rows: Tensor, packed: Any, zero: int) -> Tensor:
    found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows, 1.0, zero, packed)
    return found


def _unpack_fbgemm(packed: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes: Tensor = torch.ops.quantized.linear_unpack(packed)[0].int_repr()
    return codes


def _pack_onednn(codes: Tensor, scales: Tensor) -> Any:
    zeros = torch.zeros(len(codes), dtype=torch.int32)
    return torch.ops.onednn.qlinear_prepack(codes, None), scales, zeros


def _multiply_onednn(rows: Tensor, packed: Any, zero: int) -> Tensor:
    codes = (rows + zero).to(torch.uint8)  # signed numbers take a path that is hundreds of times as slow
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, zero, *packed, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


def _multiply_int_mm(rows: Tensor, packed: Any, _: int) -> Tensor:
    codes, scales = packed
    return torch._int_mm(rows.to(torch.int8), codes).float().mul_(scales)


INT8_KERNELS = {
    "fbgemm": Int8Kernel(_pack_fbgemm, _multiply_fbgemm, _unpack_fbgemm),
    "onednn": Int8Kernel(_pack_onednn, _multiply_onednn, lambda packed: packed[0].to_dense().t()),
    "int_mm": Int8Kernel(lambda codes, scales: (codes.t(), scales), _multiply_int_mm, lambda packed: packed[0].t()),
}
"""By name, the kernel that was fastest when it was first measured. All give the same bits."""


@lru_cache
def int8_kernels() -> tuple[str, ...]:
    """Return the names of the kernels that this build of torch has for this processor."""
    return tuple(name for name in INT8_KERNELS if _is_exact(name, 1))


@lru_cache
def largest_code() -> int:
    """Return the largest number that activations are rounded to, for which all kernels add products up exactly.

    Processors without VNNI instructions add pairs of products in 16 bits, where those of 8-bit numbers saturate: there
    activations have 7 bits.
    """
    return next(largest for largest in (127, 63) if all(_is_exact(name, largest) for name in int8_kernels()))


def _is_exact(name: str, largest: int) -> bool:
    """Return whether a kernel multiplies the largest numbers of both signs exactly; False where it does not work."""
    kernel, signs = INT8_KERNELS[name], torch.tensor([1, 1, -1, -1] * 8, dtype=torch.int8)
    codes = torch.stack((signs, signs.abs(), -signs, signs.roll(1))).repeat(4, 1) * 127
    rows = torch.stack((signs, signs.abs())).float() * largest
    try:
        found = kernel.multiply(rows, kernel.pack(codes, torch.ones(16)), largest + 1)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.equal(found, rows @ codes.float().t())


class Int8Linear(QuantizedLinear):
    """8-bit weights with one scale for each output, multiplied on a CPU by 8-bit activations with one for each row.

    Args:
        codes: int8 [out, in].
        scales: float32 [out].
        bias: [out].
        kernel: a key of `INT8_KERNELS`; by default the first that works.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None = None, kernel: str | None = None) -> None:
        super().__init__(bias)
        self.outputs, self.inputs = codes.shape
        self.kernel = kernel or int8_kernels()[0]
        self._scales, self._largest = scales, largest_code()
        self._float_bias = None if bias is None else bias.float()
        self._multiply_codes = INT8_KERNELS[self.kernel].multiply
        with torch.inference_mode(False), torch.no_grad():
            self._packed = INT8_KERNELS[self.kernel].pack(codes, scales)

    @property
    def nbytes(self) -> int:
        """Return bytes that the quantized weights take; see `QuantizedLinear`."""
        if self.kernel == "fbgemm":
            return packed_int8(self.inputs, self.outputs)
        return self.outputs * (self.inputs + self._scales.element_size())

    def add_to(self, hidden: Tensor, rows: Tensor) -> None:
        """Add the product [n, out] to `hidden`, in place; see `Linear`."""
        if self.wide is not None or self.bias is not None:
            super().add_to(hidden, rows)
        else:
            hidden.addcmul_(*self._product(rows))

    def dense(self) -> Tensor:
        """Return the matrix, [in, out]; see `Linear`. A copy, in float32."""
        return (self._codes() * self._scales[:, None]).t()

    def select(self, outputs: Tensor) -> "Int8Linear":
        """Return a copy of some columns, in the order of their numbers [n], held in the same way.

        See `Linear`. On the same grid.
        """
        bias = None if self.bias is None else self.bias[outputs]
        return Int8Linear(self._codes()[outputs], self._scales[outputs], bias, self.kernel)

    def _codes(self) -> Tensor:
        return INT8_KERNELS[self.kernel].unpack(self._packed)

    def _product(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return two factors of the product: float32 [n, out], and a scale for each row, [n, 1]."""
        scales = rows.abs().amax(-1, keepdim=True).float().clamp_(min=TINY).div_(self._largest)
        # Rounded here, as kernels do not agree on halves.
        return self._multiply_codes((rows / scales).round_(), self._packed, self._largest + 1), scales

    def _multiply(self, rows: Tensor, out: Tensor | None) -> Tensor:
        product, scales = self._product(rows)
        product.mul_(scales)
        if self._float_bias is not None:
            product.add_(self._float_bias)
        return product.to(rows.dtype) if out is None else out.copy_(product)


class Int8WeightLinear(QuantizedLinear):
    """8-bit weights with one scale for each output, multiplied by activations in full precision: for CUDA.

    Args:
        codes: int8 [out, in].
        scales: float32 [out].
        bias: [out].
        dtype: the dtype of activations.
        kernel: `int8pack` or `dequantized`.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype, kernel: str) -> None:
        super().__init__(bias)
        self.kernel = kernel
        self._codes, self._float_scales, self._scales = codes.contiguous(), scales, scales.to(dtype)

    @property
    def nbytes(self) -> int:
        """Return bytes that the quantized weights take; see `QuantizedLinear`."""
        return self._codes.nbytes + self._scales.nbytes + self._float_scales.nbytes

    def dense(self) -> Tensor:
        """Return the matrix, [in, out]; see `Linear`. A copy, in float32."""
        return (self._codes * self._float_scales[:, None]).t()

    def select(self, outputs: Tensor) -> "Int8WeightLinear":
        """Return a copy of some columns, in the order of their numbers [n], held in the same way.

        See `Linear`. On the same grid.
        """
        bias = None if self.bias is None else self.bias[outputs]
        scales = self._float_scales[outputs]
        return Int8WeightLinear(self._codes[outputs], scales, bias, self._scales.dtype, self.kernel)

    def _multiply(self, rows: Tensor, out: Tensor | None) -> Tensor:
        if self.kernel == "int8pack":
            product = torch._weight_int8pack_mm(rows, self._codes, self._scales)
        else:
            product = torch.mm(rows, self._codes.t().to(rows.dtype)).mul_(self._scales)
        if self.bias is not None:
            product.add_(self.bias)
        return product if out is None else out.copy_(product)


class Int4Linear(QuantizedLinear):
    """4-bit weights with a scale and a zero point for each group of inputs of an output.

    The kernel computes in bfloat16, whatever the dtype of the rows: that of CUDA supports no other, and on CPUs the
    others are thirty times slower.

    Args:
        codes: 0..15, uint8 [out, in], of which `in` is a multiple of the group.
        scales, zeros: [out, groups].
        bias: [out].
        inputs: the number of inputs of the rows; those beyond, in the last group, are padding.

    Raises:
        UnavailableError: the device has no kernel for them.
    """

    quantization: Quantization = "int4"

    def __init__(
        self, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None, inputs: int | None = None
    ) -> None:
        super().__init__(bias)
        check_int4(codes.device)
        self.kernel = "int4"
        self.outputs, padded = codes.shape
        self.inputs = inputs or padded
        self.group = padded // scales.shape[1]
        self._padding = padded - self.inputs
        self._cuda = codes.is_cuda
        missing = _padded(self.outputs, OUTPUTS) - self.outputs
        with torch.inference_mode(False), torch.no_grad():
            grid = torch.stack((scales, zeros), -1).to(torch.bfloat16)
            self._grid = F.pad(grid, (0, 0, 0, 0, 0, missing)).transpose(0, 1).contiguous()
            """[groups, padded outputs, 2]"""
            parts = torch.split(codes, max(BLOCK, CHUNK // padded // BLOCK * BLOCK))
            self._packed = torch.cat(
                [_pack_int4(F.pad(part, (0, 0, 0, _padded(len(part), OUTPUTS) - len(part)))) for part in parts]
            )

    @property
    def nbytes(self) -> int:
        """Return bytes that the quantized weights take; see `QuantizedLinear`."""
        return self._packed.nbytes + self._grid.nbytes

    def dense(self) -> Tensor:
        """Return the matrix, [in, out]; see `Linear`. A copy, in float32."""
        return self._dequantize(self._codes(), self._grid.transpose(0, 1)[: self.outputs]).t()

    def select(self, outputs: Tensor) -> "Int4Linear":
        """Return a copy of some columns, in the order of their numbers [n], held in the same way.

        See `Linear`. On the same grid.
        """
        scales, zeros = self._grid[:, outputs].permute(2, 1, 0)
        bias = None if self.bias is None else self.bias[outputs]
        return Int4Linear(self._codes()[outputs], scales, zeros, bias, self.inputs)

    def _codes(self) -> Tensor:
        """Return the codes, uint8 [out, in with padding]."""
        padded = self.inputs + self._padding
        return torch.cat([*_unpack_int4(self._packed, padded)])[: self.outputs]

    def _dequantize(self, codes: Tensor, grid: Tensor) -> Tensor:
        """Return weights, float32 [n, in], of codes [n, in] and their grid, [n, groups, 2]."""
        scales, zeros = grid.float()[..., None].unbind(2)
        weights = (codes.view(*grid.shape[:2], self.group) - 8.0) * scales + zeros
        return weights.flatten(1)[:, : self.inputs]

    def _multiply(self, rows: Tensor, out: Tensor | None) -> Tensor:
        given = rows.to(torch.bfloat16).contiguous()
        if self._padding:
            given = F.pad(given, (0, self._padding))
        multiply = torch._weight_int4pack_mm if self._cuda else torch._weight_int4pack_mm_for_cpu
        product = multiply(given, self._packed, self.group, self._grid)
        if product.shape[1] > self.outputs:
            product = product[:, : self.outputs]
        if self.bias is not None:
            product = product.add_(self.bias)
        return product.to(rows.dtype) if out is None else out.copy_(product)


def check_int4(device: torch.device) -> None:
    """Refuse 4-bit weights where there is no kernel for them; errors as `Int4Linear`."""
    known = device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    if not known:
        raise UnavailableError(f"{device} has no kernel for 4-bit weights", "use 8-bit ones, int8, or a newer GPU")


def quantize_int8(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights [out, in] to codes, int8 [out, in], and scales, float32 [out], to the nearest."""
    weights = weights.float()
    scales = weights.abs().amax(1).clamp_(min=TINY).div_(127)
    return (weights / scales[:, None]).round_().to(torch.int8), scales


def quantize_int4(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round weights to 4 bits, to the nearest on the grid of those that `CLIPS` gives whose square error is least.

    Args:
        weights: [out, in].

    Returns:
        Codes, uint8 [out, in with padding to whole groups]; scales and zero points, bfloat16 [out, groups].
    """
    outputs, inputs = weights.shape
    groups = F.pad(weights.float(), (0, _padded(inputs, GROUP) - inputs)).view(outputs, -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    least, scales, zeros = None, low, high
    for clip in CLIPS:
        scale = ((high - low) * (clip / 15)).clamp_(min=TINY).bfloat16().float()
        zero = (low * clip + 8 * scale).bfloat16().float()
        error = ((_round_int4(groups, scale, zero) - 8) * scale + zero - groups).square_().sum(-1, keepdim=True)
        if least is None:
            least, scales, zeros = error, scale, zero
        else:
            better = error < least
            least, scales, zeros = (
                torch.where(better, new, old) for new, old in ((error, least), (scale, scales), (zero, zeros))
            )
    codes = _round_int4(groups, scales, zeros).to(torch.uint8).view(outputs, -1)
    return codes, scales[..., 0].bfloat16(), zeros[..., 0].bfloat16()


def rounded(weights: Tensor, quantization: Quantization) -> Tensor:
    """Return weights [out, in] as their quantized copy has them, float32."""
    if quantization == "int8":
        codes, scales = quantize_int8(weights)
        return codes * scales[:, None]
    codes, scales, zeros = quantize_int4(weights)
    groups = (codes.view(len(codes), -1, GROUP) - 8.0) * scales.float()[..., None] + zeros.float()[..., None]
    return groups.flatten(1)[:, : weights.shape[1]]


def _round_int4(groups: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return ((groups - zeros) / scales + 8).round_().clamp_(0, 15)


def by_chunks(matrix: Tensor, quantized: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Quantize a matrix [out, in] some outputs at a time."""
    parts = [quantized(part) for part in torch.split(matrix, max(1, CHUNK // matrix.shape[1]))]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _pack_int4(codes: Tensor) -> Tensor:
    """Lay codes, uint8 [n, in], out for the kernel of their device."""
    if not codes.is_cuda:
        packed: Tensor = torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        return packed
    tiles = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (16 * tiles) == 0)
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    return torch._convert_weight_to_int4pack(pairs.contiguous(), tiles)


def _unpack_int4(packed: Tensor, inputs: int) -> Iterator[Tensor]:
    """Return the codes of packed weights, block by block, uint8 [n, inputs].

    Where the layout puts a code is found by packing the digits of the places' own numbers: it differs from processor to
    processor.
    """
    outputs = packed.numel() * packed.element_size() * 2 // inputs
    parts = torch.split(packed, len(packed) * BLOCK // outputs or len(packed))
    for part in parts:
        nibbles = _nibbles(part)
        count = len(nibbles) // inputs
        codes = torch.empty_like(nibbles)
        codes[_places(count, inputs, packed.device)] = nibbles
        yield codes.view(count, inputs)


def _places(outputs: int, inputs: int, device: torch.device) -> Tensor:
    """Return for each packed 4-bit number of a block which code it is."""
    numbers = torch.arange(outputs * inputs, device=device)
    places = torch.zeros_like(numbers)
    for shift in range(0, (outputs * inputs - 1).bit_length(), 4):
        digits = (numbers >> shift & 15).to(torch.uint8).view(outputs, inputs)
        places += _nibbles(_pack_int4(digits)).long() << shift
    return places


def _nibbles(packed: Tensor) -> Tensor:
    flat = packed.contiguous().view(torch.uint8).flatten()
    return torch.stack((flat & 15, flat >> 4), -1).flatten()
