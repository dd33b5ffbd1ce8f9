"""Making a model twice as wide: the logits stay equal at every exit, the halves diverge, and a run can be resumed."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training.larger import learning_rate, main, make_batch, widen

TINY = Path(__file__).parents[2] / "core" / "hispec" / "tiny" / "model"


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # as training leaves them: all weights matter, and norms differ from unit to unit
        for name, part in model.named_parameters():
            part.copy_(torch.rand_like(part) + 0.5 if "norm" in name else torch.randn_like(part) * 0.2)
    return model


@pytest.mark.parametrize("noise", [0.0, 0.5])
@torch.inference_mode()
def test_a_wider_model_has_the_same_logits_at_every_exit(narrow, noise):
    wide = widen(narrow, noise, seed=1).eval()
    assert wide.config.hidden_size == 48 and wide.config.num_attention_heads == 12
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    own, other = (model.model(ids, output_hidden_states=True).hidden_states for model in (narrow, wide))
    torch.testing.assert_close(wide(ids).logits, narrow(ids).logits, atol=1e-4, rtol=1e-4)
    for one, two in zip(own[1:-1], other[1:-1], strict=True):
        expected = narrow.lm_head(narrow.model.norm(one))
        torch.testing.assert_close(wide.lm_head(wide.model.norm(two)), expected, atol=1e-4, rtol=1e-4)


def halves_apart(model, ids):
    """The distance between the gradients of the two halves of the embedding, relative to their size."""
    model(ids, labels=ids).loss.backward()
    first, second = model.model.embed_tokens.weight.grad.chunk(2, 1)
    return float((first - second).norm() / first.norm())


def test_only_a_random_division_lets_the_pairs_part(narrow):
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    assert halves_apart(widen(narrow, 0.0, seed=1), ids) < 1e-4
    assert halves_apart(widen(narrow, 0.5, seed=1), ids) > 0.1


def test_rows_begin_with_a_text_and_differ_from_step_to_step():
    texts = [[first] * 7 for first in range(5)]
    rows = make_batch(texts, seed=1, step=0, rows=3, row_tokens=20)
    assert rows.shape == (3, 20)
    assert all(row[7 * at : 7 * at + 6].unique().numel() == 1 for row in rows for at in range(2))
    assert not torch.equal(rows, make_batch(texts, seed=1, step=1, rows=3, row_tokens=20))


def test_the_rate_rises_stays_and_falls_to_nothing():
    rates = [learning_rate(share, 1.0) for share in (0.0, 0.03, 0.06, 0.5, 0.75, 1.0)]
    assert 0 < rates[0] < rates[1] < 1.0
    assert rates[2:] == [1.0, 1.0, pytest.approx(0.5), 0.0]


def test_an_interrupted_run_goes_on_at_its_checkpoint(tmp_path):
    text = tmp_path / "train.jsonl"
    text.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(9)))
    out = tmp_path / "out"
    small = ["--from", str(TINY), "--gsm8k", str(text), "--out", str(out), "--rows", "1", "--row-tokens", "16"]
    main([*small, "--threads", "1", "--minutes", "0.001"])
    with pytest.raises(SystemExit, match="--resume"):
        main([*small, "--minutes", "1"])
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    main([*small, "--threads", "1", "--minutes", str(saved["seconds"] / 60 + 0.001), "--resume"])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(lines) > saved["step"] > 0
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    narrow, wide = (AutoModelForCausalLM.from_pretrained(folder) for folder in (TINY, out))
    assert wide.dtype == torch.bfloat16 and wide.config.hidden_size == 2 * narrow.config.hidden_size
    assert wide.generation_config.eos_token_id == narrow.generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(TINY).get_vocab()
