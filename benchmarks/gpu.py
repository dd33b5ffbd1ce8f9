r"""Measures a GPU beside the predictions of `predict.py`, in three calls of under ten minutes: `python benchmarks/gpu.py 1`.

    1  capture of graphs, correctness of kernels, costs of matrices, attention and small kernels, equal bits at one width
    2  an 8B plain and with full, reduced and quantized levels, on random weights with the agreements of lab-ee
    3  the shape of a 70B with its weights in 4 bits, and a 1B as 2

Each part is a process of its own with its own time limit, since a failure on a device may affect everything after it. It
writes its results as it goes. After every part, `gpu.json` in $OUT (benchmarks/results/gpu by default) has all results, and
the table of expected and measured figures is shown. For rows that differ by more than 15 %, it names the first thing to
change.

    python benchmarks/gpu.py all --smoke    # the same parts on a CPU with small shapes, in a minute

The package need not be installed. Of pydantic and platformdirs, wheels in .whl/ are used where this Python lacks them:
    pip download -d .whl --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 \
      $(grep -E '^(pydantic|pydantic_core|annotated-types|typing-inspection|platformdirs)==' constraints.txt)
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from math import log
from pathlib import Path
from time import perf_counter
from typing import Any

CALLS = {
    "1": (("machine", 60), ("matrices", 130), ("attention", 60), ("capture", 110), ("cuda-check", 150)),
    "2": (("8B", 550),),
    "3": (("70B", 300), ("1B", 240)),
}
"""Parts and their seconds."""
TOTAL = 575
APART = 0.15
RESULTS = Path(__file__).parent / "results" / "gpu"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of expected and measured figures, the largest differences last."""
    text = ["| what | expected | measured | | |", "|---|---:|---:|---:|---|"]
    for row in sorted(rows, key=lambda row: abs(log(max(row["measured"], 1e-9) / row["expected"]))):
        ratio = row["measured"] / row["expected"]
        first = row["first"] if abs(ratio - 1) > APART else ""
        text.append(
            f"| {row['what']} | {row['expected']:.4g} | {row['measured']:.4g} {row['unit']} | {ratio:.2f} | {first} |"
        )
    return "\n".join(text)


def gather(out: Path, status: dict[str, str]) -> None:
    """Write one file of all parts so far, of earlier calls too, and show the table."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))}
    rows = [row for part in parts.values() for row in part.get("compare", [])]
    known = json.loads((out / "gpu.json").read_text())["status"] if (out / "gpu.json").exists() else {}
    record = {"status": known | status, "parts": parts, "compare": rows}
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows), flush=True)


def jobs(call: str, smoke: bool) -> Iterator[tuple[list[str], int]]:
    """Yield the parts of each process, and its seconds: one part, or all parts of a call without a device."""
    for parts in [CALLS[call]] if call in CALLS else CALLS.values():
        if smoke:
            yield [name for name, _ in parts if name != "1B"], TOTAL  # the same as the 8B there
        else:
            yield from (([name], seconds) for name, seconds in parts)


def source_paths(out: Path) -> list[str]:
    """Return where Python finds the package, and what it needs beside torch and transformers."""
    root = Path(__file__).parents[1]
    paths = [str(root / "core"), str(root)]
    if any(importlib.util.find_spec(name) is None for name in ("pydantic", "platformdirs")):
        paths.append(str(out.absolute().with_name("site")))
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", paths[-1]]
        subprocess.run([*install, *map(str, (root / ".whl").glob("*.whl"))], check=True)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=[*CALLS, "all"])
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    out = Path(os.environ.get("OUT", RESULTS))
    (out / "parts").mkdir(parents=True, exist_ok=True)
    began, status = perf_counter(), {}
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([*source_paths(out), *sys.path])}
    for names, seconds in jobs(args.call, args.smoke):
        label, left = ", ".join(names), TOTAL - (perf_counter() - began)
        given = min(seconds, int(left)) if args.call != "all" else seconds
        if given < 20:
            status[label] = "left out: no time"
            continue
        print(f"== {label}: up to {given} s, at {perf_counter() - began:.0f} s", flush=True)
        begin = perf_counter()
        command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), *names, "--seconds", str(given)]
        command += ["--output", str(out / "parts"), *["--smoke"] * args.smoke]
        try:
            done = subprocess.run(command, timeout=given + 10, env=environ, check=False)
            status[label] = "done" if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            status[label] = "out of time"
        print(f"-- {label}: {status[label]}, {perf_counter() - begin:.0f} s", flush=True)
        gather(out, status)
    sys.exit(0 if all(one == "done" for one in status.values()) else 1)


if __name__ == "__main__":
    main()
