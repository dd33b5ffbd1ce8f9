"""Stacks of quantized weights: copies on the KV cache of the full weights, and targets of their own."""

import gc

import pytest
import torch
from safetensors.torch import save_file

from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampling
from hispec.models import dtypes, fused_weights
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import parse_config
from hispec.models.dtypes import bits_per_weight
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import MATRICES, FusedWeights
from hispec.models.graphs import with_graphs
from hispec.models.kernels import quantize
from hispec.models.linear import Linear, PackedLinear
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.quantized import QuantizedLinear
from hispec.models.rows import RowCounts
from hispec.models.tensors import Stored, Tensors
from hispec.models.tokenizer import load_tokenizer
from hispec.policies.static import StaticPolicy
from tests.hispec.models.test_graphs import Recording
from tests.hispec.models.test_rows import LENGTH, TEXT, logits_of, pieces
from tests.support import fused_stack, random_model
from training.evaluate import held_out_problems

FORMATS = ("int8", "int4")


@pytest.fixture(params=[False, True], ids=["", "vnni"])
def own_head(request, monkeypatch):
    """Whether copies have heads of their own, as on processors with VNNI."""
    monkeypatch.setattr(dtypes, "processor_flags", lambda: {"avx2", "avx512_vnni"} if request.param else {"avx2"})
    return request.param


def prepared(dtype=torch.bfloat16, family="llama", graphs="off", **changes):
    model = random_model(family, max_position_embeddings=512, **changes).to(dtype)
    stack = with_graphs(fused_stack(model), graphs)
    stack.prepare("auto")
    return stack


def saved(folder, model):
    path = folder / "model.safetensors"
    parts = dict(model.named_parameters())  # a tied head is not among them
    save_file({name: tensor.detach().contiguous() for name, tensor in parts.items()}, path, {"format": "pt"})
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    return Tensors({name: Stored(kinds[part.dtype], tuple(part.shape), path) for name, part in parts.items()})


def target_of(folder, quantization, dtype=torch.bfloat16, family="llama", **changes):
    """A stack that was quantized while it was read."""
    model = random_model(family, max_position_embeddings=512, **changes).to(dtype)
    config = parse_config(model.config.to_dict(), model.config)
    weights = FusedWeights(config, dtype, torch.device("cpu"), quantization)
    assert weights.fill(saved(folder, model)) == []
    return FusedStack(config, weights, quantization)


def matrices_of(weights):
    return [getattr(layer, name) for layer in weights.layers for name in MATRICES] + [weights.head]


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("quantization", FORMATS)
def test_a_copy_reads_the_rows_that_the_target_wrote_and_writes_only_where_it_runs(quantization, graphs):
    stack = prepared(graphs=graphs)
    copy = stack.quantized(quantization)
    expected = logits_of(stack, [1] * LENGTH)
    assert copy.cache is stack.cache and copy.rows.free
    before = [layer.clone() for layer in stack.cache.layers]
    with torch.inference_mode():
        copy.run(copy.embed(TEXT[20:23]), 0, 4, 20)
        for layer, was in zip(stack.cache.layers, before, strict=True):
            changed = (layer != was)[:, 0].any(-1).any(1).any(0)
            # Fixed shapes write padding, too, after the newest token: the target has run nothing there.
            assert changed.nonzero().flatten().tolist() == [20, 21, 22, *([23] if graphs == "on" else [])]
        found = stack.head(stack.run(stack.embed(TEXT[20:LENGTH]), 0, 4, 20))
        assert torch.equal(found, expected[20:])  # the target's pass has overwritten them
        near = copy.head(copy.run(copy.embed(TEXT[LENGTH - 1 :]), 0, 4, LENGTH - 1))
    assert not torch.equal(near, expected[-1:]) and (near - expected[-1:]).norm() < 0.5 * expected[-1:].norm()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("family", "graphs"), [("llama", "off"), ("llama", "on"), ("qwen2", "off"), ("qwen3", "off")])
def test_levels_of_quantized_weights_change_no_id_of_the_target(family, graphs, sampling):
    stack = prepared(family=family, graphs=graphs)
    int4, int8 = stack.quantized("int4"), stack.quantized("int8")
    target = Level("target", stack, 4)
    for levels, periods in (
        ([Level("draft", int4, 2), Level("intermediate", int4, 4)], (1, 2, 4)),
        ([Level("draft", int4, 1), Level("intermediate", int8, 4)], (1, 3, 5)),
        ([Level("draft", stack, 1), Level("intermediate", int8, 4)], (1, 2, 3)),
        ([Level.of_ngrams(2, 5), Level("intermediate", int4, 4, int4.reduce_head(torch.arange(3, 20)))], (1, 1, 3)),
    ):
        alone, together = (
            Decoder(Hierarchy(own), lambda p=p: StaticPolicy(p), lambda *_: sampling).token_ids(TEXT[:40], 30, 7)
            for own, p in (([target], (1,)), ([*levels, target], periods))
        )
        assert together == alone


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("quantization", FORMATS)
def test_rows_of_a_quantized_target_are_the_same_bits_one_by_one_and_in_passes_of_any_size(
    tmp_path, quantization, dtype, family
):
    stack = target_of(tmp_path, quantization, dtype, family)
    stack.prepare("auto")
    one_by_one = logits_of(stack, [1] * LENGTH)
    assert one_by_one.isfinite().all()
    for seed in range(3):
        assert torch.equal(logits_of(stack, pieces(seed, 12)), one_by_one)


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_the_same_quantized_while_they_are_read_in_place_or_as_a_copy(tmp_path, quantization, tied):
    changes = {"tie_word_embeddings": tied, "attention_bias": True}
    read = target_of(tmp_path, quantization, torch.float32, **changes)
    model = random_model("llama", max_position_embeddings=512, **changes)
    in_place = fused_stack(model)
    in_place._weights.quantize(quantization)
    copy = fused_stack(model).quantized(quantization)
    copy._weights.head = quantize(copy.origin._weights.head, quantization)  # which copies do not have in 4 bits
    for stack in (read, in_place, copy):
        assert stack.quantization == quantization and stack.quantized_bytes == read.quantized_bytes > 0
        assert all(isinstance(matrix, QuantizedLinear) for matrix in matrices_of(stack._weights))
    parts = [stack.parts for stack in (read, in_place, copy)]
    for name, own in model.named_parameters():
        assert all(torch.equal(other[name], parts[0][name]) for other in parts[1:])
        kept = own.dim() == 1 or "embed" in name
        assert torch.equal(parts[0][name], own) == kept
    for stack in (read, in_place):
        stack.prepare("auto")
    assert torch.equal(logits_of(read, [5] * 30), logits_of(in_place, [5] * 30))


def test_a_quantized_checkpoint_that_lacks_a_tensor_is_not_read(tmp_path):
    model = random_model("llama")
    files = saved(tmp_path, model)
    del files.stored["model.layers.2.mlp.up_proj.weight"]
    config = parse_config(model.config.to_dict(), model.config)
    weights = FusedWeights(config, torch.float32, torch.device("cpu"), "int8")
    assert weights.fill(files) == ["model.layers.2.mlp.up_proj.weight"]
    assert weights.layers[0].qkv.matrix.is_meta


@torch.inference_mode()
@pytest.mark.parametrize(("quantization", "least"), [("int8", 0.97), ("int4", 0.85)])
def test_a_copy_of_the_shipped_model_names_its_token_nearly_always(shipped_model, quantization, least):
    """Its exits agree on fewer positions. In bfloat16, on held-out problems, each position after the target's rows."""
    checkpoint = Checkpoint(str(shipped_model))
    stack = load_stack(checkpoint, Placement(dtype="bfloat16"))
    stack.prepare("auto")
    copy, tokenizer = stack.quantized(quantization), load_tokenizer(checkpoint)
    same, exits = [], []
    for problem in held_out_problems(4, "trained"):
        ids = tokenizer(f"{problem.question}\n{problem.answer}").input_ids[:96]
        stack.reserve(len(ids))
        hidden = stack.run(stack.embed(ids), 0, 2, 0)
        exits.append(stack.head(hidden).argmax(-1))
        best = stack.head(stack.run(hidden, 2, stack.num_layers, 0)).argmax(-1)
        exits[-1] = exits[-1] == best
        same.append(copy.head(copy.run(copy.embed(ids), 0, copy.num_layers, 0)).argmax(-1) == best)
    agreement = torch.cat(same).float().mean()
    assert agreement >= least and agreement > torch.cat(exits).float().mean()


def alive():
    """Bytes of all tensors, counting memory that several share once."""
    gc.collect()
    found = [
        one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor and one.device.type == "cpu"
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


@pytest.mark.parametrize("way", ["read", "in place"])
@pytest.mark.parametrize("quantization", FORMATS)
def test_one_layer_at_most_is_held_in_full_while_a_target_is_quantized(tmp_path, monkeypatch, quantization, way):
    """The bytes of all tensors whenever a matrix has been quantized."""
    changes = {"hidden_size": 64, "intermediate_size": 256, "layers": 12, "vocab": 64}
    model = random_model("llama", **changes)
    config = parse_config(model.config.to_dict(), model.config)
    files, full = saved(tmp_path, model), sum(part.nbytes for part in model.parameters())
    del model
    gc.collect()
    start, seen, calls = alive(), [], []

    def watched(linear, *arguments, **options):
        made = quantize(linear, *arguments, **options)
        calls.append(linear.dense().shape)
        if len(calls) in (1, 25, 49):  # the first of a layer, all of which is in full then, and the head
            seen.append(alive() - start)
        return made

    quantize = fused_weights.quantize
    monkeypatch.setattr(fused_weights, "quantize", watched)
    weights = FusedWeights(config, torch.float32, torch.device("cpu"), quantization if way == "read" else None)
    weights.fill(files)
    if way == "in place":
        weights.quantize(quantization)
        assert seen[0] > 0.9 * full
    else:
        assert max(seen) < 0.45 * full  # int8: a quarter, and a twelfth in full, and what is never quantized
    assert len(calls) == 12 * 4 + 1 and seen[-1] < 0.4 * full


@pytest.mark.parametrize("quantization", FORMATS)
def test_a_copy_takes_the_bytes_of_its_estimate_and_no_second_full_one(quantization, own_head):
    stack = prepared(torch.float32, hidden_size=64, intermediate_size=256, layers=12, vocab=64)
    inputs = [(64, 64 * 3 // 3), (32, 64), (64, 512), (256, 64)]
    full = sum(part.nbytes for part in stack.parts.values())
    gc.collect()
    before = alive()
    copy = stack.quantized(quantization)
    taken = alive() - before
    expected = sum(a * b * bits_per_weight(quantization, a, outputs=b) / 8 for a, b in inputs) * 12
    expected += own_head * 64 * 64 * bits_per_weight("int8", 64, outputs=64) / 8
    assert copy.quantized_bytes == expected
    assert taken <= 1.05 * expected + 8192 and taken < 0.32 * full  # the kernel's own memory is none of torch's
    *layers, head = zip(matrices_of(stack._weights), matrices_of(copy._weights), strict=True)
    assert all(other.wide is own for own, other in layers)
    assert head[0] is (head[1].wide if own_head else head[1])
    assert copy._weights.embedding is stack._weights.embedding
    assert copy._weights.layers[3].mlp_norm is stack._weights.layers[3].mlp_norm


def test_full_weights_are_packed_before_copies_refer_to_them(own_head):
    stack = fused_stack(random_model("llama").to(torch.bfloat16))
    copy = stack.quantized("int4")
    stack.prepare("auto")
    *layers, head = matrices_of(copy._weights)
    full = stack._weights.head
    assert (head.wide if own_head else head) is full and all(type(matrix.wide) is type(full) for matrix in layers)
    assert isinstance(stack._weights.head, PackedLinear | Linear)


@torch.inference_mode()
def test_a_copy_may_have_the_first_layers_only(own_head):
    stack = prepared()
    two, whole = stack.quantized("int4", 2), stack.quantized("int4")
    head = whole._weights.head.nbytes if own_head else 0
    assert two.num_layers == 2 and two.quantized_bytes - head < 0.7 * (whole.quantized_bytes - head)
    stack.reserve(8)
    found = [one.head(one.run(one.embed(TEXT[:5]), 0, 2, 0)) for one in (two, whole)]
    assert torch.equal(*found)


@torch.inference_mode()
@pytest.mark.parametrize("quantization", FORMATS)
def test_a_copy_of_reduced_words_reads_the_rows_of_its_head(quantization, own_head):
    copy = prepared(torch.float32).quantized(quantization)
    copy.reserve(8)
    ids = torch.tensor([2, 3, 17])
    hidden = copy.run(copy.embed(TEXT[:1]), 0, 4, 0)
    torch.testing.assert_close(copy.head(hidden, copy.reduce_head(ids)), copy.head(hidden)[:, ids])
    assert isinstance(copy.reduce_head(ids).linear, QuantizedLinear) == own_head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_that_a_copy_does_with_its_head_changes_the_target(dtype, own_head):
    stack = prepared(dtype)
    expected = logits_of(stack, [5] * 30)
    copy = stack.quantized("int4")
    with torch.inference_mode():
        reduced = copy.reduce_head(torch.tensor([2, 3, 17]))
        hidden = copy.run(copy.embed(TEXT[:1]), 0, 4, 0)
        for made in (copy.head(hidden), copy.head(hidden, reduced), reduced.linear.dense()):
            made.zero_()
    assert torch.equal(logits_of(stack, [5] * 30), expected)


@torch.inference_mode()
def test_the_head_of_a_copy_names_the_targets_token_more_often_than_a_4_bit_one(own_head):
    """A head of many token ids, of which the two best are often close."""
    model = random_model("llama", max_position_embeddings=512, vocab=4096, hidden_size=64, layers=2)
    stack = fused_stack(model)
    copy, ids = stack.quantized("int4"), torch.arange(5, 4000, 20).tolist()
    stack.reserve(len(ids))
    hidden = stack.run(stack.embed(ids), 0, 2, 0)
    best = stack.head(hidden).argmax(-1)
    found = [(copy.head(row[None]).argmax(-1) == token).item() for row, token in zip(hidden, best, strict=True)]
    copy._weights.head = quantize(stack._weights.head, "int4")
    in_4_bits = (copy.head(hidden).argmax(-1) == best).float().mean()
    assert torch.tensor(found).float().mean() > in_4_bits + 0.03


@torch.inference_mode()
def test_recordings_of_all_stacks_of_a_model_go_when_its_cache_grows():
    """A recording of a copy replays into the shared cache, also where the full weights' stack makes it grow."""
    stack = prepared(torch.float32, graphs="on")
    copy = stack.quantized("int8")
    stack._record, copy._record = Recording(stack), Recording(copy)

    def run(one, position):
        return one.head(one.run(one.embed(TEXT[:4]), 0, 4, position))  # as many rows for both

    stack.reserve(100)
    before = [run(one, 0) for one in (stack, copy)]
    for one in (stack, copy):
        run(one, 0), run(one, 0)
    assert len(stack._recorded) == 2 and stack._recorded is copy._recorded
    assert torch.equal(run(copy, 0), before[1]) and not torch.equal(*before)
    stack.reserve(400)
    assert not copy._recorded
    assert torch.equal(run(copy, 0), before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("quantization", FORMATS)
def test_on_a_gpu_a_copy_computes_what_it_does_on_a_cpu(quantization, graphs):
    model = random_model("llama", max_position_embeddings=512, hidden_size=128, intermediate_size=256).bfloat16()
    found = []
    for device in ("cpu", "cuda"):
        stack = with_graphs(fused_stack(model.to(device)), graphs if device == "cuda" else "off")
        stack.prepare("auto")
        copy = stack.quantized(quantization)
        copy.rows = RowCounts((8,), 64)
        found.append(logits_of(copy, pieces(0, 8)).float().cpu())
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()
