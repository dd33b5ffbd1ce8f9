"""Measure the shipped model: `python -m training.evaluate MODEL --out FILE`.

Exact match on held-out problems (trained and held-out wordings apart), and for every exit how often it would have
written the token that the full model wrote, on the full model's own answers.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from training.families import FAMILIES
from training.problems import Problem, Wordings, final_number, make_problem

HELD_OUT_SEED = "held out"
"""Training draws its text from seeds of the form `SEED/STEP/ROW`, so no training problem comes from this one."""


def held_out_problems(count: int, wordings: Wordings, seed: str = HELD_OUT_SEED) -> list[Problem]:
    """Return `count` problems, the families in turn, no question twice."""
    rng = Random(f"{seed}/{wordings}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = make_problem(rng, wordings, FAMILIES[len(problems) % len(FAMILIES)])
        problems[problem.question] = problem
    return list(problems.values())


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int = 200
) -> tuple[list[int], list[int]]:
    """Return the model's greedy answer: (prompt ids, answer ids)."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=max_new_tokens, max_length=None, do_sample=False)[0].tolist()
    count = prompt["input_ids"].shape[1]
    return ids[:count], ids[count:]


@torch.inference_mode()
def agreement(model: LlamaForCausalLM, prompt: list[int], written: list[int]) -> torch.Tensor:
    """Return for each exit 1..L how many of the answer's tokens that exit would have written too, [L]."""
    out = model(torch.tensor([prompt + written]), output_hidden_states=True)
    span = slice(len(prompt) - 1, len(prompt) + len(written) - 1)
    exits = [model.lm_head(model.model.norm(hidden[0, span])) for hidden in out.hidden_states[1:-1]]
    logits = torch.stack([*exits, out.logits[0, span]])
    return (logits.argmax(-1) == torch.tensor(written)).sum(-1)


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> dict[str, Any]:
    """Return exact match on the final number, by family too, and the agreement of every exit with the full model."""
    right: dict[str, list[bool]] = {}
    agreed, tokens = torch.zeros(model.config.num_hidden_layers), 0
    for problem in problems:
        prompt, written = answer(model, tokenizer, problem.question)
        result = final_number(tokenizer.decode(written, skip_special_tokens=True))
        right.setdefault(problem.family, []).append(result == problem.result)
        agreed += agreement(model, prompt, written)
        tokens += len(written)
    correct = sum(sum(marks) for marks in right.values())
    return {
        "problems": len(problems),
        "correct": correct,
        "exact_match": correct / len(problems),
        "by_family": {family: sum(marks) / len(marks) for family, marks in right.items()},
        "answer_tokens": tokens,
        "agreement_by_exit": {e: round(share / tokens, 4) for e, share in enumerate(agreed.tolist(), start=1)},
    }


def show(record: dict[str, Any], out: Path | None) -> None:
    """Print a record as JSON, and write it where a file is named."""
    text = json.dumps(record, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Evaluate a model folder and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--count", type=int, default=500, help="problems of each kind of wording")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    began = time.perf_counter()
    wordings: tuple[Wordings, ...] = ("trained", "held_out")
    figures = {kind: measure(model, tokenizer, held_out_problems(args.count, kind)) for kind in wordings}
    record = {
        "command": f"python -m training.evaluate MODEL --count {args.count}",
        "wordings": figures,
        "seconds": round(time.perf_counter() - began, 1),
        "environment": {
            "processor": platform.processor() or platform.machine(),
            "threads": args.threads,
            "torch": torch.__version__,
            "dtype": "float32",
        },
    }
    show(record, args.out)


if __name__ == "__main__":
    main()
