"""Measures products with full and quantized weights on this machine: a layer's matrices and the head, by format, kernel and
row count.

Shapes are those of lab-ee (hidden size 256), the same twice as wide (512), SmolLM2 135M (576, with its head) and Llama 3.2
1B (2,048). Each product goes through more copies of a matrix than the nearer caches hold, and the fastest pass counts
(hispec.models.kernels).
With one thread its processor time is taken, which other processes do not lengthen, though they fill caches and use the
memory's bandwidth: run it where nothing else runs.

    OMP_NUM_THREADS=1 python benchmarks/row_costs.py
"""

import argparse
import os
from functools import partial

import torch
from common import environment, save

from hispec.models import kernels
from hispec.models.dtypes import GROUP, bits_per_weight
from hispec.models.linear import Linear, packing, right_factor
from hispec.models.quantized import Int4Linear

LAYERS = {
    "hidden 256": ((256, 384), (256, 256), (256, 1408), (704, 256)),
    "hidden 512": ((512, 1024), (512, 512), (512, 2816), (1408, 512)),
    "hidden 576": ((576, 960), (576, 576), (576, 3072), (1536, 576)),
    "hidden 2048": ((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048)),
    "head 576 x 49152": ((576, 49152),),
}
"""Inputs and outputs of the matrices: QKV, output, gate and up, down; or the head."""

WEIGHTS = 64_000_000
"""Weights that a pass goes through where copies of the matrix are at most `kernels.MAX_COPIES`."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def measured(shapes: tuple[tuple[int, int], ...], device: torch.device) -> dict[str, dict[int, float]]:
    """Return the microseconds of all the matrices by format and kernel, and by number of rows."""
    found: dict[str, dict[int, float]] = {}
    for dtype_name, dtype in DTYPES.items():
        makers: dict[str, kernels.Maker] = {dtype_name: as_loaded, f"{dtype_name}, not packed": as_it_is}
        if dtype_name == "bfloat16":
            makers |= {f"int8 {kernel}": make for kernel, make in kernels._makers(device).items()}
            makers["int4"] = in_4_bits
        for name, make in makers.items():
            each = [kernels._seconds(partial(make, a, b, dtype, device), a, b, dtype, device) for a, b in shapes]
            found[name] = microseconds(each)
    for name, times in found.items():
        print(name, times, flush=True)
    return found


def microseconds(each: list[dict[int, float]]) -> dict[int, float]:
    """Return the sum of the costs of matrices in microseconds."""
    return {rows: round(1e6 * sum(costs[rows] for costs in each), 1) for rows in kernels.ROWS}


def in_4_bits(inputs: int, outputs: int, _: torch.dtype, device: torch.device) -> Linear:
    """Return a matrix of arbitrary 4-bit weights."""
    groups = -(-inputs // GROUP)
    grid = torch.ones(outputs, groups, device=device)
    return Int4Linear(torch.ones(outputs, groups * GROUP, dtype=torch.uint8, device=device), grid, grid, None, inputs)


def as_loaded(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Linear:
    """Return a matrix of full weights, packed where loading packs it."""
    pack = packing(dtype, device, inputs * outputs)
    linear = Linear(right_factor(inputs, outputs, dtype, device, packed=pack is not None).fill_(1.0))
    return linear if pack is None else pack(linear)


def as_it_is(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Linear:
    """Return a matrix of full weights that no library has packed."""
    return Linear(right_factor(inputs, outputs, dtype, device).fill_(1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", help="of the result")
    args = parser.parse_args()
    device = torch.device(args.device)
    load = os.getloadavg()
    kernels.READ = WEIGHTS
    rows = {}
    for name, shapes in LAYERS.items():
        print(name, flush=True)
        rows[name] = measured(shapes, device)
    record = {
        "what": "microseconds of a layer's four matrices, or of a head, by format and kernel and by count of rows",
        "bits_per_weight": {"int8": bits_per_weight("int8", 2048), "int4": bits_per_weight("int4", 2048)},
        "microseconds": rows,
        "load_average": [load, os.getloadavg()],
        "environment": environment(torch.get_num_threads()),
    }
    save(args.name or f"row-costs-{device.type}", record)


if __name__ == "__main__":
    main()
