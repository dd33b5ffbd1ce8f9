"""The shipped model is what its card says, and anybody can load it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.evaluate import agreement, answer, held_out_problems, measure


@pytest.fixture(scope="module")
def loaded(shipped_model):
    model = AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(shipped_model)


def test_it_is_a_small_deep_llama_with_a_chat_template(loaded, shipped_model):
    model, tokenizer = loaded
    assert sum(path.stat().st_size for path in shipped_model.iterdir()) <= 30e6
    assert model.config.model_type == "llama" and model.config.num_hidden_layers >= 16
    assert model.config.max_position_embeddings >= 1024
    assert tokenizer.tokenize("1234") == list("1234")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|user|>\nHi<|end|>\n<|assistant|>\n"


def test_it_solves_most_held_out_problems_of_trained_wordings(loaded):
    figures = measure(*loaded, held_out_problems(50, "trained", seed="the suite's own"))
    assert figures["exact_match"] > 0.6


def test_exits_agree_the_more_the_deeper_and_leave_something_to_correct(loaded):
    model, tokenizer = loaded
    agreed, tokens = torch.zeros(model.config.num_hidden_layers), 0
    for problem in held_out_problems(10, "trained"):
        prompt, written = answer(model, tokenizer, problem.question)
        agreed += agreement(model, prompt, written)
        tokens += len(written)
    shares = (agreed / tokens).tolist()
    assert 0.5 < shares[0] < 0.9 and shares[0] < shares[1] < shares[-1] == 1
