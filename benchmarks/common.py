"""The benchmarks share this: prompts, the environment of a figure, intervals, the result file."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from hispec import Engine
from hispec.machine import processor_name
from hispec.models.checkpoint import Checkpoint
from hispec.profile import profile_for_model, resolve_model
from training.evaluate import held_out_problems

RESULTS = Path(__file__).parent / "results"


def held_out_questions(count: int) -> list[str]:
    """Return questions that the shipped model was not trained on, half of them in wordings it has never seen."""
    problems = held_out_problems(count - count // 2, "trained") + held_out_problems(count // 2, "held_out")
    return [problem.question for problem in problems]


def gsm8k_questions(path: Path, count: int) -> list[str]:
    """Return the first questions of a GSM8K file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["question"] for _, line in zip(range(count), lines, strict=False)]


def engine_without_profile(model: str, **options: Any) -> Engine:
    """Return an engine as somebody gets it who names a model and nothing else.

    Args:
        model: a folder, `tiny` for the shipped model, or a model whose shape is known.
        options: the arguments of `Engine.from_profile`.
    """
    folder = resolve_model("builtin:tiny") if model == "tiny" else model
    layers = Checkpoint(folder, dummy=options.get("load_format") == "dummy").config.num_layers
    return Engine.from_profile(profile_for_model(folder, layers, None, None), **options)


def questions_for(model: str, gsm8k: Path, count: int, *, raw: bool) -> list[str]:
    """Return questions that a model can read: held-out ones for `tiny`, else those of a GSM8K file."""
    asked = held_out_questions(count) if model == "tiny" else gsm8k_questions(gsm8k, count)
    return [f"Question: {text}\nAnswer:" if raw else text for text in asked]


def environment(threads: int) -> dict[str, Any]:
    """Return the conditions that a figure depends on besides the code."""
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def kilobytes(key: str) -> int:
    """Return memory of this process as the kernel counts it.

    Args:
        key: `VmRSS` for what is resident now, `RssAnon` for the part of it that no file backs, `VmHWM` for the most so far.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def interval95(rows: Sequence[Any], statistic: Callable[[Sequence[Any]], float], resamples: int = 2000) -> list[float]:
    """Return the 95 % interval of a statistic: a percentile bootstrap over rows, seeded.

    Args:
        rows: one a prompt.
        statistic: a figure of some rows.
        resamples: the number of bootstrap resamples.
    """
    rng = Random(0)
    values = sorted(statistic(rng.choices(rows, k=len(rows))) for _ in range(resamples))
    return [values[round(0.025 * (resamples - 1))], values[round(0.975 * (resamples - 1))]]


def save(name: str, record: dict[str, Any], folder: Path = RESULTS, *, show: bool = True) -> None:
    """Write a result to `NAME.json` in a folder, and show it."""
    text = json.dumps(record, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if show:
        print(text)
