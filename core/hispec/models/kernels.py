"""Measures products with quantized weights on this machine, by kernel and number of rows, and chooses a kernel.

Costs are measured once for each shape of matrix and remembered in the user's cache folder. On a CPU they decide speed
only: the kernels of a format give the same numbers there.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from time import perf_counter, thread_time

import torch
from torch import Tensor

from hispec.files import remember, remembered
from hispec.limits import SMALL_MATRIX, WIDEST
from hispec.machine import processor_name
from hispec.models.config import ModelConfig
from hispec.models.linear import Linear, packing
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

LARGE_MATRIX = {"AVX2": 1 << 22, "AVX512": 1 << 25}
"""Numbers of a layer's largest matrix from which a copy of 8 bits is the faster, by the instructions that torch uses."""

REPEATS = 2
"""The number of passes of which the fastest counts: the first does what only a first one does."""

READ, MAX_COPIES = 8_000_000, 64
"""The weights that a pass reads, so many that the nearer caches do not hold them, and the most copies of the matrix."""

READ_LAYERS = 1 << 26
"""The weights that a pass through layers reads, so many that no cache holds them."""

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
"""Seconds of a product, or of a pass through layers, by kernel and count of rows."""

Agree = Callable[[Costs], Costs]
"""Replaces measured costs by those of one of several ranks, so that all choose the same."""


def quantize(
    linear: Linear,
    quantization: Quantization,
    *,
    beside: bool = False,
    agree: Agree | None = None,
) -> Linear:
    """Return a matrix with quantized weights, in the kernel that is the fastest for it on this machine.

    Args:
        linear: the full weights.
        quantization: their format.
        beside: whether the full weights are kept, and multiply more than `WIDEST` rows; see `limit_rows`.
        agree: makes ranks choose the same kernel.

    Raises:
        UnavailableError: the device has no kernel for the format.
    """
    dense = linear.dense()
    weights, bias = dense.t(), linear.bias
    inputs, outputs = dense.shape
    quantized: QuantizedLinear
    if quantization == "int4":
        codes, scales, zeros = by_chunks(weights, quantize_int4)
        quantized = Int4Linear(codes, scales, zeros, bias, inputs)
    else:
        kernel = _fastest_int8(inputs, outputs, dense.dtype, dense.device, agree)
        codes, scales = by_chunks(weights, quantize_int8)
        if dense.device.type == "cpu":
            quantized = Int8Linear(codes, scales, bias, kernel)
        else:
            quantized = Int8WeightLinear(codes, scales, bias, dense.dtype, kernel)
    if beside:
        quantized.wide, quantized.narrow = linear, WIDEST
    return quantized


def limit_rows(
    layers: Sequence[Sequence[QuantizedLinear]],
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    agree: Agree | None = None,
) -> None:
    """Let the full weights beside quantized ones multiply where there are so many rows that they are faster, in place.

    Passes through the layers themselves are timed, once on this machine, and through so many of them that the processor's
    caches do not hold them: in a cache, full weights look faster than they are.

    Args:
        layers: the matrices of each layer, all of one format.
        shapes: the inputs and outputs of a layer's matrices.
        dtype: the dtype of the full weights.
        device: the device of the matrices.
        agree: see `quantize`.
    """
    sizes = [inputs * outputs for inputs, outputs in shapes]
    if max(sizes) < SMALL_MATRIX:
        return
    timed = layers[: max(1, READ_LAYERS // sum(sizes))]
    kernels = "+".join(sorted({matrix.kernel for layer in timed for matrix in layer}))
    names = f"{len(timed)} layers", " + ".join(f"{inputs} x {outputs}" for inputs, outputs in shapes), kernels

    def measure() -> Costs:
        matrices = [(matrix, inputs) for layer in timed for matrix, (inputs, _) in zip(layer, shapes, strict=True)]
        full = [(matrix.wide, inputs) for matrix, inputs in matrices if matrix.wide is not None]
        return {kernels: _seconds_of(matrices, dtype, device), FULL: _seconds_of(full, dtype, device)}

    costs = _remembered(dtype, device, max(sizes), names, measure)
    if agree is not None:
        costs = agree(costs)
    narrow = _narrow(costs[kernels], costs[FULL])
    for layer in layers:
        for matrix in layer:
            matrix.narrow = narrow


def fastest_copy(config: ModelConfig, device: torch.device, formats: Collection[Quantization]) -> Quantization:
    """Return the format of a model's copy that is expected to give the most tokens per second.

    It has 4 bits, as 8-bit activations cost agreement, but for large matrices on a CPU, where 4 bits are slow to multiply.

    Args:
        config: the model's shape.
        device: the device that it runs on.
        formats: the formats that the copy may have.
    """
    large = LARGE_MATRIX.get(torch.backends.cpu.get_cpu_capability()) if device.type == "cpu" else None
    return "int8" if large is not None and config.largest_matrix >= large and "int8" in formats else "int4"


def _fastest_int8(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device, agree: Agree | None) -> str:
    """Return the kernel for a matrix of 8-bit numbers; for small ones, nothing is measured."""
    names = _int8_kernels(device)
    if inputs * outputs < SMALL_MATRIX:
        return names[0]
    costs = _costs_of(inputs, outputs, dtype, device)
    if agree is not None:
        costs = agree(costs)
    return min(names, key=lambda name: sum(costs[name].values()))


def _costs_of(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Costs:
    """Return the costs of the kernels for 8-bit numbers, measured or remembered."""

    def measure() -> Costs:
        # Of a large matrix a part is timed on a CPU, where laying out all of a head's weights takes seconds.
        part = outputs if device.type == "cuda" else min(outputs, max(1, READ // inputs // PART) * PART)
        return {
            kernel: _seconds(partial(make, inputs, part, dtype, device), inputs, part, dtype, device)
            for kernel, make in _makers(device).items()
        }

    return _remembered(dtype, device, inputs * outputs, (f"{inputs} x {outputs}", "int8"), measure)


def _remembered(
    dtype: torch.dtype, device: torch.device, largest: int, names: Sequence[str], measure: Callable[[], Costs]
) -> Costs:
    """Return costs that were measured on this machine, now or earlier.

    Args:
        dtype: the dtype of the full weights.
        device: the device of the matrices.
        largest: the numbers of the largest matrix, which decide how full weights are packed.
        names: what is measured.
        measure: measures it.
    """
    cuda = device.type == "cuda"
    name = (
        torch.cuda.get_device_name(device) if cuda else f"{processor_name()} {torch.backends.cpu.get_cpu_capability()}"
    )
    packed = packing(dtype, device, largest)
    parts = (
        name,
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"{dtype} {'as it is' if packed is None else packed.__name__}",
        *names,
    )
    key, measured = ", ".join(parts), _measured()
    if key not in measured:
        measured[key] = measure()
        remember(KERNELS, measured)
    return measured[key]


def _int8_kernels(device: torch.device) -> tuple[str, ...]:
    return int8_kernels()[:CANDIDATES] if device.type == "cpu" else CUDA_INT8


Maker = Callable[[int, int, torch.dtype, torch.device], Linear]


def _makers(device: torch.device) -> dict[str, Maker]:
    """Return functions that make a matrix of arbitrary 8-bit weights, by kernel."""
    any_int8 = _any_int8 if device.type == "cpu" else _any_int8_weight
    return {name: partial(any_int8, name) for name in _int8_kernels(device)}


def _any_int8(kernel: str, inputs: int, outputs: int, *_: object) -> Linear:
    return Int8Linear(torch.ones(outputs, inputs, dtype=torch.int8), torch.ones(outputs), None, kernel)


def _any_int8_weight(kernel: str, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Linear:
    codes = torch.ones(outputs, inputs, dtype=torch.int8, device=device)
    return Int8WeightLinear(codes, torch.ones(outputs, device=device), None, dtype, kernel)


def _seconds(
    make: Callable[[], Linear], inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> dict[int, float]:
    """Return the seconds of one product by count of rows; infinite where the kernel cannot do it."""
    try:
        copies = [(make(), inputs) for _ in range(max(1, min(MAX_COPIES, READ // (inputs * outputs))))]
        return {rows: seconds / len(copies) for rows, seconds in _seconds_of(copies, dtype, device).items()}
    except RuntimeError:  # NotImplementedError is one
        return dict.fromkeys(ROWS, float("inf"))


@torch.inference_mode()
def _seconds_of(matrices: Sequence[tuple[Linear, int]], dtype: torch.dtype, device: torch.device) -> dict[int, float]:
    """Return the seconds of a pass through matrices, given with their inputs, by count of rows."""
    found = {}
    for rows in ROWS:
        given = {inputs: torch.ones(rows, inputs, dtype=dtype, device=device) for _, inputs in matrices}
        found[rows] = min(_pass(matrices, given) for _ in range(REPEATS))
    return found


def _pass(matrices: Sequence[tuple[Linear, int]], given: Mapping[int, Tensor]) -> float:
    def multiply() -> None:
        for linear, inputs in matrices:
            linear(given[inputs])

    return _timed(multiply, next(iter(given.values())))


def _timed(work: Callable[[], object], tensor: Tensor) -> float:
    """Return the seconds of some work on a tensor's device."""
    alone = not tensor.is_cuda and torch.get_num_threads() == 1
    clock = thread_time if alone else perf_counter  # the time of other processes must not count
    _wait(tensor)
    begin = clock()
    work()
    _wait(tensor)
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
