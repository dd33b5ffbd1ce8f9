"""Explains why runs of a benchmark on a shared machine differ: it compares the speed of decoding with that of reading
memory.

Each round answers one question with the target alone and with the hierarchy, and reads one buffer as large as the
weights, which lies in the cache that the machine's tenants share, and one that fits the core's own.
"""

import argparse
from pathlib import Path
from statistics import correlation, mean, stdev
from time import perf_counter

import torch
from common import environment, held_out_questions, save
from safetensors.torch import load_file

from hispec import Engine
from hispec.profile import resolve_model

OWN_CACHE_BYTES = 256 * 1024


def seconds_to_read(buffer: torch.Tensor, nbytes: int) -> float:
    """Return the seconds of reading `nbytes` from a buffer, over and over."""
    began = perf_counter()
    for _ in range(max(1, nbytes // buffer.nbytes)):
        buffer.sum()
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engines = {mode: Engine.from_profile("tiny", mode=mode, max_new_tokens=96) for mode in ("autoregressive", "hispec")}
    weights = 4 * sum(
        tensor.numel() for tensor in load_file(Path(resolve_model("builtin:tiny")) / "model.safetensors").values()
    )
    buffers = {"shared_cache": torch.ones(weights // 4), "own_cache": torch.ones(OWN_CACHE_BYTES // 4)}
    question = held_out_questions(2)[0]
    for engine in engines.values():
        engine.generate(question)
    seconds: dict[str, list[float]] = {name: [] for name in (*engines, *buffers)}
    for _ in range(args.rounds):
        for mode, engine in engines.items():
            began = perf_counter()
            engine.generate(question)
            seconds[mode].append(perf_counter() - began)
        for name, buffer in buffers.items():
            seconds[name].append(seconds_to_read(buffer, 8 * weights))
    smooth = {  # over about a second: what the scheduler does to one round is not the question
        name: [mean(values[at : at + 8]) for at in range(0, len(values) - 7, 8)] for name, values in seconds.items()
    }
    save(
        "drift-cpu",
        {
            "weights_bytes": weights,
            "own_cache_buffer_bytes": OWN_CACHE_BYTES,
            "variation": {name: stdev(values) / mean(values) for name, values in smooth.items()},
            "correlation": {
                f"{mode} with reading {name}": correlation(smooth[mode], smooth[name])
                for mode in engines
                for name in buffers
            },
            "seconds": {name: [round(value, 6) for value in values] for name, values in smooth.items()},
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
