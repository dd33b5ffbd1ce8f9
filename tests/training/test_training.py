"""The training recipe: its formulas, and a run that resumes exactly where it stopped."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.muon import Muon, orthogonalize
from training.recipe import exit_weights, exits_of_step, layer_dropout
from training.tokenizer import ASSISTANT, END, train_tokenizer
from training.train import main, make_batch

SMALL = [
    *("--hidden", "16", "--intermediate", "24", "--layers", "4", "--heads", "2", "--kv-heads", "1"),
    *(
        "--rows",
        "2",
        "--row-tokens",
        "160",
        "--long-row-tokens",
        "320",
        "--context",
        "512",
        "--tokenizer-samples",
        "100",
    ),
    *("--period", "2", "--device", "cpu", "--threads", "1", "--vocab", "300", "--warmup", "2"),
]


def test_layer_dropout_grows_from_nothing_to_its_maximum():
    rates = [layer_dropout(layer, 16, 0.2) for layer in range(16)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.2) and rates == sorted(rates)


def test_the_curriculum_visits_every_exit_and_always_the_last():
    steps = [exits_of_step(step, 16, 8) for step in range(8)]
    assert {exit_ for exits in steps for exit_ in exits} == set(range(1, 17))
    assert all(exits[-1] == 16 and exits == sorted(exits) for exits in steps)


def test_deeper_exits_weigh_more_and_the_weights_sum_to_one():
    weights = exit_weights([1, 9, 16])
    assert sum(weights) == pytest.approx(1) and weights == sorted(weights)
    assert weights[0] == pytest.approx(17 / 32 * weights[-1])


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8)])
def test_muon_makes_all_directions_equally_strong(shape):
    update = orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    strengths = torch.linalg.svdvals(update)
    assert update.shape == shape
    assert strengths.min() > 0.5 and strengths.max() < 1.5


def test_only_what_the_assistant_says_is_learnt():
    tokenizer = train_tokenizer(400, seed=1, samples=200)
    ids, learn = make_batch(tokenizer, seed=1, step=0, rows=2, row_tokens=200)
    said = tokenizer.decode(ids[0][learn[0]])
    assert "####" in said and "?" not in said
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    assert end in ids[0][learn[0]] and assistant not in ids[0][learn[0]]


def test_digits_are_tokens_of_their_own():
    tokenizer = train_tokenizer(400, seed=1, samples=200)
    assert tokenizer.tokenize("12345") == list("12345")
    assert tokenizer.decode(tokenizer("é 12 € \n")["input_ids"]) == "é 12 € \n"


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    main([*SMALL, "--out", str(whole), "--steps", "6", "--save-every", "3"])
    with pytest.raises(SystemExit, match="--resume"):
        main([*SMALL, "--out", str(whole), "--steps", "6"])
    main([*SMALL, "--out", str(halves), "--steps", "6", "--save-every", "3", "--stop-after", "3"])
    main([*SMALL, "--out", str(halves), "--steps", "6", "--save-every", "3", "--resume"])
    models = [AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32) for run in (whole, halves)]
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name, atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(whole / "model").chat_template
    lines = [json.loads(line) for line in (halves / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[0]["loss"] > 0


def test_a_layer_that_every_row_skipped_is_left_alone():
    """A batch of three long rows lost layer 14 once in some thousand steps, and with it the whole run."""
    still, moving = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    moving.grad = torch.eye(2)
    Muon([still, moving], lr=0.1).step()
    assert torch.equal(still, torch.ones(2, 2)) and not torch.equal(moving, torch.ones(2, 2))


def test_an_ordinary_model_learns_at_its_last_layer_alone(tmp_path):
    arguments = [*SMALL, "--steps", "11", "--save-every", "11", "--ordinary", "--p-max", "0.5"]
    main(["--out", str(tmp_path), *arguments])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [list(line["exits"]) for line in lines] == [["4"], ["4"]]
