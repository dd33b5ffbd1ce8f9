"""GGUF files: every kind of blocks is read as transformers reads it, and faulty files are refused before weights are read."""

import sys
from dataclasses import replace

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hispec.errors import HispecError, UnavailableError, UsageError
from hispec.memory import estimate
from hispec.models import dtypes
from hispec.models.checkpoint import Checkpoint
from hispec.models.digest import digests_of_profile
from hispec.models.loading import check_weights, load_stack
from hispec.models.placement import Placement
from hispec.models.rotary import inverse_frequencies
from hispec.models.sharding import Shard
from hispec.models.tokenizer import load_tokenizer
from hispec.models.translator import digest_of_model
from hispec.profile import Profile, TargetSection
from hispec.settings import Settings
from tests.gguf_files import TEMPLATE, small_model, write
from tests.support import PROMPT, decode_ids, hierarchy_of

KINDS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
SUPERBLOCKS = (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 128},  # which transformers takes for granted
}


def read_by_transformers(path):
    """The model as transformers reads the file by itself."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )


def load(path, stack="auto", dtype="float32", **options):
    return load_stack(Checkpoint(str(path)), Placement(stack=stack, dtype=dtype, **options))


def same_weights(path):
    """Whether the fused stack has the numbers that transformers reads."""
    expected, found = read_by_transformers(path).state_dict(), load(path, "fused").parts
    assert found.keys() <= expected.keys() and len(found) > 30
    return all(torch.equal(part, expected[name]) for name, part in found.items())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_read_as_transformers_reads_it(kind, tmp_path):
    path = write(tmp_path / "model.gguf", small_model(), kind)
    assert same_weights(path)
    stored = Checkpoint(str(path)).config.dtype
    assert stored == {Kind.F32: "float32", Kind.F16: "float16", Kind.BF16: "bfloat16"}.get(kind)


@pytest.mark.parametrize("kind", SUPERBLOCKS, ids=lambda kind: kind.name)
def test_blocks_of_256_are_read_as_transformers_reads_them(kind, tmp_path):
    model = small_model(hidden_size=256, intermediate_size=256, head_dim=64, layers=4)
    assert same_weights(write(tmp_path / "model.gguf", model, kind))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_transformers_writes_on_both_stacks(family, tmp_path):
    model = small_model(family, **FAMILIES[family])
    path = write(tmp_path / "model.gguf", model, architecture="llama" if family == "mistral" else None)
    assert same_weights(path)
    expected = read_by_transformers(path).generate(torch.tensor([PROMPT]), max_new_tokens=50, do_sample=False)
    for kind in ("fused", "transformers"):
        stack = load(path, kind)
        assert stack.kind == kind
        assert (
            decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4), max_new_tokens=50) == expected[0, len(PROMPT) :].tolist()
        )


def test_the_configuration_is_what_transformers_makes_of_the_file(tmp_path):
    for family in ("llama", "qwen2", "qwen3"):
        checkpoint = Checkpoint(str(write(tmp_path / family / "model.gguf", small_model(family))))
        theirs = AutoConfig.from_pretrained(tmp_path / family, gguf_file="model.gguf").to_dict()
        ours = checkpoint.load_original().to_dict()
        if family != "llama":  # whose heads' size transformers takes for granted
            theirs["head_dim"] = 16
        differing = {key for key in ours.keys() | theirs if ours.get(key) != theirs.get(key)}
        assert differing <= {
            "_model_name_or_path",
            "_name_or_path",
            "bos_token_id",
            "unk_token_id",
            "eos_token_id",
            "dtype",
        }
        assert checkpoint.config.eos_ids == {theirs["eos_token_id"]}


def test_what_ends_a_turn_ends_an_answer(tmp_path):
    path = write(tmp_path / "model.gguf", small_model(), tokenizer__ggml__eot_token_id=7)
    assert Checkpoint(str(path)).config.eos_ids == {4, 7}


def test_the_tokenizer_and_its_template_are_what_transformers_makes_of_the_file(tmp_path):
    checkpoint = Checkpoint(str(write(tmp_path / "model.gguf", small_model())))
    ours, theirs = load_tokenizer(checkpoint), AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template == TEMPLATE
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.eos_token == "<|end|>" and ours("Tom has 12 apples.<|end|>").input_ids[-1] == 4


def test_scaled_frequencies_of_llama_3_are_read(tmp_path):
    # transformers leaves them out
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters = scaled | {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    model = small_model(rope_parameters=parameters)
    config = Checkpoint(str(write(tmp_path / "plain" / "model.gguf", model))).config
    plain, _ = inverse_frequencies(config)
    model.save_pretrained(tmp_path / "whole")
    expected, _ = inverse_frequencies(Checkpoint(str(tmp_path / "whole")).config)
    assert not torch.equal(plain, expected)
    model.state_dict = lambda own=model.state_dict: {"rope_freqs.weight": plain / expected, **own()}
    path = write(tmp_path / "scaled" / "model.gguf", model)
    found, _ = inverse_frequencies(Checkpoint(str(path)).config)
    assert torch.allclose(found, expected)
    for kind in ("fused", "transformers"):
        stack = load(path, kind)
        assert decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4)) == decode_ids(
            hierarchy_of(load(tmp_path / "scaled", "fused"), 3), (2, 4)
        )


def test_other_architectures_run_on_the_modules_of_transformers(tmp_path):
    model = small_model("phi3", num_key_value_heads=4, bos_token_id=1, pad_token_id=0, eos_token_id=4)
    path = write(tmp_path / "model.gguf", model)
    stack = load(path)
    expected = read_by_transformers(path).generate(torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False)
    assert stack.kind == "transformers"
    ids = decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4), max_new_tokens=30, eos_ids=[4])
    assert ids == expected[0, len(PROMPT) :].tolist()


def test_a_folder_with_one_file_is_that_file(tmp_path):
    path = write(tmp_path / "any.gguf", small_model())
    assert Checkpoint(str(tmp_path)).config == Checkpoint(str(path)).config
    (tmp_path / "config.json").write_text("{}")
    assert Checkpoint(str(tmp_path)).gguf_file == "any.gguf"
    small_model().save_pretrained(tmp_path)
    assert Checkpoint(str(tmp_path)).gguf_file is None


def test_blocks_are_not_rounded_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: True)
    config = replace(Checkpoint(str(write(tmp_path / "model.gguf", small_model()))).config, hidden_size=4096)
    assert config.faster_dtype("auto", "cpu") == "float32" and config.faster_dtype("float16", "cpu") == "float16"
    assert config.faster_dtype("auto", "cuda") == config.faster_dtype("auto", "cuda", as_stored=True) == "bfloat16"
    assert load(tmp_path, dtype="auto").dtype == load(tmp_path, "transformers", "auto").dtype == torch.float32


def test_digests_change_with_the_file(tmp_path):
    path = write(tmp_path / "model.gguf", small_model())

    def digests():
        profile = Profile(name="x", target=TargetSection(model=str(path)))
        return digests_of_profile(profile, dummy=False), digest_of_model(Checkpoint(str(path)), 4)

    before = digests()
    assert set(before[0][str(path)]) == {"weights"} and before[1] is not None
    write(path, small_model(seed=1))
    assert digests()[0] != before[0] and digests()[1] != before[1]


# Packed matrices


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_four_bits_keep_the_codes_of_the_file(kind, family, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64} if kind == Kind.Q4_K else {}
    path = write(tmp_path / "model.gguf", small_model(family, **sizes), kind)
    exact, packed = load(path, "fused"), load(path, "fused", quantization="int4")
    tensors = Checkpoint(str(path)).tensors()
    assert len(tensors.on_grid) == 28 and tensors.kinds_on_grid == [kind.name]
    for name in sorted(tensors.on_grid):
        codes, scales, zeros = (
            one.repeat_interleave(count, 1) for one, count in zip(tensors.grid(name), (1, 32, 32), strict=True)
        )
        assert codes.max() == 15 and torch.allclose((codes - 8.0) * scales + zeros, exact.parts[name], atol=1e-6)
    # Scales and zero points are rounded to bfloat16, which has 8 bits.
    for name, part in packed.parts.items():
        if name in tensors.on_grid:
            step = exact.parts[name].abs().max() / 8
            assert (part - exact.parts[name]).abs().max() < 9 * step / 256
        else:
            assert torch.equal(part, exact.parts[name])
    assert packed.quantization == "int4" and exact.quantization is None


def test_matrices_that_are_multiplied_as_one_stay_packed_together(tmp_path):
    kinds = {"blk.1.attn_v.weight": Kind.Q8_0, "blk.2.ffn_up.weight": Kind.Q8_0, "blk.3.ffn_down.weight": Kind.Q8_0}
    path = write(tmp_path / "model.gguf", small_model(), kinds=kinds)
    tensors = Checkpoint(str(path)).tensors()
    assert len(tensors.on_grid) == 28 - 3 - 2 - 1
    assert not any(f"model.layers.1.self_attn.{part}_proj.weight" in tensors.on_grid for part in "qkv")
    exact, packed = load(path, "fused"), load(path, "fused", quantization="int4")
    assert all(
        torch.equal(packed.parts[name], part) for name, part in exact.parts.items() if name not in tensors.on_grid
    )


def test_a_file_without_four_bits_is_quantized_as_any_other(tmp_path):
    path = write(tmp_path / "model.gguf", small_model(), Kind.Q8_0)
    read_by_transformers(path).save_pretrained(tmp_path / "whole")
    found, expected = (load(one, "fused", quantization="int4").parts for one in (path, tmp_path / "whole"))
    assert all(torch.equal(part, expected[name]) for name, part in found.items())


def test_the_estimate_counts_what_stays_packed(tmp_path):
    path = write(tmp_path / "model.gguf", small_model())
    profile = Profile(name="x", target=TargetSection(model=str(path)))
    for quantization in ("none", "int4"):
        (need,) = estimate(profile, Settings(quantization=quantization, dtype="float32", device="cpu")).models
        stack = load(path, "fused", quantization=quantization)
        packed = Checkpoint(str(path)).tensors().on_grid if quantization == "int4" else ()
        plain = sum(part.nbytes for name, part in stack.parts.items() if name not in packed)
        assert need.weights == plain + stack.quantized_bytes
        assert bool(packed) == (stack.quantized_bytes > 0)


# Refused files


def refused(path, kind):
    """Message and hint of the error that planning raises, long before weights are read."""
    with pytest.raises(kind) as caught:
        check_weights(Checkpoint(str(path)))
    assert isinstance(caught.value, HispecError)
    assert "\n" not in caught.value.message + caught.value.hint
    return f"{caught.value.message}; {caught.value.hint}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "model.gguf", small_model())


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5, 0.999])
def test_files_that_are_cut_short_are_refused(whole, tmp_path, share):
    data = whole.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(share * len(data))])
    assert "cut short" in refused(tmp_path / "cut.gguf", UnavailableError)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" * 100, "does not begin with GGUF"),
        (b"GGUF\x01\x00\x00\x00" + bytes(64), "has version 1 of the GGUF format"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\x01" + bytes(7) + b"\x02" + bytes(7) + b"\xff\xff\x63\x00" + bytes(40), "damaged"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, data, message):
    (tmp_path / "model.gguf").write_bytes(data)
    assert message in refused(tmp_path / "model.gguf", UnavailableError)


def test_missing_files_are_refused_with_those_that_are_there(whole):
    assert refused(whole.with_name("other.gguf"), UsageError).endswith("choose one of these: model.gguf")
    assert "check the path" in refused("/nowhere/model.gguf", UsageError)


def test_folders_with_several_files_are_refused(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.gguf").touch()
    found = refused(tmp_path, UsageError)
    assert "4 GGUF files: a.gguf, b.gguf, c.gguf and 1 more" in found and f"{tmp_path}/a.gguf" in found


def test_files_of_a_divided_model_are_refused(tmp_path, whole):
    for part in ("00001", "00002"):
        (tmp_path / f"large-{part}-of-00002.gguf").write_bytes(whole.read_bytes())
    for path in (tmp_path / "large-00002-of-00002.gguf", tmp_path):
        found = refused(path, UsageError)
        assert "one of 2 files" in found and "--merge large-00001-of-00002.gguf large.gguf" in found
    renamed = write(tmp_path / "renamed" / "model.gguf", small_model(), split__count=3)
    assert "one of 3 files" in refused(renamed, UsageError)


def test_unknown_architectures_are_refused(whole, tmp_path):
    data = whole.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data.replace(b"llama", b"rwkv7"))
    found = refused(path, UsageError)
    assert "architecture 'rwkv7'" in found and "llama, qwen2, qwen3" in found


def test_headers_that_lack_something_are_refused(tmp_path):
    path = write(tmp_path / "a" / "model.gguf", small_model(), llama__block_count=None)
    assert "does not say llama.block_count" in refused(path, UnavailableError)
    path = write(tmp_path / "e" / "model.gguf", small_model(), llama__attention__head_count=[4, 4, 4, 2])
    assert "says that llama.attention.head_count is [4, 4, 4, 2]" in refused(path, UnavailableError)
    path = write(tmp_path / "b" / "model.gguf", small_model(), llama__block_count=5)
    assert "model.layers.4.input_layernorm.weight is missing" in refused(path, UnavailableError)
    path = write(tmp_path / "c" / "model.gguf", small_model(), llama__expert_count=8)
    assert "mixture of experts" in refused(path, UsageError)
    path = write(tmp_path / "d" / "model.gguf", small_model(), llama__rope__scaling__type="yarn")
    assert "'yarn' rotary embeddings" in refused(path, UsageError)


def test_unknown_kinds_of_blocks_are_refused(whole, tmp_path):
    data = whole.read_bytes()
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    assert data[at] == Kind.Q4_0
    (tmp_path / "model.gguf").write_bytes(data[:at] + b"\xc8" + data[at + 1 :])
    assert "blk.0.attn_q.weight as type 200" in refused(tmp_path / "model.gguf", UnavailableError)


def test_without_its_package_nothing_is_read(whole, monkeypatch):
    monkeypatch.setattr("hispec.extras.find_spec", lambda name: None if name == "gguf" else sys)
    found = refused(whole, UnavailableError)
    assert "needs gguf, which is not installed" in found and "pip install 'hispec[gguf]'" in found
    assert "there is no GGUF file" in refused(whole.with_name("nowhere.gguf"), UsageError)


def test_ranks_read_their_parts_of_a_file(whole):
    tensors = Checkpoint(str(whole)).tensors()
    assert len(tensors.names) > 10
    for rank in range(2):
        shard = Shard(rank, 2)
        for name, part in tensors.read(tensors.names, shard):
            ((_, tensor),) = tensors.read([name])
            assert torch.equal(part, shard.cut(name, tensors.stored[name].shape, tensor)), name


def test_what_cannot_be_done_with_a_file_is_refused(whole):
    config = Checkpoint(str(whole)).config
    for options in ({"quantization": "4bit"}, {"quantization": "8bit"}):
        with pytest.raises(UsageError, match="is a GGUF file") as caught:
            Placement(**options).check(config, "model.gguf")
        assert "int4" in caught.value.hint
    with pytest.raises(UsageError, match="shares the matrices of a GGUF file on the fused stack only") as caught:
        Placement(shard=Shard(0, 2), stack="transformers").check(config, "model.gguf")
    assert "--stack transformers" in caught.value.hint
