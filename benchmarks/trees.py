r"""Estimates whether several drafts for one position would pay, beneath a 4-bit copy.

Where a draft is rejected, its runner-up is often the copy's own token. As a second row for that position, with a mask of
its own, it would be accepted in the same pass, and its row would give the token after it. Replays on the target's own
texts estimate what that saves. They use the rank of the copy's token in the logits of each draft, and whether the copy's
token is the target's. The costs of passes are measured on this machine, or estimated for a GPU.

Chains of every length are compared with trees of the same chain, whose first positions have one or more runners-up; the
best of each counts. Drafts are those of an exit of the copy, or recycled ones: the argmax tokens of the copy after an
earlier occurrence of the same token.

    python benchmarks/trees.py --model DIR --gsm8k FILE --exit 2 --raw --name trees-NAME
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from common import engine_without_profile, environment, questions_for, save

from hispec import Engine
from hispec.curve import Curve
from hispec.models.stack import LayerStack
from hispec.text import encode_prompt

RANKS = 4
"""Candidates of a position at most."""

ROWS = (1, 2, 4, 8, 16, 32)
LENGTHS, WAITING = (1, 2, 3, 4, 6, 8), (4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Text:
    """The predictions of the levels at each token of the target's own text.

    Attributes:
        ranks: the position of the copy's token among a draft's candidates; None where it is not among them.
        agrees: whether the copy's token is the target's.
    """

    ranks: Sequence[int | None]
    agrees: Sequence[bool]


@dataclass(frozen=True)
class Passes:
    """Seconds of a pass by its rows: of drafting one token, of the copy, of the target."""

    draft: float
    copy: Curve
    target: Curve


def tokens_per_second(
    texts: Sequence[Text], costs: Passes, length: int, waiting: int, branches: Sequence[int]
) -> float:
    """Replay decoding.

    Args:
        texts: the recorded texts.
        costs: the costs of passes.
        length: tokens of a chain.
        waiting: tokens that wait for the target.
        branches: the number of further candidates that are verified at each position of the chain.
    """
    tokens, seconds = 0, 0.0
    rows = 1 + length + sum(branches)
    for text in texts:
        at, end = 0, len(text.agrees)
        while at < end:
            reached = at
            while reached < end and reached - at < waiting:
                seconds += length * costs.draft + costs.copy(rows)
                for step in range(length):
                    rank = text.ranks[reached] if reached < end else 0
                    reached += 1  # accepted, or corrected by the copy
                    if rank != 0:
                        # A runner-up that is right gives the token after it, too.
                        reached += rank is not None and rank <= (branches[step] if step < len(branches) else 0)
                        break
                else:
                    reached += 1  # the copy's own next token
                if not all(text.agrees[at : min(reached, end)]):
                    break  # what follows is verified for nothing, of which the policy would know nothing
            reached = min(reached, end)
            seconds += costs.target(1 + reached - at)
            right = next((i for i, good in enumerate(text.agrees[at:reached]) if not good), reached - at)
            at += right + 1  # the target's own token
        tokens += end
    return tokens / seconds


def best_of(texts: Sequence[Text], costs: Passes) -> dict[str, Any]:
    """Return the best chain and the best tree."""
    found = {}
    for length, waiting in product(LENGTHS, WAITING):
        shapes: set[tuple[int, ...]] = {()}
        shapes |= {(ranks,) * count for ranks in range(1, RANKS) for count in range(1, length + 1)}
        for shape in shapes:
            found[length, waiting, shape] = tokens_per_second(texts, costs, length, waiting, shape)
    chain = max((key for key in found if not key[2]), key=found.__getitem__)
    tree = max((key for key in found if key[2]), key=found.__getitem__)
    shown = ("length", "waiting", "runners_up")
    return {
        "chain": dict(zip(shown, chain, strict=True)) | {"tokens_per_second": round(found[chain], 2)},
        "tree": dict(zip(shown, tree, strict=True)) | {"tokens_per_second": round(found[tree], 2)},
        "tree_over_chain": round(found[tree] / found[chain], 3),
    }


@torch.inference_mode()
def predictions(stack: LayerStack, exit_layer: int, ids: list[int]) -> torch.Tensor:
    """Return the most probable tokens of a level after each token of a text, [n, RANKS], best first.

    Wider passes of a copy than these may read the full weights.
    """
    stack.reserve(len(ids))
    starts = range(0, len(ids), stack.narrow)
    rows = (stack.run(stack.embed(ids[at : at + stack.narrow]), 0, exit_layer, at) for at in starts)
    return torch.cat([stack.head(part).topk(RANKS).indices for part in rows])


def record(engine: Engine, prompts: list[list[int]], exit_layer: int, count: int) -> dict[str, list[Text]]:
    """Return the recorded predictions of drafts on the target's own answers, by the source of the drafts."""
    target = engine.hierarchy.stack_of(-1)
    copy, decoder = target.quantized("int4"), engine.decoder()
    found: dict[str, list[Text]] = {"exit": [], "recycled": []}
    recycled: dict[int, list[int]] = {}
    for prompt in prompts:
        answer = decoder.token_ids(prompt, count)
        text = [*prompt, *answer]
        own = predictions(copy, copy.num_layers, text)
        said, asked = own[:, 0].tolist(), range(len(prompt) - 1, len(text) - 1)
        agrees = [said[at] == text[at + 1] for at in asked]
        if exit_layer:
            drafted = predictions(copy, exit_layer, text).tolist()
            found["exit"].append(Text([rank_of(drafted[at], said[at]) for at in asked], agrees))
        ranks = []
        for at, token in enumerate(text[:-1]):
            if at in asked:
                ranks.append(rank_of(recycled.get(token, []), said[at]))
            recycled[token] = own[at].tolist()
        found["recycled"].append(Text(ranks, agrees))
    return {name: texts for name, texts in found.items() if texts}


def rank_of(candidates: list[int], token: int) -> int | None:
    """Return the rank of a token among candidates; None if it is not among them."""
    return candidates.index(token) if token in candidates else None


@torch.inference_mode()
def measured(target: LayerStack, exit_layer: int, position: int = 96, repeats: int = 7) -> dict[str, Passes]:
    """Return the measured costs of passes, by the source of the drafts; the fastest of several counts."""
    target.reserve(position + ROWS[-1])

    def curve(stack: LayerStack, layers: int, counts: Sequence[int] = ROWS) -> Curve:
        seconds = []
        for rows in counts:
            times = []
            for _ in range(repeats):
                began = perf_counter()
                stack.head(stack.run(stack.embed([1] * rows), 0, layers, position)).argmax(-1)
                times.append(perf_counter() - began)
            seconds.append(min(times))
        return Curve(tuple(counts), tuple(seconds))

    copy = target.quantized("int4")
    own, whole = curve(target, target.num_layers), curve(copy, copy.num_layers)
    drafts = {"recycled": 2e-5} | ({"exit": curve(copy, exit_layer, (1, 2))(1)} if exit_layer else {})
    return {name: Passes(draft, whole, own) for name, draft in drafts.items()}


def estimated(layers: int, exit_layer: int, layer: float, row: float, head: float) -> dict[str, Passes]:
    """Return the costs of passes if weights are read once for all rows, in layers of one row of full weights."""
    ends = (1, 1001)

    def curve(one: float) -> Curve:
        return Curve(ends, (one, one * (1 + 1000 * row)))

    whole, own = curve(layer * (layers + head)), curve(layers + head)
    drafts = {"recycled": 0.0} | ({"exit": layer * (exit_layer + head)} if exit_layer else {})
    return {name: Passes(draft, whole, own) for name, draft in drafts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or `tiny`")
    parser.add_argument("--raw", action="store_true", help="no chat template: Question: ... Answer:")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--exit", type=int, default=0, help="that drafts, of a model that was trained for it")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--layer", type=float, default=0.28, help="a GPU's 4-bit layer, in layers of full weights")
    parser.add_argument("--row", type=float, default=0.01, help="a further row, as a share")
    parser.add_argument("--head", type=float, default=1.4, help="the head, in layers")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = engine_without_profile(args.model, mode="autoregressive", dtype=args.dtype)
    target = engine.hierarchy.stack_of(-1)
    texts = questions_for(args.model, args.gsm8k, args.prompts, raw=args.raw)
    prompts = [encode_prompt(engine.tokenizer, text, raw=args.raw) for text in texts]
    costs = {
        "measured": measured(target, args.exit),
        "estimated for a GPU": estimated(target.num_layers, args.exit, args.layer, args.row, args.head),
    }
    results: dict[str, Any] = {}
    for drafts, recorded in record(engine, prompts, args.exit, args.max_new_tokens).items():
        ranks = [rank for text in recorded for rank in text.ranks]
        results[drafts] = {
            "right_at_rank": [round(sum(rank == at for rank in ranks) / len(ranks), 4) for at in range(RANKS)],
            "copy_agrees": round(sum(map(sum, (text.agrees for text in recorded))) / len(ranks), 4),
            **{name: best_of(recorded, one[drafts]) for name, one in costs.items()},
        }
    passes = {
        name: {rows: round(1e3 * curve(rows), 3) for rows in ROWS}
        for name, curve in (
            ("copy", costs["measured"]["recycled"].copy),
            ("target", costs["measured"]["recycled"].target),
        )
    }
    given = ("prompts", "max_new_tokens", "exit", "layer", "row", "head")
    save(
        args.name,
        {"model": Path(args.model).name}
        | {name: getattr(args, name) for name in given}
        | {"dtype": engine.environment["dtype"]}
        | {"drafts": results, "pass_ms": passes, "environment": environment(args.threads)},
    )


if __name__ == "__main__":
    main()
