"""Compares exits of a quantized copy with translators of their own and with those of the full weights.

Translators of some exits are fitted twice, on the same text with the same settings: for the full weights, as
`hispec fit-exits` does, and for exits of a copy, whose states they read. Both learn to predict what the full model's last
layer predicts. Then the full model answers questions, and the result is the share of the answers' tokens that each exit
would have written too: plain, with the translators of the full weights, and with those of the copy.

    python benchmarks/copy_translators.py --model DIR --train TRAIN.jsonl --test TEST.jsonl --exits 1,2,4 --name NAME
"""

import argparse
import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import environment, gsm8k_questions, save
from torch import Tensor

from hispec import Engine
from hispec.exits.fit import Fit, FitSettings
from hispec.exits.job import FitJob
from hispec.exits.request import FitRequest
from hispec.models.transformers_stack import TransformersStack
from hispec.profile import Profile, TargetSection
from hispec.text import encode_prompt


class CopyBelow:
    """A model whose exits are those of a copy; its last layer, and its head, are its own."""

    def __init__(self, own: TransformersStack, copy: TransformersStack) -> None:
        self._own, self._copy, self._row = own, copy, [0]

    def embed(self, row: list[int]) -> Tensor:
        """Return token ids -> hidden states [n, hidden]; see `LayerStack.embed`. Remembers the row."""
        self._row = row
        return self._copy.embed(row)

    def run(self, hidden: Tensor, start: int, end: int, position: int) -> Tensor:
        """Run rows [n, hidden] at `position`; see `LayerStack.run`."""
        if end < self._own.num_layers:
            return self._copy.run(hidden, start, end, position)
        return self._own.run(self._own.embed(self._row), 0, end, position)

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens; see `LayerStack.reserve`."""
        self._own.reserve(positions)
        self._copy.reserve(positions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def copied(stack: TransformersStack, parts: dict[str, Tensor]) -> TransformersStack:
    """Return the model with other weights."""
    model = deepcopy(stack.model)
    wanted = {name: part for name, part in parts.items() if ".layers." in name}
    with torch.no_grad():
        for name, part in wanted.items():
            model.get_parameter(name).copy_(part)
    return TransformersStack(model, "copy")


@torch.inference_mode()
def agreements(engine: Engine, weights: str, fits: dict[str, Fit], texts: list[tuple[list[int], list[int]]]) -> Any:
    """Return the share of the answers' tokens that each exit would have written, by weights, translators and exit."""
    target = engine.hierarchy.stack_of(-1)
    exits = sorted(next(iter(fits.values())).translators)
    found: dict[str, dict[str, float]] = {}
    for kind, stack in (("full", target), (weights, target.quantized(weights))):  # type: ignore[arg-type]
        maps: dict[str, Any] = {"plain": None} | {f"translators of {name}": fit for name, fit in fits.items()}
        counts = {(name, at): 0 for name in maps for at in exits}
        for prompt, written in texts:
            ids = [*prompt, *written[:-1]]
            stack.reserve(len(ids))
            states: dict[int, list[Tensor]] = {at: [] for at in exits}
            narrow = stack.narrow  # no pass so wide that a copy would read the full weights
            for begin in range(0, len(ids), narrow):
                hidden, layer = stack.embed(ids[begin : begin + narrow]), 0
                for at in exits:
                    hidden, layer = stack.run(hidden, layer, at, begin), at
                    states[at].append(hidden)
            for name, fit in maps.items():
                for at in exits:
                    asked = torch.cat(states[at])[len(prompt) - 1 :]
                    if fit is not None:
                        asked = fit.translators[at].on(stack)(asked)
                    best = torch.cat([stack.head(rows).argmax(-1) for rows in torch.split(asked, narrow)])
                    counts[name, at] += int((best == torch.tensor(written)).sum())
        tokens = sum(len(written) for _, written in texts)
        for name in maps:
            found[f"{kind}, {name}"] = {str(at): round(counts[name, at] / tokens, 4) for at in exits}
    return {"tokens": tokens, "agreement": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--test", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--exits", type=lambda text: [int(at) for at in text.split(",")], required=True)
    parser.add_argument("--weights", choices=("int4", "int8"), default="int4")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_profile(
        Profile(name="model", target=TargetSection(model=str(args.model))), mode="autoregressive", dtype="float32"
    )
    target = engine.hierarchy.stack_of(-1)
    settings = FitSettings(steps=args.steps, evaluate_every=20)
    fits: dict[str, Fit] = {}
    with TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        rows = [json.loads(line) for line in args.train.read_text(encoding="utf-8").splitlines()]
        text.write_text("".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows))
        request = FitRequest(
            str(args.model), text, args.exits, Path(folder) / "fitted.yaml", row_tokens=256,
            batch_tokens=args.batch_tokens, dtype="float32", force=True,
        )  # fmt: skip
        job = FitJob(request, settings)
        job.held_out = job.held_out[:8]
        own = job.load()
        fits["the full weights"] = job.run(own)
        both: Any = CopyBelow(own, copied(own, target.quantized(args.weights).parts))  # type: ignore[attr-defined]
        fits["the copy"] = job.run(both)
    decoder = engine.decoder()
    texts = []
    for question in gsm8k_questions(args.test, args.questions):
        prompt = encode_prompt(engine.tokenizer, f"Question: {question}\nAnswer:", raw=True)
        texts.append((prompt, decoder.token_ids(prompt, args.max_new_tokens)))
    save(
        args.name,
        {
            "model": args.model.name,
            "weights": args.weights,
            "steps": args.steps,
            "tokens_fitted_on": args.steps * job.settings.batch_rows * job.rows.shape[1],
            "held_out_kl": {
                name: {str(at): round(quality.kl, 4) for at, quality in fit.after.items()} for name, fit in fits.items()
            },
            **agreements(engine, args.weights, fits, texts),
            "environment": environment(1),
        },
    )


if __name__ == "__main__":
    main()
