"""Matrices that libraries have packed: the same weights, and rows that do not depend on their number."""

import pytest
import torch

from hispec.models import linear as module
from hispec.models.dtypes import packed_float16
from hispec.models.linear import Float16Linear, Linear, OneDnnLinear, has_float16_kernel, packing
from hispec.models.rows import CANDIDATES

needs_kernel = pytest.mark.skipif(not has_float16_kernel(), reason="this processor has no such kernel")
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def weights_of(dtype, outputs=48, inputs=640):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)


def rows_of(dtype, count, inputs=640):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)


@needs_kernel
@HALF
@pytest.mark.parametrize("biased", [False, True])
def test_packed_weights_of_16_bits_multiply_like_the_full_ones(dtype, biased):
    bias = torch.linspace(-1, 1, 48).to(dtype) if biased else None
    full, rows = Linear(weights_of(dtype).t(), bias), rows_of(dtype, 5)
    packed = Float16Linear(full)
    exact = rows.double() @ weights_of(dtype).double().t() + (0 if bias is None else bias.double())
    found = packed(rows)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=1e-5)
    out = torch.empty_like(found)
    assert packed(rows, out) is out and torch.equal(out, found)
    hidden = rows_of(dtype, 5, 48)
    expected = hidden.double() + exact
    packed.add_to(hidden, rows)
    torch.testing.assert_close(hidden.double(), expected, rtol=2**-6, atol=1e-2)


@needs_kernel
@HALF
def test_packed_weights_of_16_bits_keep_their_values(dtype):
    weight = weights_of(dtype)
    weight[1], weight[2] = 0, weight[2] * 1e-3
    if dtype == torch.bfloat16:  # beyond float16's numbers
        weight[3], weight[4], weight[5, 0] = weight[3] * 1e30, weight[4] * 1e-34, weight[5, 0] * 1e-6
    packed = Float16Linear(Linear(weight.t()))
    assert torch.equal(packed.dense(), weight.t())
    ids = torch.tensor([5, 0, 47])
    assert isinstance(packed.select(ids), Float16Linear)
    assert torch.equal(packed.select(ids).dense(), weight[ids].t())


@needs_kernel
@HALF
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_give_no_number(dtype, number):
    weight = weights_of(dtype)
    weight[7, 3] = number
    found = Float16Linear(Linear(weight.t()))(rows_of(dtype, 3))
    assert found[:, 7].isnan().all() and found[:, :7].isfinite().all()


@needs_kernel
def test_row_counts_of_packed_weights_add_in_the_same_order():
    counts = Float16Linear.row_counts(CANDIDATES)
    assert len(counts) > 4
    packed, rows = Float16Linear(Linear(weights_of(torch.bfloat16, 300, 1100).t())), rows_of(torch.float32, 192, 1100)

    def text(count):
        return torch.cat([packed._multiply(rows[at : at + count], packed._packed) for at in range(0, 192, count)])

    whole = text(3)
    for count in counts:
        full = 192 // count * count  # the last pass may have another count
        assert torch.equal(text(count)[:full], whole[:full])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_small_matrices_of_16_bits_are_not_packed_as_float16(dtype):
    cpu = torch.device("cpu")
    assert packing(dtype, cpu, 100) in (None, OneDnnLinear)
    assert packing(dtype, torch.device("meta"), 1 << 30) is None
    if dtype == torch.float16 and has_float16_kernel():
        assert packing(dtype, cpu, 1 << 30) is Float16Linear


def test_without_a_kernel_torch_multiplies(monkeypatch):
    def refuse(*_):
        raise RuntimeError("didn't find engine for operation quantized::linear_prepack_fp16")

    monkeypatch.setattr(Float16Linear, "_pack", refuse)
    module.has_float16_kernel.cache_clear()
    try:
        assert packing(torch.float16, torch.device("cpu"), 1 << 30) is None
    finally:
        module.has_float16_kernel.cache_clear()


def test_the_estimate_counts_blocks_of_512_inputs():
    assert packed_float16(512, 16) == 2 * 512 * 16 + 4 * 16
    assert packed_float16(576, 30) == 2 * 1024 * 32 + 4 * 30
