"""The generation config: the engine writes what `generate` writes, and lists the options that it does not apply."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hispec import Engine
from hispec.answer import Generation
from hispec.api import unprofiled
from hispec.bench.arms import make_arms
from hispec.errors import LosslessnessError
from hispec.generation import MAKERS, read_generation_options
from hispec.precedence import resolve_settings
from hispec.profile import Profile, TargetSection
from tests.support import hierarchy_of, random_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shipped_model):
    """A checkpoint of random weights, with a tokenizer of a larger vocabulary."""
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    random_model("llama", layers=4, vocab=40).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(folder):
    """The checkpoint's output without options."""
    return ids_of(load(folder, {}))


def load(folder, config, **options):
    """An engine on the checkpoint with such a generation config."""
    (folder / "generation_config.json").write_text(json.dumps(config))
    return Engine.from_profile(
        unprofiled(str(folder), 1, 2), dtype="float32", max_new_tokens=LENGTH, draft_tokens=3, **options
    )


def ids_of(engine, prompt=PROMPT):
    return engine.decoder().token_ids(prompt, LENGTH)


def by_transformers(folder, prompt=PROMPT, **options):
    """The output of `generate` with the same generation config."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.generate(torch.tensor([prompt]), max_new_tokens=LENGTH, max_length=None, pad_token_id=0, **options)


def shaping(plain):
    """A value of every option that changes what is written, and the prompt."""
    first, second, third, *_ = plain
    some = sorted(set(plain))
    return {
        "suppress_tokens": some[:3],
        "begin_suppress_tokens": [first],
        "no_repeat_ngram_size": 1,
        "encoder_no_repeat_ngram_size": 1,
        "encoder_repetition_penalty": 3.0,
        "repetition_penalty": 1.7,
        "bad_words_ids": [[first], [second, third]],
        "sequence_bias": [[[third], 9.0], [[third, second], -9.0]],
        "forced_eos_token_id": [first, second],
        "exponential_decay_length_penalty": [3, 1.3],
        "min_length": len(PROMPT) + 9,
        "min_new_tokens": 9,
        "watermarking_config": {"bias": 4.0, "context_width": 2},
        "remove_invalid_values": True,
        "renormalize_logits": True,
    }


def config_of(option, plain):
    """A generation config with one option, and where it is about the end of a text, ends to be about."""
    config = {option: shaping(plain)[option]}
    if option in ("min_length", "min_new_tokens"):
        config["eos_token_id"] = plain[3:5]
    if option == "exponential_decay_length_penalty":
        config["eos_token_id"] = [next(token for token in range(40) if token not in plain)]
    return config


ALONE = [option for option in shaping([0, 1, 2]) if option not in ("remove_invalid_values", "renormalize_logits")]


@pytest.mark.parametrize("option", shaping([0, 1, 2]))
def test_the_engine_writes_what_generate_writes(folder, plain, option):
    engine = load(folder, config_of(option, plain))
    expected = by_transformers(folder)[0, len(PROMPT) :].tolist()
    assert ids_of(engine) == expected
    if option in ALONE:
        assert expected != ids_of(
            load(folder, {key: v for key, v in config_of(option, plain).items() if key != option})
        )


def test_several_options_at_once_and_a_forced_beginning(folder, plain):
    several = {"suppress_tokens": plain[:2], "no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "min_new_tokens": 5}
    engine = load(folder, {**several, "forced_bos_token_id": 37, "forced_eos_token_id": 5, "eos_token_id": plain[4:6]})
    for prompt in (PROMPT, PROMPT[:1]):
        expected = by_transformers(folder, prompt)[0, len(prompt) :].tolist()
        assert ids_of(engine, prompt) == expected
        assert (expected[0] == 37) == (len(prompt) == 1)


@pytest.mark.parametrize(
    "config",
    [
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.02, "temperature": 2.0},
        {"eta_cutoff": 0.05},
        {"top_h": 0.4, "top_k": 9},
        {"min_p": 0.02, "typical_p": 0.9, "suppress_tokens": [1, 2]},
        {"watermarking_config": {"bias": 3.0}, "top_p": 0.8},
        {"no_repeat_ngram_size": 2, "top_p": 0.7, "renormalize_logits": True},
        {"sequence_bias": [[[7], 2.0]], "temperature": 0.7},
    ],
    ids=lambda config: next(iter(config)),
)
def test_sampling_has_the_distribution_of_generate(folder, config):
    engine = load(folder, {"do_sample": True, **config})
    torch.manual_seed(0)
    out = by_transformers(folder, return_dict_in_generate=True, output_scores=True, output_logits=True)
    text, limit = out.sequences[0].tolist(), len(PROMPT) + LENGTH
    sampling = engine._sampling(PROMPT, LENGTH)
    processed = sampling.processors(torch.cat(out.logits), text[: len(PROMPT)], text[len(PROMPT) : limit - 1])
    ours = torch.stack([sampling.warp(row).softmax(-1) for row in processed])
    torch.testing.assert_close(ours, torch.cat(out.scores).softmax(-1))


@pytest.mark.parametrize("option", ALONE)
def test_levels_that_lack_words_change_nothing(folder, plain, option):
    """Some tokens are forced, and some are those left where others are excluded."""
    engine = load(folder, config_of(option, plain))
    expected, stack = ids_of(engine), engine.stacks[str(folder)]
    for words in (range(0, 40, 3), plain[:2]):
        hierarchy = hierarchy_of(stack, 1, 2, words=[words, words])
        assert engine.decoder(hierarchy).token_ids(PROMPT, LENGTH) == expected


OTHER = {
    "num_beams": 3,
    "num_return_sequences": 1,
    "use_cache": False,
    "cache_implementation": "static",
    "max_time": 1e-9,
    "prompt_lookup_num_tokens": 4,
    "assistant_early_exit": 2,
    "num_assistant_tokens": 3,
    "guidance_scale": 1.5,
    "penalty_alpha": 0.6,
    "top_k": 4,
    "max_length": 12,
    "output_scores": True,
    "return_dict_in_generate": True,
    "stop_strings": ["never written"],
}


@pytest.mark.parametrize("name", ["hf", "hf-early-exit", "prompt-lookup", "single-layer", "hispec"])
def test_every_arm_of_a_benchmark_decodes_under_equal_conditions(folder, plain, name):
    for options in (OTHER, config_of("min_new_tokens", plain) | config_of("sequence_bias", plain)):
        for stack in ("fused", "transformers"):
            reference, arm = make_arms(["autoregressive", name], load(folder, options, stack=stack))
            expected = reference.answer(PROMPT, LENGTH, (), 0).token_ids
            assert arm.answer(PROMPT, LENGTH, (), 0).token_ids == expected
            assert (expected == plain) == (options is OTHER)


@pytest.mark.parametrize("name", ["hf", "hispec"])
def test_sampled_arms_have_the_same_conditions_too(folder, name):
    """With nearly equal probabilities, typical sampling and top-k leave few tokens."""
    engine = load(
        folder, {"do_sample": True, "temperature": 50.0, "top_k": 3, "suppress_tokens": list(range(0, 40, 2))}
    )
    (arm,) = make_arms([name], engine)
    firsts = {arm.answer(PROMPT, 1, (), seed).token_ids[0] for seed in range(40)}
    assert len(firsts) == 3 and all(token % 2 for token in firsts)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_beams": 3, "max_time": 2.0}, "not applied here: max_time 2.0, num_beams 3"),
        ({"guidance_scale": 1.5, "use_cache": False}, "not applied here: guidance_scale 1.5"),
        ({"token_healing": True, "_from_model_config": True, "custom": [1]}, "not applied here: token_healing True"),
        ({"watermarking_config": {"ngram_len": 3, "keys": [1]}}, "not usable, so left out: watermarking_config"),
        ({"bad_words_ids": [[9999]]}, "not usable, so left out: bad_words_ids [[9999]]"),
        ({"no_repeat_ngram_size": "two", "num_beams": 2}, "num_beams 2; not usable, so left out: no_repeat_ngram_size"),
        ({"do_sample": True, "typical_p": -1, "top_k": -1}, "left out: top_k -1, typical_p -1"),
        ({"stop_strings": [""], "eos_token_id": "</s>"}, "left out: eos_token_id '</s>', stop_strings ['']"),
        ({"temperature": "hot", "do_sample": True}, "left out: temperature 'hot'"),
        ({"forced_bos_token_id": 99}, "left out: forced_bos_token_id 99"),
        ({"forced_eos_token_id": [1, 400]}, "left out: forced_eos_token_id"),
        ({"cache_implementation": "none such", "num_beams": 2}, "not applied here: num_beams 2"),
        ({"max_new_tokens": 0, "repetition_penalty": -2}, "left out: max_new_tokens 0, repetition_penalty -2"),
    ],
)
@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_what_is_not_applied_is_named_on_one_line_and_blocks_nothing(folder, plain, config, said, stack):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = load(folder, config, stack=stack)
    (line,) = [str(warning.message) for warning in caught if "generation_config" in str(warning.message)]
    assert said in line and "\n" not in line
    assert config.get("do_sample") or ids_of(engine) == plain


@pytest.mark.parametrize(
    "config",
    [
        {
            "num_beams": 1,
            "guidance_scale": 1.0,
            "typical_p": 0.5,
            "top_p": 0.5,
            "bad_words_ids": None,
            "max_length": 99,
        },
        {"transformers_version": "4.31.0", "_from_model_config": True, "pad_token_id": 0, "use_cache": True},
        {"chat_format": "chatml", "user_token_id": 3, "device": "cuda:7", "seed": "x", "policy": 4},
        {"forced_eos_token_id": None, "suppress_tokens": [], "num_beam_groups": 1, "diversity_penalty": 0.0},
    ],
)
def test_what_asks_for_nothing_is_passed_over_in_silence(folder, plain, config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids_of(load(folder, config)) == plain


@pytest.mark.parametrize("text", ["{", "[1]", "\xff\xfe"])
def test_a_broken_generation_config_is_left_out(folder, plain, text):
    load(folder, {})
    (folder / "generation_config.json").write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"generation_config\.json is not a JSON object"):
        engine = Engine.from_profile(unprofiled(str(folder), 1, 2), dtype="float32", max_new_tokens=LENGTH)
    assert ids_of(engine) == plain


def test_options_in_an_old_config_count_where_there_is_no_generation_config(folder, plain):
    load(folder, {})
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "no_repeat_ngram_size": 1}))
    try:
        engine = Engine.from_profile(unprofiled(str(folder), 1, 2), dtype="float32", max_new_tokens=LENGTH)
        assert ids_of(engine) == by_transformers(folder)[0, len(PROMPT) :].tolist() != plain
    finally:
        path.write_text(before)


def test_each_of_the_ends_that_a_generation_config_names_ends_an_answer(folder, plain):
    for at, token in enumerate(plain):
        others = [other for other in range(40) if other not in plain][:2]
        for ends in (token, [token, *others], [*others, token], [others[0], token, others[1]]):
            assert ids_of(load(folder, {"eos_token_id": ends})) == plain[: plain.index(token) + 1]
        if at == 3:
            break


def test_stop_strings_act_as_stop_does():
    engine = Engine.from_profile("tiny", max_new_tokens=60)
    question = "Anna has 3 apples. Ben has 4 times as many. How many apples do they have together?"
    engine.generation = replace(engine.generation, stop=("+",))
    assert engine.generate(question).text == engine.generate(question, stop=["+"]).text
    assert engine.generate(question).finish_reason == "stop"
    assert engine.generate(question, stop=["####"]).text.endswith("\n")


def test_a_difference_is_measured_on_processed_scores(folder, plain):
    """Excluded tokens are no rivals of the token that was written."""
    engine = load(folder, {"suppress_tokens": [token for token in range(40) if token not in (7, 8)]})
    logits = by_transformers(folder, return_dict_in_generate=True, output_logits=True).logits[0][0]
    difference = engine.examine(PROMPT, [9, 9], ids_of(engine))
    assert difference.gap == pytest.approx(float((logits[7] - logits[8]).abs()), rel=1e-3)
    forced = load(folder, {"forced_eos_token_id": 5})
    difference = forced.examine(PROMPT, [*ids_of(forced)[:-1], 6], ids_of(forced))
    assert (difference.at, difference.kind) == (LENGTH - 1, "error")


def test_verify_knows_where_an_interrupted_answer_would_have_ended(folder):
    engine = load(folder, {"forced_eos_token_id": 5, "no_repeat_ngram_size": 2})
    answer = Generation("p", "", PROMPT, "", ids_of(engine), "length", engine.new_stats(), {})
    engine.check_lossless(answer)
    assert answer.token_ids[-1] == 5 and answer.lossless
    part = replace(answer, token_ids=answer.token_ids[:7], finish_reason="interrupted")
    engine.check_lossless(part)
    assert part.lossless
    with pytest.raises(LosslessnessError):
        engine.check_lossless(replace(part, token_ids=[*part.token_ids[:6], 5]))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"temperature": 1e-6}, {"temperature": 0.0}),
        ({"temperature": 1e9}, {"temperature": 1e4}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"top_p": 0.0}, {"top_p": 1e-9}),
        ({"top_p": 1.5}, {"top_p": 1.0}),
        ({"repetition_penalty": 1e-5}, {"repetition_penalty": 0.01}),
        ({"repetition_penalty": 1e9}, {"repetition_penalty": 100}),
        ({"top_k": -1, "min_p": 7, "max_new_tokens": "many"}, {"top_k": 50, "min_p": 0.0, "max_new_tokens": 256}),
        ({"temperature": float("nan"), "top_p": True, "repetition_penalty": []}, {"temperature": 1.0}),
    ],
)
def test_no_setting_in_a_generation_config_blocks_a_model(config, expected):
    profile = Profile(name="p", target=TargetSection(model="m"))
    settings, _ = resolve_settings({}, profile, generation_config={"do_sample": True, **config})
    assert {name: getattr(settings, name) for name in expected} == expected


def test_every_option_that_is_applied_is_one_that_transformers_has():
    assert vars(GenerationConfig()).keys() >= MAKERS.keys()
    assert read_generation_options({}, 40, ()).values == {}
