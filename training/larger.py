"""Make an early-exit model twice as wide and train it on: `python -m training.larger --from DIR --gsm8k FILE --out DIR`.

A wider model from nothing needs more text than a CPU can read. This one starts as the narrow model (Net2Net, arXiv
1511.05641): every hidden unit, head and intermediate unit is there twice, and what reads a pair adds its halves up, so
that the wide model's logits are the narrow one's at every exit. How a weight is divided between the two readers is
random, so that their gradients differ and the pairs part. Then it is trained with the early-exit loss on GSM8K's
questions and answers, for as many minutes as are given. `--resume` continues an interrupted run at its last checkpoint.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from training.recipe import early_exit_loss, exits_of_step
from training.train import load_checkpoint, save_checkpoint

TEXT = "Question: {question}\nAnswer: {answer}"
"""How GSM8K's texts are written; the end-of-text token follows."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.larger", description=__doc__)
    parser.add_argument("--from", dest="narrow", type=Path, required=True, help="folder of the narrow model")
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the log and the model")
    parser.add_argument("--minutes", type=float, default=60, help="of training, those before an interruption included")
    parser.add_argument("--save-every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--row-tokens", type=int, default=256, help="tokens of a row")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate")
    parser.add_argument("--noise", type=float, default=0.5, help="spread of the random halves, in that of the weights")
    parser.add_argument("--p-max", type=float, default=0.1, help="layer dropout of the last layer")
    parser.add_argument("--period", type=int, default=8, help="rotation of the early-exit curriculum, in steps")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    return parser.parse_args(argv)


@torch.no_grad()
def widen(narrow: LlamaForCausalLM, noise: float, seed: int) -> LlamaForCausalLM:
    """Return a model of twice the width that computes the same logits, up to rounding.

    Args:
        narrow: a Llama whose head is tied to its embeddings.
        noise: standard deviation of what one reader of a pair gets more than the other, in that of its weights.
        seed: of the random division.
    """
    config = copy.deepcopy(narrow.config)
    for width in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, width, 2 * getattr(config, width))
    wide = LlamaForCausalLM(config)
    rng = torch.Generator().manual_seed(seed)
    own = narrow.state_dict()
    for name, part in wide.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            part.copy_(own[name].repeat(1, 2))
        elif name == "model.norm.weight":  # the tied head adds up both units of a pair whole
            part.copy_(own[name].repeat(2) / 2)
        elif part.ndim == 1:  # the mean square of a doubled state is that of the state
            part.copy_(own[name].repeat(2))
        else:
            weights = own[name].repeat(2, 1) / 2
            more = noise * own[name].std() * torch.randn(weights.shape, generator=rng)
            part.copy_(torch.cat((weights + more, weights - more), 1))
    return wide


def read_texts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each question of a GSM8K file with its answer and the end of the text."""
    with path.open(encoding="utf-8") as lines:
        texts = [TEXT.format(**json.loads(line)) for line in lines]
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def make_batch(texts: list[list[int]], seed: int, step: int, rows: int, row_tokens: int) -> Tensor:
    """Return the rows of one step, each of whole texts in random order, cut at its end: [rows, row_tokens]."""
    drawn = []
    for row in range(rows):
        rng = Random(f"{seed}/{step}/{row}")
        ids: list[int] = []
        while len(ids) < row_tokens:
            ids += rng.choice(texts)
        drawn.append(ids[:row_tokens])
    return torch.tensor(drawn)


def learning_rate(share: float, peak: float) -> float:
    """Return the rate after a share of the time: warm-up for a twentieth, a plateau, and a fall to 0 from the half on."""
    return peak * min(1.0, share / 0.05 + 0.01, max(0.0, 2 * (1 - share)))


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model in bfloat16, with the narrow model's tokenizer and generation defaults."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    """Widen, train, checkpoint, and leave the model in OUT."""
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.narrow)
    narrow = AutoModelForCausalLM.from_pretrained(args.narrow, dtype=torch.float32)
    model = widen(narrow, args.noise, args.seed).train()
    model.generation_config = narrow.generation_config
    # On a CPU, Muon takes as long as the passes of so small a batch, and there is no time for larger ones.
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))
    ]
    checkpoint, step, spent = args.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        if not args.resume:
            raise SystemExit(f"{checkpoint} exists: pass --resume to continue it, or choose another --out")
        step, spent = load_checkpoint(checkpoint, model, optimizers, "cpu")
    texts, layers = read_texts(args.gsm8k, tokenizer), model.config.num_hidden_layers
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {sum(map(len, texts)):,} tokens of text", flush=True)

    began, saved = time.perf_counter() - spent, spent
    with (args.out / "log.jsonl").open("a") as log:
        while (seconds := time.perf_counter() - began) < 60 * args.minutes:
            ids = make_batch(texts, args.seed, step, args.rows, args.row_tokens)
            exits = exits_of_step(step, layers, args.period)
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            learn = torch.ones_like(ids, dtype=torch.bool)
            loss, report = early_exit_loss(model, ids, learn, exits, args.p_max, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(seconds / (60 * args.minutes), args.lr)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            log.write(json.dumps({"step": step, "seconds": round(seconds, 1), "exits": report}) + "\n")
            log.flush()
            print(f"step {step}  {seconds:.0f} s  loss {report[layers]:.3f}", flush=True)
            if seconds - saved > 60 * args.save_every:
                save_checkpoint(checkpoint, model, optimizers, step, seconds)
                save_model(model, tokenizer, args.out)
                saved = seconds
    save_checkpoint(checkpoint, model, optimizers, step, time.perf_counter() - began)
    save_model(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
