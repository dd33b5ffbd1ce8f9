"""Measure a model on GSM8K's text: `python -m training.evaluate_gsm8k MODEL --gsm8k test.jsonl --out FILE`.

Cross entropy on questions with their answers; and, on the model's own greedy answers to the questions alone, how often
each exit, and a copy of quantized weights, names the token that the whole model wrote. Copies read the model's own KV
cache, some rows at a time, as levels of a hierarchy do.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from hispec import Engine
from hispec.models.stack import LayerStack
from hispec.profile import profile_for_model
from hispec.settings import Quantization
from training.evaluate import show
from training.larger import read_texts

ROWS = 4
"""Rows that a copy reads at a time before the model itself writes over them."""

COPIES: tuple[Quantization, ...] = ("int8", "int4")


@torch.inference_mode()
def held_out_loss(stack: LayerStack, texts: list[list[int]]) -> float:
    """Return the cross entropy of the whole model, nats per token."""
    nats, count = 0.0, 0
    for ids in texts:
        stack.reserve(len(ids))
        hidden = stack.run(stack.embed(ids[:-1]), 0, stack.num_layers, 0)
        nats += cross_entropy(stack.head(hidden).float(), torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    return nats / count


@torch.inference_mode()
def exits_agreed(stack: LayerStack, prompt: list[int], written: list[int]) -> torch.Tensor:
    """Return for exits 1..L on how many of the written tokens each agrees, [L]."""
    ids = [*prompt, *written]
    stack.reserve(len(ids))
    hidden, wanted = stack.embed(ids[:-1]), torch.tensor(written)
    agreed = []
    for layer in range(stack.num_layers):
        hidden = stack.run(hidden, layer, layer + 1, 0)
        agreed.append((stack.head(hidden[-len(written) :]).argmax(-1) == wanted).sum())
    return torch.stack(agreed)


@torch.inference_mode()
def copy_agreed(stack: LayerStack, copy: LayerStack, prompt: list[int], written: list[int]) -> int:
    """Return on how many of the written tokens a copy agrees."""
    ids, depth, agreed = [*prompt, *written], stack.num_layers, 0
    stack.reserve(len(ids))
    first = len(prompt) - 1
    stack.run(stack.embed(ids[:first]), 0, depth, 0)
    for at in range(first, len(ids) - 1, ROWS):
        rows = ids[at : min(at + ROWS, len(ids) - 1)]
        best = copy.head(copy.run(copy.embed(rows), 0, depth, at)).argmax(-1)
        agreed += int((best == torch.tensor(ids[at + 1 : at + 1 + len(rows)])).sum())
        stack.run(stack.embed(rows), 0, depth, at)
    return agreed


def measure(engine: Engine, gsm8k: Path, count: int, max_tokens: int, texts: list[list[int]]) -> dict[str, Any]:
    """Return the figures on the first `count` questions, answers of at most so many tokens, and the loss on texts."""
    stack = engine.hierarchy.stack_of(-1)
    decoder = engine.with_settings(temperature=0.0).decoder()
    copies = {name: stack.quantized(name) for name in COPIES}
    exits, same, tokens, ended = torch.zeros(stack.num_layers), dict.fromkeys(COPIES, 0), 0, 0
    with gsm8k.open(encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] for _, line in zip(range(count), lines, strict=False)]
    for question in questions:
        prompt = engine.tokenizer(f"Question: {question}\nAnswer:", add_special_tokens=False)["input_ids"]
        written = decoder.token_ids(prompt, max_tokens)
        tokens += len(written)
        ended += written[-1] in engine.eos_ids
        exits += exits_agreed(stack, prompt, written)
        for name, copy in copies.items():
            same[name] += copy_agreed(stack, copy, prompt, written)
    return {
        "held_out_loss": round(held_out_loss(stack, texts), 4),
        "texts": len(texts),
        "answer_tokens": tokens,
        "answers_that_end": ended,
        "agreement_by_exit": {e: round(n / tokens, 4) for e, n in enumerate(exits.tolist(), start=1)},
        "agreement_of_copies": {name: round(n / tokens, 4) for name, n in same.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Measure a model folder and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_gsm8k", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--count", type=int, default=40, help="questions")
    parser.add_argument("--texts", type=int, default=100, help="questions with answers, for the loss")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile(profile_for_model(str(args.model), 16, 1, 2), dtype=args.dtype, mode="autoregressive")
    texts = read_texts(args.gsm8k, engine.tokenizer)[: args.texts]
    record = {
        "command": f"python -m training.evaluate_gsm8k {args.model.name} --count {args.count} --texts {args.texts}",
        "figures": measure(engine, args.gsm8k, args.count, args.max_new_tokens, texts),
        "environment": {"torch": torch.__version__, "threads": args.threads, "dtype": args.dtype},
    }
    show(record, args.out)


if __name__ == "__main__":
    main()
