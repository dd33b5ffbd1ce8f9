"""Measures products with quantized weights on this machine, by kernel and number of rows, and chooses a kernel.

Costs are measured once for each shape of matrix and remembered in the user's cache folder. On a CPU they decide speed
only: the kernels of a format give the same numbers there.
"""

from collections.abc import Callable, Collection
from functools import lru_cache, partial
from time import perf_counter, thread_time

import torch
from torch import Tensor

from hispec.files import remember, remembered
from hispec.limits import SMALL_MATRIX, WIDEST
from hispec.machine import processor_name
from hispec.models.config import ModelConfig
from hispec.models.dtypes import GROUP
from hispec.models.linear import Linear, packing, right_factor
from hispec.models.quantized import (
    Int4Linear,
    Int8Linear,
    Int8WeightLinear,
    QuantizedLinear,
    by_chunks,
    int8_kernels,
    quantize_int4,
    quantize_int8,
)
from hispec.settings import Quantization

ROWS = (1, 2, 4, 8, 16)
"""Counts of rows that are timed."""

DRAFTED_ROWS = (1, 2, 4)
"""Counts of rows that a copy mostly computes: it drafts one at a time, and verifies a few."""

LARGE_MATRIX = 1 << 22
"""Numbers of a layer's largest matrix below which a copy has 4 bits: 8 were not faster there (docs/performance.md)."""

REPEATS = 3
"""The number of passes of which the fastest counts."""

READ, MAX_COPIES = 8_000_000, 64
"""The weights that a pass reads, so many that the nearer caches do not hold them, and the most copies of the matrix."""

PART = 64
"""The outputs of a part of a matrix are a multiple of so many, which all kernels have blocks of."""

CANDIDATES = 2
"""Kernels for 8-bit numbers on a CPU that are compared; the last, which lays weights out at every call, never wins."""

CUDA_INT8 = ("dequantized", "int8pack")
"""The first works everywhere, and is taken where nothing is measured."""

FULL = "full"
"""The kernel of weights that are not quantized."""

KERNELS = "kernels.json"
"""The file of measurements, in the user's cache folder."""

Costs = dict[str, dict[int, float]]
"""Seconds of a product by kernel and count of rows."""


def quantize(
    linear: Linear,
    quantization: Quantization,
    *,
    beside: bool = False,
    agree: Callable[[Costs], Costs] | None = None,
) -> Linear:
    """Return a matrix with quantized weights, in the kernel that is the fastest for it on this machine.

    Args:
        linear: the full weights.
        quantization: their format.
        beside: whether the full weights are kept, and multiply where there are so many rows that they are faster.
        agree: replaces the measured costs by those of one of several ranks, so that all choose the same kernel.

    Raises:
        UnavailableError: the device has no kernel for the format.
    """
    dense = linear.dense()
    weights, bias = dense.t(), linear.bias
    inputs, outputs = dense.shape
    costs = _costs_of(inputs, outputs, dense.dtype, dense.device, quantization) if dense.numel() >= SMALL_MATRIX else {}
    if costs and agree is not None:
        costs = agree(costs)
    quantized: QuantizedLinear
    if quantization == "int4":
        codes, scales, zeros = by_chunks(weights, quantize_int4)
        quantized = Int4Linear(codes, scales, zeros, bias, inputs)
    else:
        codes, scales = by_chunks(weights, quantize_int8)
        names = _int8_kernels(dense.device)
        kernel = min(names, key=lambda name: sum(costs[name].values()) if costs else names.index(name))
        if dense.device.type == "cpu":
            quantized = Int8Linear(codes, scales, bias, kernel)
        else:
            quantized = Int8WeightLinear(codes, scales, bias, dense.dtype, kernel)
    if beside:
        own = costs.get(quantized.kernel)
        quantized.wide, quantized.narrow = linear, WIDEST if own is None else _narrow(own, costs[FULL])
    return quantized


def fastest_copy(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, formats: Collection[Quantization]
) -> Quantization:
    """Return the format of a model's copy that multiplies few rows the fastest, by the largest matrix of a layer.

    Args:
        config: the model's shape.
        dtype: the dtype of the full weights.
        device: the device that it runs on.
        formats: the formats that the copy may have. With one, and for small layers, nothing is measured.
    """
    if "int8" not in formats or config.largest_matrix < LARGE_MATRIX:
        return "int4"

    def seconds(quantization: Quantization) -> float:
        costs = matrix_costs(config.hidden_size, 2 * config.intermediate_size, dtype, device, quantization)
        return sum(costs[rows] for rows in DRAFTED_ROWS)

    return min(("int4", "int8"), key=seconds)


def matrix_costs(
    inputs: int, outputs: int, dtype: torch.dtype, device: torch.device, quantization: Quantization | None
) -> dict[int, float]:
    """Return seconds of a product with [inputs, outputs] by count of rows, with the kernel that is fastest over all.

    Args:
        inputs, outputs: the size of the matrix.
        dtype: the dtype of the full weights.
        device: the device of the matrix.
        quantization: format of the weights; None for the full ones.
    """
    costs = _costs_of(inputs, outputs, dtype, device, quantization or "int8")
    if quantization is None:
        return costs[FULL]
    return min((own for name, own in costs.items() if name != FULL), key=lambda own: sum(own.values()))


def _costs_of(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device, quantization: Quantization) -> Costs:
    """Return the costs of a format's kernels and of the full weights, measured or remembered."""
    cuda = device.type == "cuda"
    name = (
        torch.cuda.get_device_name(device) if cuda else f"{processor_name()} {torch.backends.cpu.get_cpu_capability()}"
    )
    packed = packing(dtype, device, inputs * outputs)
    parts = (
        name,
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"{dtype} {'as it is' if packed is None else packed.__name__}",
        f"{inputs} x {outputs}",
        quantization,
    )
    key = ", ".join(parts)
    measured = _measured()
    if key not in measured:
        # Of a large matrix a part is timed on a CPU, where laying out all of a head's weights takes seconds.
        part = outputs if cuda else min(outputs, max(1, READ // inputs // PART) * PART)
        of_part = {
            kernel: _seconds(partial(make, inputs, part, dtype, device), inputs, part, dtype, device)
            for kernel, make in _makers(quantization, device).items()
        }
        measured[key] = {
            kernel: {rows: seconds * outputs / part for rows, seconds in each.items()}
            for kernel, each in of_part.items()
        }
        remember(KERNELS, measured)
    return measured[key]


def _int8_kernels(device: torch.device) -> tuple[str, ...]:
    return int8_kernels()[:CANDIDATES] if device.type == "cpu" else CUDA_INT8


Maker = Callable[[int, int, torch.dtype, torch.device], Linear]


def _makers(quantization: Quantization, device: torch.device) -> dict[str, Maker]:
    """Return functions that make a matrix of arbitrary weights, by kernel."""
    if quantization == "int4":
        return {"int4": _any_int4, FULL: _any_full}
    any_int8 = _any_int8 if device.type == "cpu" else _any_int8_weight
    return {name: partial(any_int8, name) for name in _int8_kernels(device)} | {FULL: _any_full}


def _any_full(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Linear:
    pack = packing(dtype, device, inputs * outputs)
    linear = Linear(right_factor(inputs, outputs, dtype, device, packed=pack is not None).fill_(1.0))
    return linear if pack is None else pack(linear)


def _any_int4(inputs: int, outputs: int, _: torch.dtype, device: torch.device) -> Linear:
    groups = -(-inputs // GROUP)
    grid = torch.ones(outputs, groups, device=device)
    return Int4Linear(torch.ones(outputs, groups * GROUP, dtype=torch.uint8, device=device), grid, grid, None, inputs)


def _any_int8(kernel: str, inputs: int, outputs: int, *_: object) -> Linear:
    return Int8Linear(torch.ones(outputs, inputs, dtype=torch.int8), torch.ones(outputs), None, kernel)


def _any_int8_weight(kernel: str, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Linear:
    codes = torch.ones(outputs, inputs, dtype=torch.int8, device=device)
    return Int8WeightLinear(codes, torch.ones(outputs, device=device), None, dtype, kernel)


@torch.inference_mode()
def _seconds(
    make: Callable[[], Linear], inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> dict[int, float]:
    """Return the seconds of one product by count of rows; infinite where the kernel cannot do it."""
    found = {}
    try:
        copies = [make() for _ in range(max(1, min(MAX_COPIES, READ // (inputs * outputs))))]
        for rows in ROWS:
            given = torch.ones(rows, inputs, dtype=dtype, device=device)
            found[rows] = min(_pass(copies, given) for _ in range(REPEATS + 1)) / len(copies)
    except (RuntimeError, NotImplementedError):
        return dict.fromkeys(ROWS, float("inf"))
    return found


def _pass(copies: list[Linear], given: Tensor) -> float:
    alone = not given.is_cuda and torch.get_num_threads() == 1
    clock = thread_time if alone else perf_counter  # the time of other processes must not count
    _wait(given)
    begin = clock()
    for linear in copies:
        linear(given)
    _wait(given)
    return clock() - begin


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _narrow(own: dict[int, float], full: dict[int, float]) -> int:
    """Return the most rows that quantized weights multiply faster than full ones; at least 1."""
    narrow = 1
    for rows in ROWS:
        if own[rows] > full[rows]:
            return narrow
        narrow = rows
    return narrow


@lru_cache
def _measured() -> dict[str, Costs]:
    """Return the measurements; they are read from the file once, and added to in place."""
    try:
        return {
            key: {kernel: {int(rows): float(each[rows]) for rows in map(str, ROWS)} for kernel, each in costs.items()}
            for key, costs in remembered(KERNELS).items()
        }
    except (ValueError, AttributeError, KeyError, TypeError):
        return {}
