"""The default dtype of weights: their own, unless the processor is faster with bfloat16."""

import pytest
import torch

from hispec.machine import has_bfloat16, packs_as_float16
from hispec.memory import estimate
from hispec.models import dtypes
from hispec.models.checkpoint import Checkpoint
from hispec.models.dtypes import BFLOAT16_FROM, fastest_dtype
from hispec.models.linear import Float16Linear, packing
from hispec.models.loading import draw_stack, load_stack
from hispec.models.placement import Placement
from hispec.profile import profile_for_model
from hispec.settings import Settings
from tests.support import random_model


@pytest.fixture(params=[True, False], ids=["with bfloat16", "without"])
def fast(request, monkeypatch):
    """Whether the processor has bfloat16 instructions."""
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("own", "hidden", "device"),
    [
        ("bfloat16", 4096, "cpu"),
        ("float16", 4096, "cpu"),
        ("float32", 4096, "cuda"),
        ("float32", BFLOAT16_FROM - 1, "cpu"),
        (None, 4096, "cpu"),
    ],
)
def test_most_checkpoints_keep_their_own(fast, own, hidden, device):
    assert fastest_dtype(own, hidden, device) == own


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_a_large_float32_model_is_computed_in_bfloat16_unless_the_user_said_otherwise(fast, stack, tmp_path):
    model = random_model(hidden_size=BFLOAT16_FROM, intermediate_size=16, layers=1)
    model.save_pretrained(tmp_path)
    for asked, dtype in [("auto", "bfloat16" if fast else "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]:
        loaded = load_stack(Checkpoint(str(tmp_path)), Placement(dtype=asked, stack=stack))
        drawn, _ = draw_stack(Checkpoint(str(tmp_path), dummy=True), Placement(dtype=asked, stack=stack))
        assert loaded.dtype == drawn.dtype == getattr(torch, dtype)
        profile = profile_for_model(str(tmp_path), 2, 1, None)
        need = estimate(profile, Settings(dtype=asked, device="cpu", stack=stack))
        assert need is not None and {one.dtype for one in need.models} == {dtype}


def test_the_estimate_knows_which_weights_are_packed_as_float16():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        packed = packing(dtype, torch.device("cpu"), 1 << 30) is Float16Linear
        assert packs_as_float16(str(dtype).removeprefix("torch.")) == packed


def test_torch_and_linux_agree_about_this_processor():
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else None
    if not known or known.get("architecture") != "x86_64":
        pytest.skip("torch does not say")
    assert has_bfloat16() == bool(known["avx512_bf16"] or known["amx_bf16"])


@pytest.mark.parametrize(
    ("flags", "held", "of_large"),
    [
        ({"avx2"}, 1024 * 1600, 1024),
        ({"avx2", "avx512bw"}, 768 * 1600, 640),
        ({"avx2", "avx512bw", "avx512_vnni"}, 1024 * 1632, 28672 / 48),
        (set(), 576 * 1600, 576),
    ],
)
def test_8_bit_matrices_are_padded_as_the_processor_has_them(monkeypatch, flags, held, of_large):
    monkeypatch.setattr(dtypes, "processor_flags", lambda: flags)
    bits = dtypes.bits_per_weight("int8", 576, outputs=1600)
    assert bits == pytest.approx(8 * (held + 16 * 1600) / (576 * 1600))
    large = dtypes.bits_per_weight("int8", 576, outputs=48 * 2048)  # whose padding is never touched
    assert large == pytest.approx(8 * (of_large + 16) / 576)
    assert dtypes.bits_per_weight("int8", 576, "cuda:0") == pytest.approx(8 + 32 / 576)


@pytest.mark.parametrize(
    ("flags", "device", "own"),
    [({"avx2"}, "cpu", False), ({"avx512_vnni"}, "cpu", True), ({"avx512_vnni"}, "cuda", False)],
)
def test_copies_have_heads_of_their_own_where_the_processor_has_vnni(monkeypatch, flags, device, own):
    monkeypatch.setattr(dtypes, "processor_flags", lambda: flags)
    assert dtypes.heads_in_8_bits(device) == own
