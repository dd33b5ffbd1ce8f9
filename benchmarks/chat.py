"""Measures the time to the first token of a conversation's second turn, with and without reuse of the first turn's KV
cache.

The first turn is a prompt of held-out questions that makes the conversation, its answer and the template included,
about `--tokens` long; the second is another question. Both ways are taken for every conversation before the next, the
order turning; without reuse, the same text is asked of a conversation that has run nothing. The time is the wall's, from
the call that asks to the event that carries the first validated text, tokenization included. The ids of the answers
must be the same. The 95 % interval is a bootstrap over conversations.
"""

import argparse
from time import perf_counter
from typing import Any

import torch
from common import environment, held_out_questions, interval95, save

from hispec import Engine
from hispec.conversation import Conversation
from hispec.events import Committed, Prefilled


def timed(conversation: Conversation, prompt: str) -> tuple[float, int, tuple[int, ...]]:
    """Ask a prompt, and return the seconds to the first text, the tokens found in the cache, and the answer's ids."""
    began, first, cached = perf_counter(), None, 0
    for event in conversation.ask(prompt):
        if isinstance(event, Prefilled):
            cached = event.cached_tokens
        if first is None and isinstance(event, Committed) and event.text:
            first = perf_counter() - began
    assert first is not None
    return first, cached, conversation.turns[-1].token_ids


def first_prompt(engine: Engine, questions: list[str], tokens: int) -> str:
    """Return a prompt of as many questions as fill about this many tokens."""
    prompt = ""
    while questions and len(engine.tokenizer(prompt)["input_ids"]) < tokens:
        prompt = f"{prompt} {questions.pop()}".strip()
    return prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--stack", default="auto")
    parser.add_argument("--tokens", type=int, default=400, help="of the conversation before the second turn")
    parser.add_argument("--conversations", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="chat-cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine.from_profile(args.profile, stack=args.stack, max_new_tokens=64)
    questions = held_out_questions(20 * (args.conversations + 1))
    rows: list[dict[str, Any]] = []
    for number in range(args.conversations + 1):  # the first warms up
        prompt, second = first_prompt(engine, questions, args.tokens - 40), questions.pop()
        row: dict[str, Any] = {}
        for way in ("reuse", "fresh") if number % 2 else ("fresh", "reuse"):
            conversation = Conversation(engine)
            for _ in conversation.ask(prompt):
                pass
            row["tokens"] = conversation.length()
            if way == "fresh":
                conversation = Conversation(engine, turns=conversation.turns)
            row[way], row[f"{way}_cached"], row[f"{way}_ids"] = timed(conversation, second)
        assert row.pop("reuse_ids") == row.pop("fresh_ids"), "reuse has changed an answer"
        assert row["reuse_cached"] > 0 == row["fresh_cached"]
        rows.append(row)
    del rows[0]

    def shorter(rows: Any) -> float:
        return float(sum(row["fresh"] for row in rows) / sum(row["reuse"] for row in rows))

    mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    save(
        args.name,
        {
            "profile": args.profile,
            "stack": engine.environment["stack"],
            "conversations": len(rows),
            "tokens_before_second_turn": round(mean["tokens"], 1),
            "cached_tokens": round(mean["reuse_cached"], 1),
            "time_to_first_token_ms": {way: round(1000 * mean[way], 2) for way in ("fresh", "reuse")},
            "times_shorter": round(shorter(rows), 2),
            "ci95": [round(value, 2) for value in interval95(rows, shorter)],
            "environment": environment(args.threads),
        },
    )


if __name__ == "__main__":
    main()
