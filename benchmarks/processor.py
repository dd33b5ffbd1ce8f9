"""Measures what is fastest on a CPU: bfloat16 or float32, torch's multiplication or oneDNN's, and how many threads.

A layer's four matrices are multiplied by one row and by several, over as many layers as exceed the caches. The median of
interleaved repeats counts. Threads are those of `hispec.threads`, on the shipped model and on a larger one.
"""

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from common import environment, save
from transformers import AutoConfig

from hispec.machine import has_bfloat16
from hispec.models.checkpoint import Checkpoint
from hispec.models.linear import Linear, packing
from hispec.models.loading import draw_stack, load_stack
from hispec.models.placement import Placement
from hispec.models.stack import LayerStack
from hispec.threads import ROWS, _seconds, fastest_threads

HIDDEN = (128, 256, 512, 1024, 2048)
WIDTHS = (1, 2, 3, 8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NUMBERS = 24_000_000
"""The number of weights of the layers that are gone through, 48 MB in bfloat16."""


def layers(hidden: int, dtype: torch.dtype, packed: bool) -> list[list[Linear]]:
    """Return the matrices of some layers, each in the layout that is fastest for it: QKV, output, gate and up, down."""
    shapes = ((hidden, 3 * hidden // 2), (hidden, hidden), (hidden, 6 * hidden), (3 * hidden, hidden))
    count = max(1, min(64, NUMBERS // sum(rows * columns for rows, columns in shapes)))

    def matrix(rows: int, columns: int) -> torch.Tensor:
        plain_float32 = dtype == torch.float32 and not packed
        return torch.randn(rows, columns) if plain_float32 else torch.randn(columns, rows, dtype=dtype).t()

    pack = packing(dtype, torch.device("cpu"), NUMBERS) if packed else None
    plain = [[Linear(matrix(*shape)) for shape in shapes] for _ in range(count)]
    return plain if pack is None else [[pack(linear) for linear in layer] for layer in plain]


def by_hidden_size(repeats: int) -> list[dict[str, float]]:
    """Return the microseconds of a layer by hidden size, rows and dtype."""
    found = []
    for hidden in HIDDEN:
        models = {
            name + shown: layers(hidden, dtype, bool(shown))
            for name, dtype in DTYPES.items()
            for shown in ("", " packed")
            if not shown or packing(dtype, torch.device("cpu"), NUMBERS) is not None
        }
        for width in WIDTHS:
            times = defaultdict(list)
            for _ in range(repeats):
                for name, model in models.items():
                    dtype = DTYPES[name.removesuffix(" packed")]
                    sizes = (hidden, hidden, hidden, 3 * hidden)
                    rows = [torch.randn(width, size).to(dtype) for size in sizes]
                    begin = perf_counter()
                    for matrices in model:
                        for matrix, given in zip(matrices, rows, strict=True):
                            matrix(given)
                    times[name].append((perf_counter() - begin) / len(model))
            us = {name: 1e6 * median(seconds) for name, seconds in times.items()}
            found.append({"hidden": hidden, "rows": width, **{name: round(value, 1) for name, value in us.items()}})
            print(found[-1], flush=True)
    return found


def by_threads(stack: LayerStack, max_threads: int) -> dict[str, object]:
    """Return the microseconds of a layer and the head by number of threads, and the number that is chosen."""
    us = {}
    for threads in range(1, max_threads + 1):
        torch.set_num_threads(threads)
        us[threads] = 1e6 * _seconds(stack)
    return {"microseconds": us, "rows": ROWS, "chosen": [fastest_threads(stack, max_threads) for _ in range(10)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = by_hidden_size(args.repeats)
    large = AutoConfig.for_model(
        "llama",
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=8192,
        max_position_embeddings=2048,
    )
    with tempfile.TemporaryDirectory() as folder:
        large.save_pretrained(Path(folder))
        stacks = {
            "tiny": load_stack(Checkpoint("builtin:tiny"), Placement(dtype="float32")),
            "hidden size 2048": draw_stack(Checkpoint(folder, dummy=True), Placement(dtype="float32"))[0],
        }
        threads = {name: by_threads(stack, args.threads) for name, stack in stacks.items()}
    record = {
        "what": "microseconds of a layer's matrices by dtype and kernel; of a layer and the head by number of threads",
        "bfloat16_instructions": has_bfloat16(),
        "layers": sizes,
        "threads": threads,
        "environment": environment(1),
    }
    save("processor-cpu", record)


if __name__ == "__main__":
    main()
