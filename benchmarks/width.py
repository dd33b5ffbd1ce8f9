"""Measures the cost of computing a row in the same way in every pass.

Answers with the same weights at several widths in turn, plain decoding and hispec: `free` pads nothing, a number pads
every pass to that many rows, `auto` to the next of the row counts that were found equal.

    python benchmarks/width.py --model DIR --raw --exits 1 4 --gsm8k FILE --name width-NAME
"""

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from common import environment, gsm8k_questions, held_out_questions, interval95, save

from hispec import Engine
from hispec.models.rows import Width
from hispec.profile import load_profile, profile_for_model
from hispec.text import encode_prompt

MODES = ("autoregressive", "hispec")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="a folder; by default the shipped model")
    parser.add_argument("--exits", type=int, nargs=2, default=(1, 2))
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--draft-tokens", type=int, default=3)
    parser.add_argument("--validate-every", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--stack", default="auto")
    parser.add_argument("--widths", nargs="+", default=["free", "auto", "2", "4", "8", "16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    profile = load_profile("tiny") if args.model == "tiny" else profile_for_model(args.model, 10**6, *args.exits)
    lengths = {"draft_tokens": args.draft_tokens, "validate_every": args.validate_every}
    engine = Engine.from_profile(profile, dtype=args.dtype, stack=args.stack, **lengths)
    modes = {mode: engine.with_settings(mode=mode) for mode in MODES}
    questions = (held_out_questions if args.model == "tiny" else lambda n: gsm8k_questions(args.gsm8k, n))(args.prompts)
    widths: list[Width] = [int(width) if width.isdecimal() else width for width in args.widths]
    rows: dict[tuple[str, str], list[tuple[int, float]]] = {(str(w), mode): [] for w in widths for mode in MODES}
    equal, reported = {str(width): 0 for width in widths}, {}
    target = engine.hierarchy.stack_of(-1)
    chosen = {}
    for width in widths:
        target.prepare(width)
        chosen[str(width)], reported[str(width)] = target.rows, target.rows.describe()
    for number, question in enumerate([questions[0], *questions]):  # the first warms up
        text = f"Question: {question}\nAnswer:" if args.raw else question
        prompt = encode_prompt(engine.tokenizer, text, raw=args.raw)
        for name, counts in chosen.items():
            target.rows = counts
            target._tabulated = 0  # type: ignore[attr-defined]
            written = []
            for mode, own in modes.items():
                begin = perf_counter()
                ids = own.decoder().token_ids(prompt, args.max_new_tokens)
                if number:
                    rows[name, mode].append((len(ids), perf_counter() - begin))
                written.append(ids)
            equal[name] += bool(number) and written[0] == written[1]
    save(args.name, record(args, engine, rows, equal, reported))


def record(args: argparse.Namespace, engine: Engine, rows: Any, equal: Any, reported: Any) -> dict[str, Any]:
    """Return the result: tokens per second, and the ratio to free widths of the same mode."""
    found = []
    for (width, mode), measured in rows.items():
        pairs = list(zip(measured, rows["free", mode], strict=True))

        def ratio(drawn: Any) -> float:
            own, free = ([sum(part) for part in zip(*side, strict=True)] for side in zip(*drawn, strict=True))
            return float(own[0] / own[1] / (free[0] / free[1]))

        tokens, seconds = (sum(part) for part in zip(*measured, strict=True))
        found.append(
            {
                "width": width,
                "rows": reported[width],
                "mode": mode,
                "tokens_per_second": round(tokens / seconds, 1),
                "over_free": round(ratio(pairs), 3),
                "ci95": [round(end, 3) for end in interval95(pairs, ratio)],
                "hispec_equals_autoregressive": f"{equal[width]} of {args.prompts}",
            }
        )
    return {
        "model": Path(args.model).name,
        "dtype": engine.environment["dtype"],
        "stack": engine.environment["stack"],
        "exits": list(args.exits),
        "draft_tokens": args.draft_tokens,
        "validate_every": args.validate_every,
        "prompts": args.prompts,
        "max_new_tokens": args.max_new_tokens,
        "results": found,
        "environment": environment(args.threads),
    }


if __name__ == "__main__":
    main()
