"""Fitting makes exits agree with the whole model, on text they have not seen, and touches nothing else."""

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoConfig, AutoModelForCausalLM

from hispec import budget as budgets
from hispec.budget import Budget
from hispec.errors import UnavailableError, UsageError
from hispec.exits import fit as fitting
from hispec.exits.fit import FitSettings, fit_exits
from hispec.exits.text import FEWEST_ROWS, read_rows, split
from hispec.exits.verdict import WORTH, best_speedup
from hispec.models.dummy import dummy_tokenizer
from hispec.models.transformers_stack import TransformersStack
from tests.hispec.models.test_families import SMALL
from tests.support import random_model

SETTINGS = FitSettings(steps=40, batch_rows=4, evaluate_every=10)


def text(rows, seed):
    return torch.randint(0, 24, (rows, 48), generator=torch.Generator().manual_seed(seed))


ROWS, HELD_OUT = text(64, 0), text(8, 1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_exits_come_nearer_to_the_whole_model_and_its_weights_stay(family):
    model = random_model(family)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    stack = TransformersStack(model, "random")
    fit = fit_exits(stack, [1, 2], ROWS, HELD_OUT, SETTINGS)
    for exit_ in (1, 2):
        assert fit.after[exit_].kl < 0.8 * fit.before[exit_].kl
        assert fit.after[exit_].agreement > fit.before[exit_].agreement + 0.03
    for name, part in model.state_dict().items():
        torch.testing.assert_close(part, before[name], rtol=0, atol=0)


def gpt_neox():
    """A model whose norm and head have other names than a Llama's."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt_neox", **SMALL)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


MODELS = {
    "llama": random_model,
    "soft cap": lambda: random_model(final_logit_softcapping=1.0),
    "gpt_neox": gpt_neox,
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_reported_is_what_a_level_reads(kind):
    stack = TransformersStack(MODELS[kind](), "random")
    fit = fit_exits(stack, [2], ROWS, HELD_OUT, SETTINGS)
    translator, agreed, plain = fit.translators[2].on(stack), 0, 0
    for row in HELD_OUT:
        hidden = stack.run(stack.embed(row.tolist()), 0, 2, 0)
        final = stack.head(stack.run(hidden, 2, 4, 0)).argmax(-1)
        agreed += int((stack.head(translator(hidden)).argmax(-1) == final).sum())
        plain += int((stack.head(hidden).argmax(-1) == final).sum())
    assert agreed / HELD_OUT.numel() == pytest.approx(fit.after[2].agreement)
    assert plain / HELD_OUT.numel() == pytest.approx(fit.before[2].agreement)
    assert fit.after[2].kl == pytest.approx(sum(divergence(stack, translator, row) for row in HELD_OUT) / len(HELD_OUT))
    assert fit.after[2].kl < 0.9 * fit.before[2].kl


def divergence(stack, translator, row):
    """KL(final || exit 2) of what the levels read, nats per token."""
    hidden = stack.run(stack.embed(row.tolist()), 0, 2, 0)
    final = stack.head(stack.run(hidden, 2, 4, 0)).log_softmax(-1)
    return float(kl_div(stack.head(translator(hidden)).log_softmax(-1), final, log_target=True, reduction="batchmean"))


def test_equal_seeds_give_equal_translators():
    fits = [fit_exits(TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, SETTINGS) for _ in range(2)]
    torch.testing.assert_close(fits[0].translators[1].weight, fits[1].translators[1].weight, rtol=0, atol=0)


def test_an_exit_that_nothing_improves_keeps_the_identity_and_is_given_up():
    settings = FitSettings(steps=40, batch_rows=1, evaluate_every=2, patience=2, learning_rate=1.0)
    fit = fit_exits(TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, settings)
    assert (fit.ended, fit.step) == ("no improvement", 4)
    assert fit.after == fit.before and not fit.translators[1].weight.any() and not fit.translators[1].bias.any()


def test_a_budget_ends_it_with_what_was_found():
    rows = []
    fit = fit_exits(
        TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, SETTINGS, rows.append, budget=Budget(1e-9)
    )
    assert (fit.ended, fit.step, fit.looks_at) == ("budget", 1, 1)
    assert fit.after[1].kl < fit.before[1].kl


def test_a_budget_counts_from_the_start_and_leaves_time_for_the_last_look(monkeypatch):
    """On a clock on which every row takes a second: 30 were gone at the start, and a look has to fit in."""
    clock = [1030.0]
    for module in (fitting.time, budgets):
        monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    real = fitting._run

    def slow(*arguments):
        clock[0] += 1.0
        return real(*arguments)

    monkeypatch.setattr(fitting, "_run", slow)
    stack = TransformersStack(random_model(), "random")
    fit = fit_exits(stack, [1], ROWS, HELD_OUT, SETTINGS, budget=Budget(100.0, began=1000.0))
    assert fit.ended == "budget" and fit.looks_at == 7  # a tenth of the 70 seconds that are left
    assert 98.0 <= clock[0] - 1000.0 <= 100.0


def test_every_row_of_a_look_is_told_and_what_is_least(monkeypatch):
    seen = []
    fit_exits(
        TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, SETTINGS,
        lambda fit: seen.append((fit.step, fit.looked, bool(fit.before), fit.least > 0)),
    )  # fmt: skip
    assert seen[:9] == [(0, looked, False, looked > 0) for looked in range(9)]
    assert seen[9] == (1, None, True, True)


def test_an_interrupt_before_the_first_update_leaves_nothing_to_keep():
    looked = []
    with pytest.raises(KeyboardInterrupt):
        fit_exits(
            TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, SETTINGS,
            lambda fit: looked.append(fit.looked), interrupted=lambda: len(looked) > 2,
        )  # fmt: skip
    assert looked == [0, 1, 2]


def test_an_interrupt_ends_an_update_after_the_row_under_way(monkeypatch):
    ran, asked = [], []
    real = fitting._run
    monkeypatch.setattr(fitting, "_run", lambda *arguments: ran.append(1) or real(*arguments))

    def see(fit):
        if fit.step == 1 and fit.looked is None:
            asked.append(len(ran))

    fit = fit_exits(
        TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, SETTINGS, see, interrupted=lambda: bool(asked)
    )
    assert (fit.ended, fit.step) == ("interrupted", 1)
    assert len(ran) == len(HELD_OUT) + SETTINGS.batch_rows + len(HELD_OUT)


def test_an_interrupt_ends_it_with_what_was_found():
    steps = [0]
    stack = TransformersStack(random_model(), "random")
    fit = fit_exits(
        stack, [1], ROWS, HELD_OUT, SETTINGS, lambda so_far: steps.append(so_far.step), lambda: steps[-1] == 6
    )
    assert (fit.ended, fit.step) == ("interrupted", 6) and fit.after[1].kl < fit.before[1].kl


def test_states_that_are_not_numbers_are_refused():
    model = random_model()
    model.model.layers[0].mlp.down_proj.weight.data.fill_(torch.inf)
    with pytest.raises(UnavailableError, match="exit 1 is not a number"):
        fit_exits(TransformersStack(model, "random"), [1], ROWS, HELD_OUT, SETTINGS)


def test_running_out_of_memory_is_told_with_a_hint(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fitting, "_update", full)
    with pytest.raises(UnavailableError) as caught:
        fit_exits(TransformersStack(random_model(), "random"), [1], ROWS, HELD_OUT, SETTINGS)
    assert "--row-tokens" in caught.value.hint


class Beginning:
    """A tokenizer that begins every text with token 9, as Llama's do."""

    def __init__(self):
        self.inner = dummy_tokenizer(256)

    def __call__(self, text, add_special_tokens=True):
        ids = self.inner(text)["input_ids"]
        return {"input_ids": [9, *ids] if add_special_tokens else ids}


def test_rows_are_the_text_in_order_each_begun_as_a_text(tmp_path):
    path = tmp_path / "text"
    written = "".join(f"line {number}\r\n" for number in range(20_000))
    path.write_bytes(written.encode())
    rows = read_rows(path, Beginning(), 256, 65, 10_000)
    assert (rows[:, 0] == 9).all()
    expected = dummy_tokenizer(256)(written)["input_ids"]
    assert rows[:, 1:].reshape(-1).tolist() == expected[: len(rows) * 64] and len(rows) == len(expected) // 64
    assert len(read_rows(path, Beginning(), 256, 65, 20)) == 20


@pytest.mark.parametrize(
    ("content", "vocab_size", "message"),
    [
        (None, 256, "cannot be read: No such file"),
        (b"caf\xe9 " * 1000, 256, "not UTF-8 text"),
        (b"too short", 256, "has 9 tokens"),
        (b"", 256, "has 0 tokens"),
        (b"x" * 1000, 50, "vocabulary of 50"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, content, vocab_size, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_rows(path, dummy_tokenizer(256), vocab_size, 64, 100)
    assert message in caught.value.message


def test_where_time_is_short_as_much_text_is_read_as_it_takes(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"some text\n" * 100_000)
    rows = read_rows(path, dummy_tokenizer(256), 256, 64, 10_000, lambda: True)
    assert FEWEST_ROWS <= len(rows) < 2000


@pytest.mark.parametrize(
    ("agreement", "exit_layer", "num_layers", "pays"),
    [
        (0.08, 4, 16, False),
        (0.08, 1, 16, False),  # 1.08 tokens for 1.06 times the time
        (0.3, 4, 16, False),
        (0.6, 4, 16, True),
        (0.9, 12, 16, True),
        (0.5, 8, 16, False),
        (0.0, 1, 80, False),
        (1.0, 1, 80, True),
    ],
)
def test_an_exit_pays_where_its_agreement_outweighs_its_layers(agreement, exit_layer, num_layers, pays):
    assert (best_speedup(agreement, exit_layer, num_layers) >= WORTH) == pays


def test_the_best_speedup_is_what_drafting_that_many_tokens_yields():
    assert best_speedup(1.0, 1, 4) == pytest.approx(17 / 5)
    assert best_speedup(0.5, 1, 4) == pytest.approx(1.5 / 1.25)
    assert best_speedup(0.2, 3, 4) < 1


def test_held_out_rows_are_spread_and_not_fitted_on():
    rows = torch.arange(100)[:, None]
    fitted, held_out = split(rows, 5)
    assert sorted(fitted[:, 0].tolist() + held_out[:, 0].tolist()) == list(range(100))
    assert len(held_out) == 5 and held_out.min() < 25 and held_out.max() > 75
    assert len(split(rows, 1000)[1]) == 10 and len(split(rows[:8], 1000)[1]) == 1
