"""`model.generate(custom_generate=hispec.custom_generate)` does what `model.generate()` does."""

from itertools import pairwise

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StopStringCriteria,
    SynthIDTextWatermarkingConfig,
    TextStreamer,
)
from transformers.generation import LogitsProcessor

from hispec import custom_generate
from hispec.errors import UsageError
from tests.support import PROMPT, random_model
from tests.toy import chi_square

INPUTS = {"input_ids": torch.tensor([PROMPT])}
FAMILIES = ["llama", "qwen2", "mistral", "qwen3"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return random_model(request.param, layers=4)


@pytest.fixture(scope="module")
def llama():
    return random_model("llama", layers=4)


def both(model, **options):
    """Plain and hierarchical output for the same call."""
    ours = {key: options.pop(key) for key in ("draft_exit", "intermediate_exit", "draft_tokens") if key in options}
    plain = model.generate(**INPUTS, **options)
    return plain, model.generate(**INPUTS, **options, custom_generate=custom_generate, **ours)


@pytest.mark.parametrize("exits", [{}, {"draft_exit": 1, "intermediate_exit": 2}, {"draft_exit": 2}])
def test_greedy_is_equal(model, exits):
    plain, ours = both(model, max_new_tokens=40, do_sample=False, **exits)
    assert ours.tolist() == plain.tolist() and ours.shape == (1, len(PROMPT) + 40)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[3], [7, 1]]},
        {"min_new_tokens": 20, "eos_token_id": list(range(0, 24, 2)), "pad_token_id": 0},
        {"eos_token_id": [9, 14], "pad_token_id": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_logits_processors_and_ends_are_honoured(model, options):
    plain, ours = both(model, max_new_tokens=40, do_sample=False, draft_exit=1, intermediate_exit=2, **options)
    assert ours.tolist() == plain.tolist()


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_half_precision_logits_are_processed_in_float32(do_sample):
    """In bfloat16 a penalised logit would meet others that it only resembles."""
    seen = set()

    class Looks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.add(scores.dtype)
            return scores

    half = random_model("llama").to(torch.bfloat16)
    options = {"do_sample": do_sample, "repetition_penalty": 1.3, "logits_processor": [Looks()]}
    half.generate(**INPUTS, max_new_tokens=9, **options, custom_generate=custom_generate, draft_exit=1)
    assert seen == {torch.float32}


def test_a_processor_may_force_a_token_with_an_endless_score(llama):
    class Forces(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, input_ids[0, -1:] // 2 + 7, torch.inf)

    for options in ({"do_sample": False}, {"do_sample": True, "temperature": 1.0}):
        ours = llama.generate(
            **INPUTS, max_new_tokens=9, logits_processor=[Forces()], custom_generate=custom_generate, **options
        )[0].tolist()
        assert all(after == before // 2 + 7 for before, after in pairwise(ours[len(PROMPT) - 1 :]))


def test_processors_of_the_callers_own_are_honoured(llama):
    class ForbidsTheLast(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.scatter(1, input_ids[:, -1:], -torch.inf)

    plain, ours = both(llama, max_new_tokens=40, do_sample=False, logits_processor=[ForbidsTheLast()])
    assert ours.tolist() == plain.tolist()
    assert all(a != b for a, b in zip(ours[0, 4:], ours[0, 5:], strict=False))


def test_stopping_criteria_see_every_validated_token_once_and_none_else(llama):
    class Remembers(StoppingCriteria):
        def __init__(self):
            self.seen = []

        def __call__(self, input_ids, scores, **_):
            self.seen.append(input_ids[0].tolist())
            return torch.tensor([len(self.seen) == 23])

    criteria = [Remembers(), Remembers()]
    plain = llama.generate(**INPUTS, max_new_tokens=40, do_sample=False, stopping_criteria=criteria[:1])
    ours = llama.generate(
        **INPUTS, max_new_tokens=40, do_sample=False, stopping_criteria=criteria[1:], custom_generate=custom_generate
    )
    assert ours.tolist() == plain.tolist() and len(ours[0]) == len(PROMPT) + 23
    assert criteria[0].seen == criteria[1].seen


def test_the_streamer_prints_what_the_plain_streamer_prints(shipped_model, capsys):
    model = AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    inputs = tokenizer("Anna has 3 apples. Ben has 4 times as many.", return_tensors="pt")
    printed = []
    for options in (
        {"streamer": TextStreamer(tokenizer, skip_prompt=True)},
        {"spec_streamer": TextStreamer(tokenizer, skip_prompt=True), "custom_generate": custom_generate},
    ):
        model.generate(**inputs, max_new_tokens=30, max_length=None, do_sample=False, **options)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


def test_sampling_repeats_with_torchs_seed_and_has_the_models_distribution(llama):
    options = {"max_new_tokens": 2, "do_sample": True, "top_k": 3, "temperature": 0.8}

    def sample():
        return llama.generate(**INPUTS, **options, custom_generate=custom_generate, draft_exit=1)[0, len(PROMPT) :]

    torch.manual_seed(3)
    first = sample().tolist()
    torch.manual_seed(3)
    assert sample().tolist() == first
    counts, exact = torch.zeros(24, 24, dtype=torch.float64), torch.zeros(24, 24, dtype=torch.float64)
    for _ in range(400):
        counts[tuple(sample().tolist())] += 1

    def warped(text):
        values, ids = llama(torch.tensor([text])).logits[0, -1].topk(3)
        return zip(ids.tolist(), (values.double() / 0.8).softmax(-1).tolist(), strict=True)

    with torch.no_grad():
        for a, chance in warped(PROMPT):
            for b, then in warped([*PROMPT, a]):
                exact[a, b] = chance * then
    assert chi_square(counts.flatten(), exact.flatten()) > 1e-4


def test_an_output_object_has_the_sequences(llama):
    out = llama.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate, return_dict_in_generate=True)
    assert out.sequences.shape == (1, len(PROMPT) + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "one sequence at a time"),
        ({"do_sample": True, "num_return_sequences": 2}, "one sequence at a time"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}, "no padding"),
        ({"guidance_scale": 2.0}, "remembers earlier calls"),
        ({"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3])}, "remembers"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"dola_layers": "low"}, "leave out dola_layers"),
        ({"prompt_lookup_num_tokens": 3}, "leave out prompt_lookup_num_tokens"),
        ({"assistant_early_exit": 1}, "leave out assistant_early_exit"),
        ({"position_ids": torch.arange(0, 10, 2)[None]}, "leave out position_ids"),
        ({"labels": torch.tensor([PROMPT])}, "no use for labels"),
    ],
)
def test_what_it_does_not_do_is_refused(llama, options, message):
    with pytest.raises(ValueError, match=message):
        llama.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate, **options)


def test_embeddings_in_the_place_of_ids_are_refused_as_such(llama):
    with pytest.raises(ValueError, match="not inputs_embeds"):
        llama.generate(inputs_embeds=torch.randn(1, 4, 32), max_new_tokens=4, custom_generate=custom_generate)


def test_a_cache_of_the_callers_is_refused(llama):
    cache = llama(torch.tensor([[7, 8]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cache of its own"):
        llama.generate(**INPUTS, max_new_tokens=4, cache=cache, custom_generate=custom_generate)


@pytest.mark.parametrize("options", [{"draft_tokens": 0}, {"validate_every": -1}, {"draft_tokens": 2.5}])
def test_impossible_lengths_are_refused(llama, options):
    with pytest.raises(UsageError, match=r"(draft_tokens|validate_every) is"):
        llama.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate, **options)


def test_more_than_the_context_is_refused_not_cut(llama):
    with pytest.raises(UsageError, match="asked for are 129"):
        llama.generate(**INPUTS, max_new_tokens=124, custom_generate=custom_generate)


def test_stop_strings_come_as_a_criterion(shipped_model):
    model = AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    inputs = tokenizer("Anna has 3 apples. Ben has 4 times as many.", return_tensors="pt")
    options = {"max_new_tokens": 40, "max_length": None, "do_sample": False}
    plain = model.generate(**inputs, **options)
    stop = tokenizer.decode(plain[0, -12:-9])
    criteria = [StopStringCriteria(tokenizer, [stop])]
    expected = model.generate(**inputs, **options, stopping_criteria=criteria)
    ours = model.generate(**inputs, **options, stopping_criteria=criteria, custom_generate=custom_generate)
    assert ours.tolist() == expected.tolist() and ours.shape[1] < plain.shape[1]


def test_a_model_in_training_stays_in_training():
    model = random_model("llama").train()
    model.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate)
    assert model.training


def test_every_module_stays_in_the_mode_that_its_owner_chose():
    model = random_model("llama").train()
    model.model.layers[1].eval()
    model.model.norm.eval()
    before = [module.training for module in model.modules()]
    model.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate)
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2


def test_impossible_exits_and_models_are_refused(llama):
    with pytest.raises(UsageError):
        llama.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate, draft_exit=9)
    eager = random_model("llama")
    eager.set_attn_implementation("eager")
    with pytest.raises(UsageError, match="attention"):
        eager.generate(**INPUTS, max_new_tokens=4, custom_generate=custom_generate)
