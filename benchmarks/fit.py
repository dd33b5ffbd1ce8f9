"""How far the estimate of memory is from what decoding takes: resident memory as the kernel counts it (VmHWM).

Each case is a process of its own, with random weights (nothing is downloaded); what Python, torch and the tokenizer take
is there before, and not counted.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import environment, kilobytes, save

from hispec import Engine
from hispec.memory import estimate

CASES = [
    ("layerskip-llama3.2-1b", "fused", 128, 32),
    ("layerskip-llama3.2-1b", "fused", 1024, 32),
    ("layerskip-llama3.2-1b", "transformers", 1024, 32),
]


def measure(profile: str, stack: str, prompt_tokens: int, new_tokens: int, threads: int) -> None:
    """The child: load, read a prompt, answer, and tell what that took beside the estimate."""
    torch.set_num_threads(threads)
    options = {"load_format": "dummy", "stack": stack, "max_new_tokens": new_tokens}
    Engine.from_profile("tiny", **options).generate("Everything that is imported once is here now.")
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    engine = Engine.from_profile(profile, **options)
    loaded = kilobytes("VmHWM")
    engine.generate("a" * prompt_tokens, raw=True)
    need = estimate(engine.profile, engine.settings, prompt_tokens=prompt_tokens)
    assert need is not None
    taken = 1024 * (kilobytes("VmHWM") - before)
    record = {
        "profile": profile,
        "stack": stack,
        "dtype": need.models[0].dtype,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "estimate_bytes": need.total,
        "weights_bytes": sum(model.weights for model in need.models),
        "kv_cache_bytes": sum(model.kv_cache for model in need.models),
        "workspace_bytes": need.workspace,
        "loaded_bytes": 1024 * (loaded - before),
        "peak_bytes": taken,
        "peak_over_estimate": taken / need.total,
    }
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, help="measure one case in this process")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.case is not None:
        return measure(*CASES[args.case], args.threads)
    rows = []
    for case in range(len(CASES)):
        command = [sys.executable, __file__, "--case", str(case), "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return save("fit-cpu", {"cases": rows, "environment": environment(args.threads)})


if __name__ == "__main__":
    main()
