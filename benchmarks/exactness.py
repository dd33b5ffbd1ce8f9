"""Checks that all kinds of hierarchies write the token ids that the target alone writes, greedy and sampled.

A model under every kind of hierarchy and both policies: exits of it, or with `--levels copies` copies of it in 4 and 8
bits; its first layers as a separate model with a cache of its own; and n-grams beneath. Every answer of every kind is
compared with plain decoding's for the same seed. The result is kept after each prompt, and the same command goes on from
there.

    python benchmarks/exactness.py --model DIR --gsm8k FILE --prompts 200 --dtype bfloat16 --name exactness-NAME
"""

import argparse
from pathlib import Path

from common import gsm8k_questions, held_out_questions
from comparison import add_arguments, comparison

from hispec.events import Committed, Verified
from hispec.text import encode_prompt

SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "temperature 1": {"temperature": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=200)
    add_arguments(parser, max_new_tokens=100, dtype="bfloat16")
    args = parser.parse_args()
    shipped = args.model == "tiny"
    questions = gsm8k_questions(args.gsm8k, args.prompts - shipped * args.prompts // 2)
    questions += held_out_questions(args.prompts // 2) if shipped else []
    compared = comparison(args)
    engine, result = compared.engine, compared.result
    for number in range(result["prompts"], len(questions)):
        text = f"Question: {questions[number]}\nAnswer:" if args.raw else questions[number]
        prompt = encode_prompt(engine.tokenizer, text, raw=args.raw)
        for sampling, settings in SAMPLINGS.items():
            decoder = engine.with_settings(**settings).decoder()
            expected = decoder.token_ids(prompt, args.max_new_tokens, number)
            counts = result["results"].setdefault(sampling, {"tokens": 0, "hierarchies": {}})
            counts["tokens"] += len(expected)
            for kind in compared.kinds:
                count = counts["hierarchies"].setdefault(
                    kind.name, {"identical": 0, "rejections": 0, "differences": []}
                )
                events = list(kind.decoder(decoder).decode(prompt, args.max_new_tokens, number))
                ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
                count["rejections"] += sum(isinstance(e, Verified) and e.accepted < e.proposed for e in events)
                count["identical"] += ids == expected
                if ids != expected:
                    count["differences"].append(number)
        result["prompts"] = number + 1
        compared.keep()
    for sampling, counts in result["results"].items():
        for name, count in counts["hierarchies"].items():
            print(f"{sampling:28} {name:34} {count['identical']}/{result['prompts']} identical")


if __name__ == "__main__":
    main()
