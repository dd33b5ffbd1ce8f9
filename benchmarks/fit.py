"""Compares the estimate of memory with what decoding uses: resident memory as the kernel counts it (VmHWM).

Each case is a process of its own, with random weights (nothing is downloaded); what Python, torch and the tokenizer take
is there before, and not counted.

    python benchmarks/fit.py
    python benchmarks/fit.py --copies DIR --name fit-copies-NAME
    python benchmarks/fit.py --copies facebook/layerskip-llama3.2-1B --dummy --name fit-copies-1b

With `--copies` a model's plain decoding is compared with a hierarchy of quantized levels: an exit of a copy, and the whole
copy, of 4-bit and of 8-bit weights.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import environment, kilobytes, save

from hispec import Engine
from hispec.memory import estimate
from hispec.profile import DraftSection, IntermediateSection, Profile, TargetSection
from hispec.settings import Quantization

CASES = [
    ("layerskip-llama3.2-1b", "fused", 128, 32),
    ("layerskip-llama3.2-1b", "fused", 1024, 32),
    ("layerskip-llama3.2-1b", "transformers", 1024, 32),
]


WEIGHTS: tuple[Quantization | None, ...] = (None, "int4", "int8")
"""The format of the copy that is compared; None for plain decoding."""


def with_copy(model: str, weights: Quantization | None) -> tuple[Profile, str]:
    """Return a profile whose levels read a quantized copy, and its mode."""
    profile = Profile(name=Path(model).name, target=TargetSection(model=model))
    if weights is None:
        return profile, "autoregressive"
    levels = {
        "draft": DraftSection(exit_layer=1, weights=weights),
        "intermediate": IntermediateSection(weights=weights),
    }
    return profile.model_copy(update=levels), "hispec"


def measure(profile: str | Profile, prompt_tokens: int, new_tokens: int, threads: int, **options: Any) -> None:
    """Run the child: load, read a prompt, answer, and report the memory with the estimate."""
    torch.set_num_threads(threads)
    options |= {"max_new_tokens": new_tokens}
    Engine.from_profile("tiny", load_format="dummy", stack=options.get("stack", "fused"), max_new_tokens=8).generate(
        "Everything that is imported once is here now."
    )
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    engine = Engine.from_profile(profile, **options)
    loaded = kilobytes("VmHWM")
    engine.generate("a" * prompt_tokens, raw=True)
    need = estimate(engine.profile, engine.settings, prompt_tokens=prompt_tokens)
    assert need is not None
    taken = 1024 * (kilobytes("VmHWM") - before)
    record = {
        "profile": engine.profile.name,
        "stack": engine.settings.stack,
        "dtype": need.models[0].dtype,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "estimate_bytes": need.total,
        "weights_bytes": sum(model.weights for model in need.models),
        "kv_cache_bytes": sum(model.kv_cache for model in need.models),
        "copies_bytes": sum(model.copies for model in need.models),
        "workspace_bytes": need.workspace,
        "loaded_bytes": 1024 * (loaded - before),
        "peak_bytes": taken,
        "peak_over_estimate": taken / need.total,
    }
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", metavar="MODEL", help="compare plain decoding of a model with quantized levels")
    parser.add_argument("--dummy", action="store_true", help="random weights of its shape")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--case", type=int, help="measure one case in this process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="fit-cpu")
    args = parser.parse_args()
    if args.case is not None and args.copies:
        profile, mode = with_copy(args.copies, WEIGHTS[args.case])
        options = {"load_format": "dummy"} if args.dummy else {}
        return measure(profile, args.prompt_tokens, 32, args.threads, mode=mode, dtype=args.dtype, **options)
    if args.case is not None:
        name, stack, prompt_tokens, new_tokens = CASES[args.case]
        return measure(name, prompt_tokens, new_tokens, args.threads, stack=stack, load_format="dummy")
    rows = []
    for case in range(len(WEIGHTS if args.copies else CASES)):
        command = [sys.executable, __file__, *sys.argv[1:], "--case", str(case)]
        for _ in range(2 if args.copies else 1):  # at first kernels may be compared, once on a machine
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if args.copies:
            rows[-1] |= {
                "copy": WEIGHTS[case],
                "over_plain": rows[-1]["peak_bytes"] / rows[0]["peak_bytes"] - 1,
                "estimated_over_plain": rows[-1]["estimate_bytes"] / rows[0]["estimate_bytes"] - 1,
            }
    return save(args.name, {"cases": rows, "environment": environment(args.threads)})


if __name__ == "__main__":
    main()
