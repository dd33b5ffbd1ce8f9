r"""Measures where the time of an answer goes, and how much of it is spent on rows and drafts that were rejected.

A model answers as it does by default, without a profile. Of every level: the rows that it verified, those after its first
rejection, and what they cost at this machine's price of a further row; the drafts that were rejected, and what writing
them took. What is neither a level's layers nor a head is the engine's own time.

    python benchmarks/waste.py --model DIR --gsm8k FILE --raw --name waste-NAME
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from common import engine_without_profile, environment, questions_for, save

from hispec.decoding.hierarchy import Hierarchy
from hispec.events import Drafted, Prefilled, Verified
from hispec.step_timing import step_costs
from hispec.text import encode_prompt


class Watched:
    """Adds up the seconds that stacks spend in layers and heads."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.seconds = 0.0
        for stack in hierarchy.stacks:
            for name in ("run", "head", "write_run"):
                setattr(stack, name, self._timed(getattr(stack, name)))
        self._inside = False

    def _timed(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self._inside:
                return method(*args, **options)
            self._inside, began = True, perf_counter()
            try:
                return method(*args, **options)
            finally:
                self._inside = False
                self.seconds += perf_counter() - began

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or `tiny`")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = engine_without_profile(args.model)
    hierarchy, names = engine.hierarchy, [level.name for level in engine.hierarchy.levels]
    costs = step_costs(hierarchy, names)
    texts = questions_for(args.model, args.gsm8k, args.prompts, raw=args.raw)
    decoder, watched = engine.decoder(), Watched(hierarchy)
    spent: dict[str, float] = defaultdict(float)
    rows, useless, drafted, lost = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    total = 0.0
    for text in texts:
        standing: list[str] = []  # who wrote the tokens that wait for a verification
        watched.seconds = 0.0
        events = list(decoder.decode(encode_prompt(engine.tokenizer, text, raw=args.raw), args.max_new_tokens))
        for event in events:
            if isinstance(event, Prefilled):
                spent["prefill"] += event.seconds
            elif isinstance(event, Drafted):
                spent[f"drafting: {event.level}"] += event.seconds
                drafted[event.level] += len(event.token_ids)
                standing += [event.level] * len(event.token_ids)
            elif isinstance(event, Verified):
                spent[f"verifying: {event.level}"] += event.seconds
                rows[event.level] += event.proposed + 1
                useless[event.level] += max(0, event.proposed - event.accepted - 1)
                kept = len(standing) - event.proposed + event.accepted
                lost.update(standing[kept:])
                standing = [*standing[:kept], *([event.level] if event.correction is not None else [])]
                if event.level == names[-1]:
                    standing = []
        total += events[-1].t
        spent["the engine's own"] += events[-1].t - watched.seconds
    further = {names[upper]: max(costs.row((lower, upper)) for lower in range(upper)) for upper in range(1, len(names))}
    steps = sum(seconds for name, seconds in spent.items() if name.startswith("verifying"))
    wasted_rows = sum(useless[name] * further.get(name, 0.0) for name in useless)
    seconds_of = {name: spent[f"drafting: {name}"] / drafted[name] for name in drafted if drafted[name]}
    wasted_drafts = sum(lost[name] * seconds_of.get(name, 0.0) for name in lost)
    save(
        args.name,
        {
            "model": Path(args.model).name,
            "prompts": args.prompts,
            "levels": names,
            "share_of_time": {name: round(seconds / total, 4) for name, seconds in sorted(spent.items())},
            "rows_verified": rows,
            "rows_after_a_rejection": useless,
            "their_share_of_time": round(wasted_rows / total, 4),
            "their_share_of_verifying": round(wasted_rows / steps, 4),
            "drafts_written": drafted,
            "tokens_lost": lost,
            "share_of_time_of_drafts_lost": round(wasted_drafts / total, 4),
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
