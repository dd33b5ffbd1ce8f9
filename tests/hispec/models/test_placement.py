"""Models on several devices, on CPU and disk, and quantized: placed as planned, with the output that they have
elsewhere.
"""

import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils.modeling import compute_module_sizes
from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModelForCausalLM

from hispec import Engine, loading
from hispec.errors import UnavailableError, UsageError
from hispec.models.checkpoint import Checkpoint, checkpoints_of
from hispec.models.loading import load_stack
from hispec.models.placement import Placement, plan_devices
from hispec.models.transformers_stack import TransformersStack
from hispec.profile import load_profile, with_exits
from hispec.settings import Settings, parse_memory
from tests.support import PROMPT, decode_ids, greedy_by_hand, hierarchy_of, random_model

LARGE = "facebook/layerskip-llama2-70B"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def large():
    return AutoConfig.from_pretrained(Checkpoint(LARGE).shipped_config)


@pytest.mark.parametrize(
    ("memory", "shallow", "layers"),
    [
        ("0=75GB,1=75GB,cpu=1GB", 0, {0: 39, 1: 41}),
        ("0=40GB,1=40GB,2=40GB,3=40GB", 10, {0: 19, 1: 21, 2: 21, 3: 19}),
        ("0=70GB,1=40GB,2=40GB,3=40GB,4=40GB", 30, {0: 30, 1: 13, 2: 13, 3: 13, 4: 11}),
        ("0=75GB,cpu=60GB", 20, {0: 42, "cpu": 34, "disk": 4}),
        ("cpu=400GB", 20, {"cpu": 80}),
    ],
)
def test_layers_are_spread_in_order_and_shallow_exits_stay_on_the_first_device(large, memory, shallow, layers):
    limits = parse_memory(memory)
    where = plan_devices(large, LARGE, torch.bfloat16, 16, limits, shallow)
    places = [device for module, device in where.items() if ".layers." in module]
    assert {device: places.count(device) for device in dict.fromkeys(places)} == layers
    order = list(dict.fromkeys(places))
    assert all(order.index(a) <= order.index(b) for a, b in pairwise(places))
    others = {module: device for module, device in where.items() if ".layers." not in module}
    assert others.keys() == {"model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"}
    assert set(others.values()) == set(places[: max(shallow, 1)]) == {next(iter(limits))}
    with torch.device("meta"):
        sizes = compute_module_sizes(AutoModelForCausalLM.from_config(large, dtype=torch.bfloat16))
    for device, limit in limits.items():
        assert sum(sizes[module] for module, place in where.items() if place == device) <= limit


def test_a_tied_head_counts_once_and_four_bits_take_a_quarter(large):
    tied = AutoConfig.from_pretrained(Checkpoint("meta-llama/Llama-3.2-3B-Instruct").shipped_config)
    room = parse_memory("0=6.5GB,cpu=10GB")  # the published model has 6.4 GB
    assert set(plan_devices(tied, "tied", torch.bfloat16, 16, room).values()) == {0}
    assert set(plan_devices(large, LARGE, torch.bfloat16, 4, parse_memory("0=40GB,cpu=10GB")).values()) == {0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    random_model(layers=6).save_pretrained(folder, max_shard_size="20KB")
    return folder


def test_what_the_memory_cannot_hold_is_read_from_disk_and_writes_the_same(folder):
    expected = greedy_by_hand(load_stack(Checkpoint(str(folder)), Placement(stack="transformers")).model, 30)
    spread = Placement(spread=True, max_memory={"cpu": 80_000})
    stack = load_stack(Checkpoint(str(folder)), spread)
    places = [stack.model.hf_device_map[f"model.layers.{index}"] for index in range(6)]
    assert places[0] == "cpu" and places[-1] == "disk"
    assert {parameter.device.type for parameter in stack.model.model.layers[5].parameters()} == {"meta"}
    assert set(stack.devices) == {stack.device} == {CPU}
    for exits, periods in (((1, 2), (1, 2, 4)), ((3,), (1, 3)), ((), (1,))):
        assert decode_ids(hierarchy_of(stack, *exits), periods, max_new_tokens=30) == expected
    words = [range(0, 24, 2)]
    assert decode_ids(hierarchy_of(stack, 1, 2, words=words), (1, 2, 4), max_new_tokens=30) == expected


def test_the_whole_program_decodes_a_model_that_is_spread():
    profile = with_exits(load_profile("tiny"), 2, 4)
    alone = Engine.from_profile(profile, max_new_tokens=40)
    spread = Engine.from_profile(profile, max_new_tokens=40, device_map="auto", max_memory="cpu=4MB")
    layers = spread.environment["layers"]
    assert sum(layers.values()) == 16 and list(layers) == ["cpu", "disk"]
    question = "Ben has 12 cards. Mei gives Ben 5 more. How many cards does Ben have?"
    assert spread.generate(question).token_ids == alone.generate(question).token_ids


def test_rows_follow_their_layers_from_device_to_device():
    """The second device is one without values: mixing it with the first would raise."""
    model, second = random_model(layers=4), torch.device("meta")
    moved = [*model.model.layers[2:], model.model.norm, model.lm_head]
    for module in moved:
        add_hook_to_module(module.to(second), AlignDevicesHook(execution_device=second, io_same_device=False))
    stack = TransformersStack(model, "two devices")
    assert stack.devices == [CPU, CPU, second, second] and stack.device == second
    stack.reserve(20)
    assert [layer.device for layer in stack.cache.layers] == stack.devices
    for rows, position in ((8, 0), (1, 8), (3, 5)):
        middle = stack.run(stack.embed([1] * rows), 0, 2, position)
        assert middle.device == CPU and bool(middle.isfinite().all())
        logits = stack.head(stack.run(middle, 2, 4, position))
        assert (logits.device, logits.shape) == (second, (rows, 24))
        assert stack.head(middle).device == second


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_weights_write_what_they_write_alone(quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    random_model(hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "whole")
    stack = load_stack(Checkpoint(str(tmp_path / "whole")), Placement(dtype="bfloat16", quantization=quantization))
    assert stack.kind == "transformers" and stack.dtype == torch.bfloat16
    kind = type(stack.model.model.layers[0].mlp.up_proj).__name__
    assert kind == {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantization]
    prompt = torch.tensor([PROMPT])
    expected = stack.model.generate(prompt, max_new_tokens=12, do_sample=False)[0, len(PROMPT) :].tolist()
    assert decode_ids(hierarchy_of(stack, 1, 2), (1, 2, 4)) == expected
    stack.model.save_pretrained(tmp_path / "quantized")
    again = load_stack(Checkpoint(str(tmp_path / "quantized")), Placement())
    expected = again.model.generate(prompt, max_new_tokens=12, do_sample=False)[0, len(PROMPT) :].tolist()
    assert decode_ids(hierarchy_of(again, 1, 2), (1, 2, 4)) == expected
    with pytest.raises(UsageError, match="quantized are quantized already"):
        twice = Placement(quantization=quantization)
        load_stack(Checkpoint(str(tmp_path / "quantized")), twice)


def test_without_its_library_quantization_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        UnavailableError, match="--quantization 4bit needs bitsandbytes, which is not installed"
    ) as caught:
        Engine.from_profile("tiny", quantization="4bit")
    assert "pip install 'hispec[quantization]'" in caught.value.hint
    Engine.from_profile("tiny", quantization="none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto", "device": "cpu"}, "--device names one device"),
        ({"max_memory": "cpu=1GB"}, "--max-memory limits what --device-map spreads"),
        ({"device_map": "auto", "max_memory": "cpu"}, "'cpu' is not a device and its memory"),
        ({"device_map": "auto", "max_memory": "cpu=1GB,gpu=2GB"}, "'gpu=2GB' is not a device"),
        ({"device_map": "auto", "load_format": "dummy"}, "random weights are drawn on one device"),
        ({"device_map": "auto", "max_memory": "cpu=4MB", "stack": "fused"}, "its layers are spread over devices"),
    ],
)
def test_placements_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Engine.from_profile("tiny", **options)


def test_sizes_are_read_as_people_write_them():
    assert parse_memory("0=20GB, 1=1.5GiB,cpu=60 gb") == {0: 20 * 10**9, 1: 3 * 2**29, "cpu": 60 * 10**9}


def test_a_profile_may_ask_for_quantization(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("target: {model: 'builtin:tiny', quantization: 8bit}\n")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UnavailableError, match="8bit needs bitsandbytes"):
        Engine.from_profile(str(tmp_path / "mine.yaml"))


@pytest.fixture
def eight_gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)


def place(memory, **settings):
    """The placements of the profile's models, whose draft is a separate model."""
    profile = load_profile("llama-3b-70b")
    settings = Settings(device_map="auto", max_memory=memory, load_format="dummy", **settings)
    checkpoints = checkpoints_of(profile, "hispec", dummy=True)
    return loading._place(profile, settings, checkpoints, None)


@pytest.mark.parametrize("gpus", [4, 8])
def test_a_draft_model_stays_whole_on_the_first_gpu_and_the_target_leaves_it_room(eight_gpus, gpus):
    found = place(",".join(f"{number}=78GB" for number in range(gpus)))
    draft, target = found["princeton-nlp/Sheared-LLaMA-2.7B"], found["facebook/layerskip-llama2-70B"]
    assert (draft.device, draft.stages, draft.spread, draft.special) == (torch.device("cuda:0"), (), False, None)
    assert [device.index for device, _ in target.stages] == list(range(gpus)) and not target.spread
    counts = [count for _, count in target.stages]
    assert sum(counts) == 80
    each = 43e9 / 80 + 137e9 / 80  # a layer with its copy, about; the first one also has the draft, 5.4 GB, and heads
    assert all(count * each < 78e9 for count in counts) and counts[0] * each + 6.5e9 < 78e9


def test_the_room_of_a_draft_model_is_not_given_to_the_target_where_cards_are_nearly_full(eight_gpus):
    target = place(",".join(f"{number}=52GB" for number in range(4)))["facebook/layerskip-llama2-70B"]
    first, *others = [count for _, count in target.stages]
    each = 43e9 / 80 + 137e9 / 80
    assert first * each + 6.5e9 < 52e9 and first < min(others)


def test_what_one_gpu_holds_is_not_spread_and_what_gpus_cannot_hold_is_left_to_transformers(eight_gpus):
    found = place("0=300GB,1=300GB")
    assert {(one.device.index, one.stages, one.spread) for one in found.values()} == {(0, (), False)}
    assert {one.device.index for one in found.values()} == {0}
    found = place("0=78GB,1=40GB,cpu=300GB")
    assert [one.spread for one in found.values()] == [False, True]  # the target's last layers are on the CPU
    assert found["facebook/layerskip-llama2-70B"].special == "its layers are spread over devices"
    with pytest.raises(UnavailableError, match="no GPU 9"):
        place("9=78GB")


def test_a_model_that_the_memory_holds_is_not_spread_either():
    engine = Engine.from_profile("tiny", device_map="auto", max_new_tokens=4)
    assert engine.environment["stack"] == "fused" and "layers" not in engine.environment


def test_bitsandbytes_is_one_that_multiplies_several_rows_in_four_bits():
    """Before 0.50 it dequantized the whole matrix for more than one row, which every verification has."""
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (needed,) = map(Requirement, extras["quantization"])
    assert (
        needed.name == "bitsandbytes" and not needed.specifier.contains("0.49.9") and needed.specifier.contains("0.50")
    )
