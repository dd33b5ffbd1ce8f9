"""Two ranks that share every matrix of the fused stack write what one process writes.

Run by torchrun, this file is one of the ranks: it loads its part of each model, and keeps what it found.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import parse_config
from hispec.models.graphs import with_graphs
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.sharding import Shard
from tests.hispec.models.test_fused_stack import TEXT, assert_same, model_of
from tests.support import decode_ids, hierarchy_of, random_model

SHARED = ("llama", "mistral", "qwen2", "qwen3 biases", "tied")
MODELS = (*SHARED, "odd vocabulary")
RANKS = 2
HIERARCHIES = (((), (1,)), ((1,), (1, 3)), ((1, 3), (1, 2, 4)))


@torch.inference_mode()
def findings(stack):
    """Results that must not depend on the number of processes: ids of every mode, and logits of the whole and a reduced
    head.
    """
    stack.prepare("auto")
    stack.reserve(len(TEXT))
    hidden = stack.run(stack.embed(TEXT), 0, stack.num_layers, 0)
    reduced = stack.reduce_head(torch.tensor([0, 3, 4, 11, 12, 23]))
    ids = [decode_ids(hierarchy_of(stack, *exits), periods, max_new_tokens=16) for exits, periods in HIERARCHIES]
    ids.append(decode_ids(hierarchy_of(stack, 1, words=[range(0, 24, 2)]), (1, 3), max_new_tokens=16))
    return {"ids": ids, "logits": stack.head(hidden), "reduced": stack.head(hidden, reduced)}


@torch.inference_mode()
def findings_of_copies(stack, quantization):
    """Ids that a whole copy drafts for the target, and the copy's logits."""
    copy = stack.quantized(quantization)
    levels = [Level("draft", copy, 2, weights=quantization), Level("intermediate", copy, 4, weights=quantization)]
    hierarchy = Hierarchy([*levels, Level("target", stack, stack.num_layers)])
    ids = decode_ids(hierarchy, (1, 2, 4), max_new_tokens=30)
    hidden = copy.run(copy.embed(TEXT[:6]), 0, 4, 0)
    reduced = copy.reduce_head(torch.tensor([0, 3, 23]))
    return {"ids": ids, "logits": copy.head(hidden), "reduced": copy.head(hidden, reduced), "narrow": copy.narrow}


def load(folder, shard=None, quantization="none"):
    placement = Placement(dtype="float32", stack="fused", quantization=quantization, shard=shard)
    return load_stack(Checkpoint(str(folder)), placement)


def run_rank(folder):
    """Be one of the ranks."""
    distributed.init_process_group("gloo")
    shard, found = Shard(distributed.get_rank(), distributed.get_world_size()), {}
    for name in MODELS:
        stack = load(folder / name, shard)
        found[name] = findings(stack) | {"heads": stack.config.num_kv_heads, "cache": stack.cache.layers[0].shape[2]}
    found["fixed"] = findings(with_graphs(load(folder / "llama", shard), "on"))
    for quantization in ("int8", "int4"):
        found[quantization] = findings_of_copies(load(folder / "llama", shard), quantization)
        found[f"all {quantization}"] = findings(load(folder / "llama", shard, quantization))
    found["agreed"] = shard.agree({"rank": shard.rank})
    torch.save(found, folder / f"rank{shard.rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    for name in SHARED:
        model_of(name).save_pretrained(folder / name)
    random_model(vocab=25).save_pretrained(folder / "odd vocabulary")
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """The results of each rank."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(RANKS),
        "-m",
        __name__,
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(launch, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


def test_a_sum_does_not_depend_on_the_place_of_a_row_in_its_pass(monkeypatch):
    """With more ranks than two the order of additions matters."""
    products = torch.randn(4, 20, 48, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    shown = {}

    def gather(out, own):
        assert torch.equal(own, shown["products"][1])
        out.copy_(shown["products"].flatten(0, 1))

    for name in ("all_gather_single", "all_gather_into_tensor"):  # the name before torch 2.13
        monkeypatch.setattr(distributed, name, gather, raising=False)

    def total(rows):
        shown["products"] = products[:, rows]
        return Shard(1, 4).sum(shown["products"][1])

    whole = total(slice(0, 20))
    torch.testing.assert_close(whole.float(), products.float().sum(0), atol=0.05, rtol=0.01)
    for start, stop in ((0, 1), (3, 7), (4, 20), (19, 20)):
        assert torch.equal(total(slice(start, stop)), whole[start:stop])


@pytest.mark.parametrize("name", [*MODELS, "fixed"])
def test_ranks_find_what_one_process_finds(ranks, folder, name):
    one = findings(load(folder / ("llama" if name == "fixed" else name)))
    for found in ranks:
        assert found[name]["ids"] == one["ids"]
        for logits in ("logits", "reduced"):
            assert_same(found[name][logits], one[logits])


def test_a_rank_holds_its_own_heads_only(ranks):
    for found in ranks:
        assert [(found[name]["heads"], found[name]["cache"]) for name in MODELS] == [(1, 1)] * len(MODELS)


def test_ranks_compute_the_same_bits(ranks):
    first, second = ranks
    for name in (*MODELS, "fixed", "int8", "int4", "all int8", "all int4"):
        for logits in ("logits", "reduced"):
            assert torch.equal(first[name][logits], second[name][logits]), name
    assert first["agreed"] == second["agreed"] == {"rank": 0}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_levels_of_quantized_weights_draft_on_parts_and_change_no_id(ranks, folder, quantization):
    plain = decode_ids(hierarchy_of(load(folder / "llama")), (1,), max_new_tokens=30)
    one = findings_of_copies(load(folder / "llama"), quantization)
    for found in ranks:
        assert found[quantization]["ids"] == one["ids"] == plain
        assert found[quantization]["narrow"] == ranks[0][quantization]["narrow"]
        # Parts have grids of their own, for weights whose inputs are shared.
        error = (found[quantization]["logits"] - one["logits"]).abs().mean() / one["logits"].abs().mean()
        assert error < (0.05 if quantization == "int8" else 0.3)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_target_of_quantized_weights_is_shared_and_every_mode_writes_its_ids(ranks, folder, quantization):
    one = findings(load(folder / "llama", None, quantization))
    for found in ranks:
        own = found[f"all {quantization}"]
        assert own["ids"] == [own["ids"][0]] * len(own["ids"])
        error = (own["logits"] - one["logits"]).abs().mean() / one["logits"].abs().mean()
        assert error < (0.05 if quantization == "int8" else 0.3)


class Slice:
    """A tensor as safetensors gives it, which notes how much of it is read."""

    def __init__(self, tensor):
        self.tensor, self.read = tensor, 0

    def __getitem__(self, index):
        part = self.tensor[index]
        self.read += part.numel()
        return part


@pytest.mark.parametrize("name", SHARED)
def test_parts_make_up_the_whole_and_no_rank_reads_more(name):
    model, count = model_of(name), 2
    parts = [Shard(rank, count) for rank in range(count)]
    for key, tensor in model.state_dict().items():
        slices = [Slice(tensor) for _ in parts]
        cut = [shard.cut(key, tuple(tensor.shape), one) for shard, one in zip(parts, slices, strict=True)]
        assert [tuple(part.shape) for part in cut] == [shard.shape(key, tuple(tensor.shape)) for shard in parts]
        kind = key.split(".")[-2]
        if kind in ("o_proj", "down_proj"):
            whole = torch.cat(cut, 1) if tensor.dim() == 2 else sum(cut)  # a bias is added by one of them
            assert torch.equal(whole, tensor)
        elif kind.endswith("_proj") or kind == "lm_head":
            assert torch.equal(torch.cat(cut), tensor)
        else:
            assert all(torch.equal(part, tensor) for part in cut)
        if tensor.dim() == 2 and kind != "embed_tokens":
            assert [one.read * count for one in slices] == [tensor.numel()] * count


def test_the_part_of_a_configuration_has_its_share_of_heads_and_inner_units():
    model = random_model(num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    part = Shard(1, 4).config(parse_config(model.config.to_dict(), model.config))
    assert (part.num_heads, part.num_kv_heads, part.intermediate_size, part.hidden_size) == (2, 1, 12, 32)
    assert [len(Shard(rank, 4).token_ids(24)) for rank in range(4)] == [6] * 4
    assert Shard(1, 4).token_ids(25) == range(25)


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
