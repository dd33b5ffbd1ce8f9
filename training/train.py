"""Train the shipped early-exit model from nothing: `python -m training.train --out DIR`.

The run is a function of its arguments: the text of every step is drawn from the seed and the step's number, so an
interrupted run (`--resume`) continues exactly where its last checkpoint was. Works on CPU and CUDA.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.muon import Muon
from training.problems import conversations
from training.recipe import early_exit_loss, exits_of_step
from training.tokenizer import ASSISTANT, END, train_tokenizer


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the shipped model's."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and the finished model")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--rows", type=int, default=12, help="rows of a batch")
    parser.add_argument("--row-tokens", type=int, default=256, help="tokens of a row")
    parser.add_argument("--long-row-tokens", type=int, default=1024, help="tokens of a row in every 9th step")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--context", type=int, default=2048, help="longest input, in tokens")
    parser.add_argument("--tokenizer-samples", type=int, default=20_000, help="conversations that teach the tokenizer")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps of warm-up")
    parser.add_argument(
        "--decay", type=float, default=0.4, help="last share of the steps, in which the rate falls to 0"
    )
    parser.add_argument("--p-max", type=float, default=0.1, help="layer dropout of the last layer")
    parser.add_argument("--period", type=int, default=8, help="rotation of the early-exit curriculum, in steps")
    parser.add_argument(
        "--ordinary", action="store_true", help="no early-exit loss, no layer dropout: a model with poor exits"
    )
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the layers (a third faster on CPU)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--stop-after", type=int, help="end at this step, to be resumed")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    return parser.parse_args(argv)


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a fresh Llama of the asked size; tied embeddings, float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def make_batch(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, rows: int, row_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return the text of one step: rows of whole conversations, cut at `row_tokens`.

    Returns:
        ids [rows, row_tokens], and a bool tensor of the same shape: True on what the assistant says (its end too).
    """
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    ids_rows, learn_rows = [], []
    for row in range(rows):
        source = conversations(Random(f"{seed}/{step}/{row}"))
        ids: list[int] = []
        while len(ids) < row_tokens:
            texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in islice(source, 4)]
            for piece in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                ids += piece
        ids = ids[:row_tokens]
        learn, speaking = [], 0
        for token in ids:
            learn.append(speaking > 1)  # not the role marker's own line break
            if token == assistant:
                speaking = 1
            elif speaking:
                speaking = 0 if token == end else speaking + 1
        ids_rows.append(ids)
        learn_rows.append(learn)
    return torch.tensor(ids_rows), torch.tensor(learn_rows)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Return the learning rate: warm-up, plateau, linear decay to 0; the plateau lets a run be extended."""
    decay_from: float = args.steps * (1 - args.decay)
    falling = (args.steps - step) / (args.steps - decay_from) if step > decay_from else 1.0
    rate: float = args.lr * min(1.0, (step + 1) / args.warmup, falling)
    return rate


def make_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, context: int) -> None:
    """Write the model as others load it: bfloat16 safetensors, tokenizer, greedy generation defaults."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_length=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def train_step(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    tokenizer: PreTrainedTokenizerFast,
    step: int,
    args: argparse.Namespace,
) -> tuple[int, dict[int, float]]:
    """Return one update; everything in it is drawn from the seed and the step.

    Returns:
        The tokens that were read, and the cross entropy of each exit that took part.
    """
    long = step % 9 == 8  # 9 and the curriculum's period share no factor: every exit meets long rows
    row_tokens = args.long_row_tokens if long else args.row_tokens
    rows = max(1, args.rows * args.row_tokens // row_tokens)
    ids, learn = make_batch(tokenizer, args.seed, step, rows, row_tokens)
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    exits = [args.layers] if args.ordinary else exits_of_step(step, args.layers, args.period)
    p_max = 0.0 if args.ordinary else args.p_max
    with torch.autocast("cuda", torch.bfloat16, enabled=args.device.startswith("cuda")):
        loss, report = early_exit_loss(model, ids.to(args.device), learn.to(args.device), exits, p_max, generator)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.step()
        optimizer.zero_grad()
    return ids.numel(), report


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """Write all that a resumed run needs, at once or not at all."""
    partial = path.with_suffix(".partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "step": step, "seconds": seconds}, partial)
    partial.replace(path)


def load_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], device: str
) -> tuple[int, float]:
    """Read what `save_checkpoint` wrote; returns the next step and the seconds spent so far."""
    saved = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"], saved["seconds"]


def main(argv: list[str] | None = None) -> None:
    """Train, checkpoint, and leave the finished model in `OUT/model`."""
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.vocab, args.seed, args.tokenizer_samples, args.context)
    model = build_model(args, tokenizer).to(args.device).train()
    optimizers = make_optimizers(model, args.lr)
    checkpoint, start, spent = args.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        if not args.resume:
            raise SystemExit(f"{checkpoint} exists: pass --resume to continue it, or choose another --out")
        start, spent = load_checkpoint(checkpoint, model, optimizers, args.device)
    if args.compile:
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {len(tokenizer)} tokens, {args.device}", flush=True)

    began, tokens, last = time.perf_counter() - spent, 0, min(args.steps, args.stop_after or args.steps)
    with (args.out / "log.jsonl").open("a") as log:
        for step in range(start, last):
            read, report = train_step(model, optimizers, tokenizer, step, args)
            tokens += read
            seconds = time.perf_counter() - began
            if step % 10 == 0:
                loss = round(report[args.layers], 4)
                log.write(
                    json.dumps({"step": step, "loss": loss, "exits": report, "seconds": round(seconds, 1)}) + "\n"
                )
                log.flush()
                print(f"step {step}  loss {loss:.3f}  {tokens / (seconds - spent):.0f} tokens/s", flush=True)
            if (step + 1) % args.save_every == 0 or step + 1 == last:
                save_checkpoint(checkpoint, model, optimizers, step + 1, seconds)
                save_model(model, tokenizer, args.out / "model", args.context)


if __name__ == "__main__":
    main()
