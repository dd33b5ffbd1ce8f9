"""The fused stack computes what the modules of `transformers` compute, for every family and every way to use it."""

import json
import subprocess
import sys
from itertools import pairwise
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hispec import Engine
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.state import DecodingState
from hispec.errors import UnavailableError, UsageError
from hispec.limits import WIDEST
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import DIRECT, parse_config
from hispec.models.families import FAMILIES
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.loading import load_stack
from hispec.models.passes import without_cudnn
from hispec.models.placement import Placement
from hispec.models.rows import RowCounts
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.static import StaticPolicy
from tests.support import GREEDY, PROMPT, decode_ids, fused_stack, greedy_by_hand, hierarchy_of, random_model
from training.evaluate import held_out_problems

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 12}),
    "narrow heads": ("qwen3", {"head_dim": 4}),
    "a key for each query": ("llama", {"num_key_value_heads": 4}),
    "one key for all": ("llama", {"num_key_value_heads": 1}),
    "another base": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama3": (
        "llama",
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32, "rope_theta": 1e4}},
    ),
    "yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 1e4,
            }
        },
    ),
}
TEXT = Random(0).choices(range(24), k=60)


def model_of(variant):
    """A random model whose vectors are random too: norms of one and biases of zero would hide their misuse."""
    family, changes = VARIANTS[variant]
    model = random_model(family, **changes)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data.uniform_(0.5, 1.5) if "norm" in name else weight.data.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def variant_model(request):
    return model_of(request.param)


@pytest.fixture
def stacks(variant_model):
    pair = fused_stack(variant_model), TransformersStack(variant_model, "random")
    for stack in pair:
        stack.reserve(len(TEXT))
    return pair


def assert_same(fused, other):
    """Equal but for rounding: to five millionths of the largest number."""
    torch.testing.assert_close(fused, other, atol=5e-6 * float(other.abs().max()), rtol=0)


def run_both(stacks, start, end, spans=((0, 1), (1, 3), (3, 4)), text=TEXT):
    """Run text[start:end] through both stacks, span by span, comparing every hidden state and the logits."""
    hidden = [stack.embed(text[start:end]) for stack in stacks]
    for first, last in spans:
        hidden = [stack.run(rows, first, last, start) for stack, rows in zip(stacks, hidden, strict=True)]
        assert_same(*hidden)
    logits = [stack.head(rows) for stack, rows in zip(stacks, hidden, strict=True)]
    assert_same(*logits)
    return logits[0]


def test_spans_of_every_width_equal_those_of_transformers(stacks, variant_model):
    starts = [0, 5, *(5 + sum(range(1, width + 1)) for width in range(1, 9)), len(TEXT)]
    logits = [run_both(stacks, start, end) for start, end in pairwise(starts)]
    with torch.inference_mode():
        assert_same(torch.cat(logits), variant_model(torch.tensor([TEXT])).logits[0])


def test_rewinding_anywhere_leaves_nothing_behind(stacks):
    rng = Random(1)
    run_both(stacks, 0, 40, text=[7] * 40)
    position = 0
    for _ in range(25):
        width = rng.randint(1, 8)
        run_both(stacks, position, position + width, [(0, 2), (2, 4)])
        position = rng.randint(0, min(position + width, len(TEXT) - 8))


@pytest.mark.parametrize("start", [0, 3])
def test_spans_wider_than_those_that_keep_their_buffers(stacks, start):
    run_both(stacks, 0, start or 1)
    run_both(stacks, start, start + WIDEST + 5)
    run_both(stacks, start + WIDEST + 5, start + WIDEST + 6)


def test_a_long_prompt_in_chunks_is_the_same():
    model = model_of("llama")
    pair = fused_stack(model), TransformersStack(model, "random")
    for stack in pair:
        stack.reserve(len(TEXT))
    pair[0].rows = RowCounts(prompt=WIDEST + 1)
    run_both(pair, 0, len(TEXT))


def test_hierarchical_decoding_writes_the_same_ids(variant_model):
    expected = greedy_by_hand(variant_model, 24)
    stack = fused_stack(variant_model)
    for exits, periods in [((), (1,)), ((1,), (1, 3)), ((1, 2), (1, 2, 4)), ((1, 2, 3), (1, 2, 3, 5))]:
        assert decode_ids(hierarchy_of(stack, *exits), periods, max_new_tokens=24) == expected
    hierarchy = hierarchy_of(stack, 1, 2, ngrams=(2, 4), words=[range(0, 24, 2)])
    state = DecodingState(hierarchy, PROMPT, len(PROMPT) + 24)
    for _ in decode(state, StaticPolicy((1, 1, 2, 4)), GREEDY, StopCriteria(24)):
        pass
    assert state.tokens[len(PROMPT) : state.committed] == expected


def test_the_shipped_model_answers_the_same_on_either_stack():
    fused, other = (Engine.from_profile("tiny", stack=stack, max_new_tokens=100) for stack in ("fused", "transformers"))
    assert (fused.environment["stack"], other.environment["stack"]) == ("fused", "transformers")
    problems = held_out_problems(10, "trained") + held_out_problems(10, "held_out")
    for problem in problems:
        assert fused.generate(problem.question).token_ids == other.generate(problem.question).token_ids


@pytest.mark.parametrize("variant", ["llama", "qwen3", "tied", "biases"])
def test_bfloat16_is_as_near_as_its_rounding(variant):
    model = model_of(variant)
    exact = fused_stack(model)
    rounded = fused_stack(model.bfloat16())
    other = TransformersStack(model, "random")
    logits = []
    for stack in (exact, rounded, other):
        stack.reserve(len(TEXT))
        with torch.inference_mode():
            logits.append(stack.head(stack.run(stack.embed(TEXT[:8]), 0, 4, 0)).float())
    error, usual = ((found - logits[0]).abs().mean() for found in logits[1:])
    assert error < 1.5 * usual


def test_a_span_leaves_its_input_and_earlier_results_alone():
    stack = fused_stack(model_of("llama"))
    stack.reserve(8)
    hidden = stack.embed(TEXT[:3])
    before = hidden.clone()
    result = stack.run(hidden, 0, 2, 0)
    kept, logits = result.clone(), stack.head(result)
    kept_logits = logits.clone()
    stack.head(stack.run(stack.embed(TEXT[3:6]), 0, 4, 3))
    for now, then in ((hidden, before), (result, kept), (logits, kept_logits)):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


def test_it_needs_no_model_class_of_transformers():
    """Importing one takes longer than answering."""
    code = (
        "import sys; from hispec import Engine; Engine.from_profile('tiny', max_new_tokens=2).generate('Hello'); "
        "sys.exit(any(name.startswith(('transformers.models.', 'torch._dynamo')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_inference_mode_made_serves_outside_of_it_too():
    stack = fused_stack(model_of("qwen3"))
    with torch.inference_mode():
        stack.reserve(8)
        inside = stack.head(stack.run(stack.embed(TEXT[:3]), 0, 4, 0))
    torch.testing.assert_close(stack.head(stack.run(stack.embed(TEXT[:3]), 0, 4, 0)), inside, rtol=0, atol=0)


def test_the_cache_grows_without_losing_anything_and_never_shrinks():
    model = model_of("llama")
    stack, fresh = fused_stack(model), fused_stack(model)
    stack.reserve(10)
    stack.run(stack.embed(TEXT[:10]), 0, 4, 0)
    layers = list(stack.cache.layers)
    stack.reserve(3)
    assert all(now is before for now, before in zip(stack.cache.layers, layers, strict=True))
    stack.reserve(stack.cache.positions + 1)
    fresh.reserve(12)
    fresh.run(fresh.embed(TEXT[:10]), 0, 4, 0)
    ends = [grown.run(grown.embed(TEXT[10:12]), 0, 4, 10) for grown in (stack, fresh)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["tied", "wide heads"])
def test_a_reduced_head_reads_its_words_as_the_whole_head_does(variant):
    stack = fused_stack(model_of(variant))
    hidden, ids = torch.randn(3, 32), torch.tensor([1, 5, 6, 20])
    assert_same(stack.head(hidden, stack.reduce_head(ids)), stack.head(hidden)[:, ids])


@pytest.mark.parametrize("variant", ["biases", "qwen3"])
def test_nothing_waits_for_a_value(variant):
    """On a device without values, where asking for one raises: so a graph can be captured, and no device is waited for."""
    config = model_of(variant).config
    shape = parse_config(config.to_dict(), config)
    stack = FusedStack(shape, FusedWeights(shape, torch.bfloat16, torch.device("meta")), "no values")
    stack.reserve(40)
    reduced = stack.reduce_head(torch.tensor([1, 2]))
    for rows, position in ((20, 0), (18, 3), (1, 38), (4, 30)):
        hidden = stack.run(stack.embed([1] * rows), 0, 4, position)
        assert hidden.shape == (rows, 32)
        assert stack.head(hidden).shape == (rows, 24) and stack.head(hidden, reduced).shape == (rows, 2)


@pytest.fixture
def folder(tmp_path):
    model_of("qwen3").save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def load(folder, stack="auto", dtype="auto"):
    return load_stack(Checkpoint(str(folder)), Placement(dtype=dtype, stack=stack))


def test_a_sharded_checkpoint_is_packed_as_it_is(folder):
    assert len(list(folder.glob("*.safetensors"))) > 2
    stack = load(folder)
    assert isinstance(stack, FusedStack) and stack.dtype == torch.float32
    stack.reserve(len(TEXT))
    other = load(folder, "transformers")
    other.reserve(len(TEXT))
    run_both((stack, other), 0, len(TEXT))
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_means_what_transformers_makes_of_it(family, tmp_path):
    random_model(family, eos_token_id=[3, 5]).save_pretrained(tmp_path)
    direct = Checkpoint(str(tmp_path)).config
    original = AutoConfig.from_pretrained(tmp_path)
    assert direct.original is None
    known = {key: value for key, value in original.to_dict().items() if key in DIRECT}
    assert direct == parse_config(known | {"dtype": "float32"}, None)
    values = json.loads((tmp_path / "config.json").read_text())
    for key in ("tie_word_embeddings", "rms_norm_eps", "rope_parameters", "eos_token_id"):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != key}))
        assert Checkpoint(str(tmp_path)).config.original is not None  # its defaults are those of transformers


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"hidden_act": "gelu"}, "'gelu'"), ({"quantization_config": {"quant_method": "fp8"}}, "quantized")],
)
def test_what_the_fused_stack_cannot_run_is_refused_by_name_or_left_to_transformers(folder, changes, reason):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(UsageError, match=f"{folder} does not run on the fused stack: its .* {reason}") as caught:
        load(folder, "fused")
    assert "--stack" in caught.value.hint
    if "hidden_act" in changes:
        assert isinstance(load(folder), TransformersStack)


def test_tensors_under_other_names_are_left_to_transformers_and_those_that_are_wrong_are_told(tmp_path):
    model = model_of("llama")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    norm = "model.layers.2.input_layernorm.weight"
    for changed in ({name: w for name, w in weights.items() if name != norm}, {**weights, norm: torch.ones(31)}):
        save_file(changed, path, metadata={"format": "pt"})
        for stack in ("auto", "fused"):
            with pytest.raises(UnavailableError, match=f"incomplete: .*{norm}"):
                load(tmp_path, stack)
    model.model.save_pretrained(tmp_path)  # without the prefix that its head would give it
    save_file({**load_file(path), "lm_head.weight": weights["lm_head.weight"]}, path, metadata={"format": "pt"})
    assert isinstance(load(tmp_path), TransformersStack)


def test_attention_on_cuda_leaves_cudnn_out_and_gives_the_choice_back():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with without_cudnn(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(RuntimeError), without_cudnn(torch.device("cuda", 1)):
        raise RuntimeError
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with without_cudnn(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("counts", [RowCounts(), RowCounts((4,), 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_attention_on_cuda_is_asked_for_what_only_the_slow_computation_can_do(monkeypatch, dtype, counts):
    """Its kernels know either masks or keys that heads share, and shared keys in half precision only."""
    config, calls, attend = model_of("llama").to(dtype), [], torch.nn.functional.scaled_dot_product_attention

    def watched(query, keys, values, **options):
        calls.append((query, keys, options))
        return attend(query, keys, values, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    found = []
    for suits_cuda in (False, True):
        stack = fused_stack(config)
        stack._suits_cuda, stack.rows = suits_cuda, counts
        stack.reserve(120)
        calls.clear()
        hidden = stack.embed([(5 * at) % 24 for at in range(100)])
        spans = [(0, 40, True), (40, 80, True), (80, 83, False), (83, 84, False), (84, 100, False)]
        found.append(
            torch.cat([stack.run(hidden[a:b], 0, stack.num_layers, a, prompt=prompt) for a, b, prompt in spans])
        )
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4 if dtype == torch.float32 else 0.2)
    assert any(options.get("attn_mask") is not None for *_, options in calls)
    for query, keys, options in calls:
        mask = options.get("attn_mask")
        if mask is not None:
            assert mask.is_contiguous() and mask.data_ptr() % 16 == 0
        if options.get("enable_gqa"):
            assert mask is None and dtype == torch.bfloat16
        else:
            assert query.shape[1] == keys.shape[1]
