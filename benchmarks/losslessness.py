"""Does hierarchical decoding write the very token ids that the target alone writes?

Held-out problems and real GSM8K questions, in float32 and bfloat16, every mode against autoregressive decoding. Where
ids differ, the gap between the target's two best logits at the first difference tells a tie, which rounding decides
(the kernels for one row and for several add in a different order), from an error.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import environment, gsm8k_questions, held_out_questions, save

from hispec import Engine
from hispec.lossless import TIES

DTYPES = ("float32", "bfloat16")


def compare(engine: Engine, question: str, reference: list[int]) -> dict[str, Any] | None:
    """None where the ids are equal, else where and how narrowly they part."""
    answer = engine.generate(question)
    difference = engine.examine(answer.prompt_ids, answer.token_ids, reference)
    return difference and {"question": question, **asdict(difference)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--questions", type=int, default=50, help="of GSM8K")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sources = {
        "held_out": held_out_questions(args.held_out),
        "gsm8k": gsm8k_questions(args.gsm8k, args.questions),
    }
    results: dict[str, Any] = {}
    for dtype in DTYPES:
        hispec = Engine.from_profile("tiny", dtype=dtype, max_new_tokens=args.max_new_tokens)
        alone = hispec.with_settings(mode="autoregressive")
        for source, questions in sources.items():
            references = [alone.generate(question).token_ids for question in questions]
            for mode in ("hispec", "single-layer"):
                engine = hispec.with_settings(mode=mode)
                found = [compare(engine, q, ids) for q, ids in zip(questions, references, strict=True)]
                differences = [difference for difference in found if difference is not None]
                results.setdefault(dtype, {}).setdefault(source, {})[mode] = {
                    "of": len(questions),
                    "tokens": sum(map(len, references)),
                    "identical": len(questions) - len(differences),
                    "ties": sum(difference["kind"] == "tie" for difference in differences),
                    "errors": sum(difference["kind"] == "error" for difference in differences),
                    "differences": differences,
                }
    save("losslessness", {"results": results, "ties": TIES, "environment": environment(args.threads)})


if __name__ == "__main__":
    main()
