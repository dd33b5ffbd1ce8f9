"""Checks that the CUDA path gives the token ids of the CPU: the same weights in float32, every family, mode and prompt.

Then half precision on the device against the target alone on the same device. Exits with 1 where float32 ids differ by
more than a tie of the two best logits.
"""

import argparse
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import RESULTS, environment, held_out_questions, save
from small_model import FAMILIES, write_config

from hispec import Engine
from hispec.api import unprofiled
from hispec.events import Committed
from hispec.models.fused_stack import FusedStack
from hispec.text import encode_prompt

MODES = ("autoregressive", "single-layer", "hispec")
LENGTHS = ((2, 4), (3, 7), (1, 12))
LAYERS, EXITS, AGREEMENT = 8, (1, 3), (0.55, 0.75)


def decode(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """Return the ids of an answer."""
    events = engine.decoder().decode(prompt, count)
    return [token for event in events if isinstance(event, Committed) for token in event.token_ids]


def compare(reference: Engine, others: dict[str, Engine], prompts: list[list[int]], count: int) -> dict[str, Any]:
    """Return, for each engine, the number of answers that equal the reference's, and the differences of the others."""
    found = {name: {"identical": 0, "of": len(prompts), "ties": 0, "errors": 0} for name in others}
    for prompt in prompts:
        expected = decode(reference, prompt, count)
        for name, engine in others.items():
            difference = reference.examine(prompt, decode(engine, prompt, count), expected)
            key = "identical" if difference is None else "ties" if difference.kind == "tie" else "errors"
            found[name][key] += 1
    return found


def variants(engine: Engine, lengths: tuple[tuple[int, int], ...] = LENGTHS) -> dict[str, Engine]:
    """Return engines of every mode, at several lengths."""
    found = {}
    for mode in MODES:
        for draft, every in lengths if mode != "autoregressive" else lengths[:1]:
            name = f"{mode} {draft}-{every}" if mode != "autoregressive" else mode
            found[name] = engine.with_settings(mode=mode, draft_tokens=draft, validate_every=every)
    return found


def dummies(folder: Path, family: str, device: str, prompts: int, count: int) -> dict[str, Any]:
    """Return a model of a family with random weights, made on the CPU and copied."""
    profile = unprofiled(str(write_config(folder / family, family, LAYERS)), *EXITS, dummy=True)
    found = {}
    ids = range(2000)
    texts = [Random(number).choices(ids, k=17 + 40 * number) for number in range(prompts)]
    options: dict[str, Any] = {"load_format": "dummy", "dtype": "float32"}
    cpu = Engine.from_profile(profile, device="cpu", dummy_agreement=AGREEMENT, **options)
    for stack in ("fused", "transformers"):
        there = Engine.from_profile(profile, device=device, stack=stack, **options)
        for name, part in parts(there).items():
            part.copy_(parts(cpu)[name])
        found[stack] = compare(cpu.with_settings(mode="autoregressive"), variants(there), texts, count)
    return found


def parts(engine: Engine) -> dict[str, torch.Tensor]:
    """Return weights by name."""
    stack: Any = engine.hierarchy.stack_of(-1)
    return stack.parts if isinstance(stack, FusedStack) else dict(stack.model.named_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--questions", type=int, default=16, help="of the shipped model")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--name", default="cuda-check")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    record: dict[str, Any] = {
        "what": "token ids on a device against the target alone on the CPU, float32; bfloat16 against the target alone there",
        "device": args.device,
        "environment": environment(torch.get_num_threads()),
        "float32": {},
        "bfloat16": {},
    }
    tiny = {dtype: Engine.from_profile("tiny", device=args.device, dtype=dtype) for dtype in ("float32", "bfloat16")}
    cpu = Engine.from_profile("tiny", device="cpu", dtype="float32", mode="autoregressive")
    prompts = [encode_prompt(cpu.tokenizer, question) for question in held_out_questions(args.questions)]
    record["float32"]["shipped model"] = compare(cpu, variants(tiny["float32"]), prompts, args.max_new_tokens)
    save(args.name, record, args.output, show=False)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for family in FAMILIES:
            found = dummies(Path(folder), family, args.device, args.prompts, args.max_new_tokens)
            record["float32"] |= {f"{family}, {stack} stack": own for stack, own in found.items()}
            save(args.name, record, args.output, show=False)
    alone = tiny["bfloat16"].with_settings(mode="autoregressive")
    record["bfloat16"]["shipped model"] = compare(alone, variants(tiny["bfloat16"]), prompts, args.max_new_tokens)
    errors = sum(own["errors"] for found in record["float32"].values() for own in found.values())
    record["float32_errors"] = errors
    save(args.name, record, args.output)
    raise SystemExit(1 if errors else 0)


if __name__ == "__main__":
    main()
