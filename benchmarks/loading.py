"""Measures the peak host memory and seconds of loading, by stack, each in a process of its own, on a made-up checkpoint.

A token is decoded too, as weights may stay in a mapped file until they are used. Memory is the process's peak resident size less what it was before loading; mapped pages of the checkpoint count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, kilobytes, save

from hispec.models.checkpoint import Checkpoint
from hispec.models.placement import Placement

STACKS = ("fused", "transformers")


def make_checkpoint(folder: Path, dtype: str) -> int:
    """Write about 200 MB of random float32 weights in a Llama's shape, and return the size of the file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def load(folder: str, stack: str) -> dict[str, Any]:
    """Load and use the model in this process, and return the rise of the peak in bytes, and the seconds."""
    from hispec.models.loading import load_stack

    if stack == "transformers":  # what is imported is no part of the weights
        import transformers.models.llama.modeling_llama  # noqa: F401
    before, began = kilobytes("VmHWM"), time.perf_counter()
    loaded = load_stack(Checkpoint(folder), Placement(stack=stack))
    loaded.reserve(1)
    loaded.head(loaded.run(loaded.embed([0]), 0, loaded.num_layers, 0))
    return {"peak_bytes": 1024 * (kilobytes("VmHWM") - before), "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "STACK"), help="internal: load and print")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.load:
        print(json.dumps(load(*args.load)))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = make_checkpoint(Path(folder), args.dtype)
        found = {}
        for stack in STACKS:
            command = [sys.executable, __file__, "--load", folder, stack]
            found[stack] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[stack]["peak_over_checkpoint"] = found[stack]["peak_bytes"] / size
    record = {
        "what": "peak host memory of loading and decoding one token",
        "checkpoint_bytes": size,
        "dtype": args.dtype,
        "stacks": found,
    }
    save("loading-cpu", record | {"environment": environment(1)})


if __name__ == "__main__":
    main()
