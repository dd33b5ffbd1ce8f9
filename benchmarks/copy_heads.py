r"""Compares heads of quantized copies: how often each names the target's token, and what it costs.

The target answers chat and GSM8K prompts. Then copies of its layers read the answers, eight tokens at a time and one by
one, from the target's KV cache, as they do when they draft, and every head is given the same hidden states. The result is
the share of tokens that are the target's. With `--costs`, the milliseconds of a head's product by kernel and number of
rows.

    OMP_NUM_THREADS=1 python benchmarks/copy_heads.py --model DIR --gsm8k test.jsonl --name copy-heads-MODEL
    OMP_NUM_THREADS=1 python benchmarks/copy_heads.py --costs 576x49152,2048x128256 --name head-costs-avx2
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, get_args

import torch
from common import environment, gsm8k_questions, interval95, save
from defaults import CHAT
from row_costs import as_loaded
from torch import Tensor

from hispec import Engine
from hispec.models.quantized import TINY, Int4Linear, Int8Linear, by_chunks, quantize_int4, quantize_int8
from hispec.profile import Profile, TargetSection
from hispec.settings import Quantization
from hispec.text import encode_prompt

WINDOW = 8
"""Tokens that a copy reads between two passes of the target."""
ROWS = (1, 2, 4, 8)
PASSES = 10
"""Products of which the fastest counts."""

Head = Callable[[Tensor], Tensor]


def linear_of_4_bits(weights: Tensor) -> Int4Linear:
    """Return a matrix [out, in] in 4 bits."""
    codes, scales, zeros = by_chunks(weights, quantize_int4)
    return Int4Linear(codes, scales, zeros, None, weights.shape[1])


def heads_of(weights: Tensor, full: Head) -> dict[str, Head]:
    """Return the heads that are compared, by name.

    Args:
        weights: the full head's, [vocab, hidden].
        full: the target's own head.
    """
    in_4_bits = linear_of_4_bits(weights)
    codes, scales = by_chunks(weights, quantize_int8)
    matrix = codes.t().float() * scales

    def rounded(bits: int, rows: Tensor) -> Tensor:
        """Multiply 8-bit weights by activations of some bits with one scale for each row, as `Int8Linear` does."""
        largest = (1 << bits - 1) - 1
        steps = rows.float().abs().amax(-1, keepdim=True).clamp_(min=TINY) / largest
        return torch.mm((rows.float() / steps).round_(), matrix) * steps

    return {
        "4 bits": in_4_bits,
        "8 bits, activations of 7 bits": partial(rounded, 7),
        "8 bits, activations of 8 bits": partial(rounded, 8),
        "8 bits, activations in bfloat16": partial(torch._weight_int8pack_mm, mat2=codes, scales=scales.bfloat16()),
        "8 bits, activations in full": lambda rows: torch.mm(rows.float(), matrix),
        "the target's": full,
    }


@torch.inference_mode()
def agreements(engine: Engine, prompts: dict[str, list[list[int]]], max_new_tokens: int) -> dict[str, Any]:
    """Return for every text, format of the layers and head the share of the answers' tokens that are the target's."""
    target, decoder = engine.hierarchy.stack_of(-1), engine.decoder()
    stacks = {form: target.quantized(form) for form in get_args(Quantization)}
    heads = heads_of(target._weights.head.dense().t(), target._weights.head)  # type: ignore[attr-defined]
    found: dict[str, Any] = {}
    for text, asked in prompts.items():
        same: dict[tuple[str, str], list[tuple[int, int]]] = {(form, head): [] for form in stacks for head in heads}
        for prompt in asked:
            written = decoder.token_ids(prompt, max_new_tokens)
            states = {form: states_of(target, stack, prompt, written) for form, stack in stacks.items()}
            for (form, name), counts in same.items():
                rows = states[form].bfloat16() if "bfloat16" in name else states[form]
                best = torch.cat([heads[name](one[None]) for one in rows]).argmax(-1)
                counts.append((int((best == torch.tensor(written)).sum()), len(written)))
        found[text] = {
            "prompts": len(asked),
            "tokens": sum(count for _, count in next(iter(same.values()))),
            "agreement": {
                form: {name: {"value": share(same[form, name]), "ci95": interval95(same[form, name], share)} for name in heads}
                for form in stacks
            },
        }  # fmt: skip
    return found


def share(counts: Any) -> float:
    """Return the share of tokens that are the same, of counts of such and of all by prompt."""
    same, tokens = map(sum, zip(*counts, strict=True))
    return round(same / tokens, 4)


def states_of(target: Any, stack: Any, prompt: list[int], written: list[int]) -> Tensor:
    """Return what the head of a copy is given for each token of an answer, [n, hidden], behind the last norm."""
    ids, start = [*prompt, *written[:-1]], len(prompt) - 1
    target.reserve(len(ids))
    target.run(target.embed(ids[:start]), 0, target.num_layers, 0)
    states = []
    for begin, end in pairwise([*range(start, len(ids), WINDOW), len(ids)]):
        states += [stack.run(stack.embed([ids[at]]), 0, stack.num_layers, at) for at in range(begin, end)]
        target.run(target.embed(ids[begin:end]), 0, target.num_layers, begin)  # in place of the copy's rows
    norm = stack._buffers_for(1).norm
    return torch.cat([norm(row, stack._weights.norm).clone() for row in states])


@torch.inference_mode()
def milliseconds(inputs: int, outputs: int) -> dict[str, list[float]]:
    """Return the milliseconds of a product by kernel, for each number of rows."""
    weights = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.05
    codes, scales = by_chunks(weights, quantize_int8)
    place = torch.device("cpu")

    def packed(dtype: torch.dtype) -> Head:
        return partial(torch._weight_int8pack_mm, mat2=codes, scales=scales.to(dtype))

    kernels: dict[str, tuple[Callable[[], Head], torch.dtype]] = {
        "4 bits": (lambda: linear_of_4_bits(weights), torch.bfloat16),
        "8 bits, integer activations": (lambda: Int8Linear(codes, scales), torch.float32),
        "8 bits, activations in bfloat16": (partial(packed, torch.bfloat16), torch.bfloat16),
        "8 bits, activations in float32": (partial(packed, torch.float32), torch.float32),
    }
    for dtype in (torch.bfloat16, torch.float32):
        kernels[f"full, {dtype}".replace("torch.", "")] = (partial(as_loaded, inputs, outputs, dtype, place), dtype)
    found = {}
    for name, (make, dtype) in kernels.items():
        kernel = make()
        rows = [torch.randn(count, inputs).to(dtype) for count in ROWS]
        found[name] = [round(1e3 * min(_seconds(kernel, given) for _ in range(PASSES)), 3) for given in rows]
    return found


def _seconds(kernel: Head, rows: Tensor) -> float:
    clock = thread_time if torch.get_num_threads() == 1 else perf_counter
    begin = clock()
    kernel(rows)
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=12, help="of each kind; there are 12 for chats")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--costs", help="instead, the costs of heads of these shapes, such as 576x49152,256x4096")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()
    record: dict[str, Any]
    if args.costs:
        shapes = {shape: [int(size) for size in shape.split("x")] for shape in args.costs.split(",")}
        record = {"rows": ROWS, "milliseconds": {shape: milliseconds(*sizes) for shape, sizes in shapes.items()}}
    else:
        engine = Engine.from_profile(
            Profile(name="model", target=TargetSection(model=args.model)), mode="autoregressive", dtype=args.dtype
        )
        asked = {"chat": CHAT[: args.prompts], "GSM8K": gsm8k_questions(args.gsm8k, args.prompts)}
        form = "Question: {}\nAnswer:" if args.raw else "{}"
        prompts = {
            text: [encode_prompt(engine.tokenizer, form.format(one), raw=args.raw) for one in own]
            for text, own in asked.items()
        }
        record = {"model": Path(args.model).name, "dtype": args.dtype, "max_new_tokens": args.max_new_tokens}
        record["texts"] = agreements(engine, prompts, args.max_new_tokens)
    conditions = {"load_average": [load, os.getloadavg()], "environment": environment(args.threads)}
    save(args.name, record | conditions, show=False)


if __name__ == "__main__":
    main()
