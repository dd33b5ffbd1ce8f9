"""A model on several devices, as fused stacks one after the other, writes what it writes on one."""

import pytest
import torch

from hispec.decoding.decoder import Decoder
from hispec.decoding.sampling import Sampling
from hispec.models.config import parse_config
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.graphs import GraphedStack, with_graphs
from hispec.models.rows import RowCounts
from hispec.models.staged_stack import StagedStack
from hispec.policies.static import StaticPolicy
from tests.support import PROMPT, decode_ids, fused_stack, hierarchy_of, random_model

CPU, META = torch.device("cpu"), torch.device("meta")
LAYERS = 6


@pytest.fixture(scope="module")
def model():
    return random_model(layers=LAYERS)


def staged(model, *counts, devices=(CPU,) * LAYERS):
    """The stack with given numbers of layers on each device; those on the meta device have no values."""
    config = parse_config(model.config.to_dict(), model.config)
    state, stages, at = model.state_dict(), [], 0
    for count, device in zip(counts, devices, strict=False):
        weights = FusedWeights(config, torch.float32, device, span=range(at, at + count))
        for name, part in weights.parts.items():
            part.copy_(state[name])
        stages.append(FusedStack(config, weights, "staged"))
        at += count
    return StagedStack(stages)


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("counts", [(6,), (3, 3), (1, 4, 1), (1,) * 6])
def test_stages_write_the_ids_of_one_stack(model, counts, graphs):
    one, several = fused_stack(model), with_graphs(staged(model, *counts), graphs)
    assert isinstance(several.stages[-1], GraphedStack) == (graphs == "on")
    one.prepare("free")
    several.prepare("auto")
    for exits, periods in (((), (1,)), ((2,), (1, 3)), ((1, 4), (1, 2, 4))):
        expected = decode_ids(hierarchy_of(one, *exits), periods, max_new_tokens=80)
        assert decode_ids(hierarchy_of(several, *exits), periods, max_new_tokens=80) == expected
    words = [range(0, 24, 2)]
    expected = decode_ids(hierarchy_of(one, 1, 2, words=words), (1, 2, 4), max_new_tokens=30)
    assert decode_ids(hierarchy_of(several, 1, 2, words=words), (1, 2, 4), max_new_tokens=30) == expected


def test_stages_draw_the_ids_of_one_stack(model):
    def drawn(stack, exits, periods):
        stack.prepare("auto")
        hierarchy = hierarchy_of(stack, *exits)
        return Decoder(hierarchy, lambda: StaticPolicy(periods), lambda *_: Sampling(0.9)).token_ids(PROMPT, 60, 3)

    expected = drawn(fused_stack(model), (), (1,))
    for exits, periods in (((), (1,)), ((2,), (1, 3)), ((1, 4), (1, 2, 4))):
        for graphs in ("off", "on"):
            assert drawn(with_graphs(staged(model, 1, 3, 2), graphs), exits, periods) == expected


def test_every_stage_has_its_own_weights_and_all_one_cache(model):
    several = staged(model, 2, 4)
    assert several.parts.keys() == fused_stack(model).parts.keys()
    assert [stage.cache for stage in several.stages] == [several.cache] * 2
    first, second = (set(stage._weights.parts) for stage in several.stages)
    assert not first & second and {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= first


def test_rows_follow_their_layers_and_shallow_levels_stay_on_the_first_device(model):
    """The second device is one without values: mixing it with the first would raise."""
    config = parse_config(model.config.to_dict(), model.config)
    stages = [
        FusedStack(config, FusedWeights(config, torch.float32, device, span=span), "two devices")
        for device, span in ((CPU, range(3)), (META, range(3, 6)))
    ]
    several = StagedStack(stages)
    for part in stages[0].parts.values():
        part.fill_(0.1)
    several.reserve(40)
    assert several.device == CPU and several.devices == [CPU] * 3 + [META] * 3
    assert [layer.device for layer in several.cache.layers] == several.devices
    for rows, position in ((8, 0), (1, 8), (3, 5)):
        middle = several.run(several.embed([1] * rows), 0, 3, position)
        assert middle.device == CPU and bool(middle.isfinite().all())
        deep = several.run(middle, 2, 6, position)
        assert (deep.device, deep.shape) == (META, (rows, 32))
        assert several.head(middle).shape == (rows, 24)
    token = torch.tensor([1])
    read = lambda hidden: several.head(hidden).max(-1)  # noqa: E731
    tokens, _, hidden = several.write_run(token, 3, 4, 5, read)
    assert tokens.shape == (5,) and hidden.device == CPU


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_copies_are_staged_too_and_read_the_same_cache(graphs):
    model = random_model(layers=4, hidden_size=64, intermediate_size=128, head_dim=16)
    one, several = fused_stack(model), with_graphs(staged(model, 3, 1), graphs)
    several.reserve(40)
    one.reserve(40)
    shallow = several.quantized("int8", 2)
    assert len(shallow.stages) == 1 and several.quantized("int8", 1) is shallow
    for quantization in ("int8", "int4"):
        copy, expected = several.quantized(quantization), one.quantized(quantization)
        assert copy.cache is several.cache and copy.num_layers == 4 and len(copy.stages) == 2
        assert copy.quantized_bytes == expected.quantized_bytes > 0
        results = [stack.head(stack.run(stack.embed(PROMPT), 0, 4, 0)) for stack in (copy, expected)]
        torch.testing.assert_close(*results, rtol=0, atol=1e-2 if quantization == "int4" else 1e-4)
    copy.reserve(300)
    assert several.cache.positions >= 300 and several.stages[1]._shared.tabulated == several.cache.positions


def test_what_one_stage_has_recorded_goes_before_any_cache_grows(model):
    several = staged(model, 3, 3)
    several = StagedStack([GraphedStack.of(stage, lambda work: work) for stage in several.stages])
    several.reserve(40)
    for _ in range(3):
        several.run(several.embed(PROMPT), 0, LAYERS, 0)
    assert len(several.stages[0]._recorded) == 2
    several.cache.layers[4] = None  # growing fails half-way, when layers of the first stage have grown
    with pytest.raises(AttributeError):
        several.reserve(2000)
    assert not several.stages[0]._recorded and not several.stages[1]._recorded


def test_a_pass_of_one_width_is_cut_alike_on_every_stage(model):
    several, one = staged(model, 2, 4), fused_stack(model)
    for stack in (several.stages[0], several.stages[1], one):
        stack.rows = RowCounts((4,), 64)
    several.reserve(90)
    one.reserve(90)
    for start, end, prompt in ((0, 70, True), (70, 77, False), (77, 78, False)):
        ids = [at % 24 for at in range(start, end)]
        found, expected = (stack.run(stack.embed(ids), 0, LAYERS, start, prompt=prompt) for stack in (several, one))
        assert torch.equal(found, expected)
