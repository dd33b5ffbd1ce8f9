"""Linear layers of quantized weights: how far they are from the full ones, and that no row depends on another."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from hispec import files
from hispec.limits import WIDEST
from hispec.models import kernels
from hispec.models.config import parse_config
from hispec.models.dtypes import bits_per_weight
from hispec.models.kernels import fastest_copy, limit_rows, quantize
from hispec.models.linear import Linear, OneDnnLinear
from hispec.models.quantized import (
    GROUP,
    Int4Linear,
    Int8Linear,
    Int8WeightLinear,
    by_chunks,
    int8_kernels,
    largest_code,
    quantize_int4,
    quantize_int8,
)
from tests.support import random_model

CPU = torch.device("cpu")
SHAPES = [(24, 32), (40, 48), (100, 33), (1319, 128), (64, 704)]
"""Outputs and inputs, some of which no kernel takes as they are."""


def weights_of(outputs, inputs, seed=0):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) + 0.1


def rows_of(count, inputs, seed=1):
    """Rows whose sizes differ much, so that a scale that all shared would show."""
    rows = torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))
    return rows * torch.logspace(-2, 2, count)[:, None]


def quantized(quantization, outputs, inputs, bias=None, dtype=torch.float32):
    return quantize(Linear(weights_of(outputs, inputs).to(dtype).t(), bias), quantization)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    kernels._measured.cache_clear()
    yield
    kernels._measured.cache_clear()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_code_of_8_bits_is_within_half_a_step_of_its_weight(shape):
    weights = weights_of(*shape)
    steps = weights.abs().amax(1) / 127
    error = (quantized("int8", *shape).dense().t() - weights).abs()
    assert (error <= steps[:, None] * 0.5001).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_code_of_4_bits_is_within_a_step_of_its_weight_where_it_is_not_clipped(shape):
    """A grid of the whole range is one of those tried: the error of a group is no larger than with that."""
    outputs, inputs = shape
    weights = weights_of(*shape)
    padded = torch.nn.functional.pad(weights, (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    low, high = padded.amin(-1, keepdim=True), padded.amax(-1, keepdim=True)
    step = (high - low) / 15
    plain = ((padded - low) / step).round() * step + low
    dense = torch.nn.functional.pad(quantized("int4", *shape).dense().t(), (0, -inputs % GROUP)).view_as(padded)
    assert (dense - padded).norm() < 1.02 * (plain - padded).norm()  # scales are bfloat16, hence the 2 %
    assert ((dense - padded).abs() <= 1.7 * step).all()  # clipped by .15 of half the range, rounded by half a step


def test_a_grid_of_4_bits_is_kept_as_it_is():
    """Weights that are on such a grid come out unchanged: those of a file in 4 bits."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 64), generator=rng, dtype=torch.uint8)
    codes[:, ::GROUP], codes[:, 1::GROUP] = 0, 15  # the whole range, as these files have it
    scales, zeros = (torch.rand(32, 2, generator=rng).bfloat16() for _ in range(2))
    linear = Int4Linear(codes, scales, zeros)
    weights = linear.dense().t()
    expected = (codes.view(32, 2, GROUP) - 8.0) * scales.float()[..., None] + zeros.float()[..., None]
    assert torch.equal(weights, expected.view(32, 64))
    again = quantize(Linear(weights.t()), "int4")
    assert (again.dense().t() - weights).abs().max() < 0.02 * weights.abs().max()


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_that_of_the_dequantized_weights(quantization, shape, dtype, bias):
    outputs, inputs = shape
    offset = torch.linspace(-1, 1, outputs).to(dtype) if bias else None
    linear = quantized(quantization, outputs, inputs, offset, dtype)
    rows = rows_of(5, inputs).to(dtype)
    expected = rows.double() @ linear.dense().double() + (0 if offset is None else offset.double())
    share = 0.02 * 127 / largest_code() if quantization == "int8" else 0.02  # 8-bit activations, or 7-bit, or bfloat16
    tolerance = expected.abs().amax(1, keepdim=True) * share
    got = linear(rows)
    assert got.dtype == dtype and ((got - expected).abs() < tolerance).all()
    out = torch.empty_like(got)
    assert linear(rows, out) is out and torch.equal(out, got)
    hidden = torch.ones(5, outputs, dtype=dtype)
    linear.add_to(hidden, rows)
    assert ((hidden - 1 - expected).abs() < tolerance + 0.02).all()


def test_rows_that_do_not_lie_together_are_multiplied_as_others():
    rows = torch.randn(6, 2 * 64)[:, :64]
    for quantization in ("int8", "int4"):
        linear = quantized(quantization, 48, 64)
        assert not rows.is_contiguous() and torch.equal(linear(rows), linear(rows.contiguous()))


@pytest.mark.parametrize("kernel", int8_kernels())
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 256), (256, 2048)], ids=str)
def test_a_row_of_8_bits_is_the_same_to_the_last_bit_in_any_count_beside_any_rows_with_any_kernel(shape, kernel):
    codes, scales = quantize_int8(weights_of(*shape))
    linear, reference = Int8Linear(codes, scales, None, kernel), Int8Linear(codes, scales, None, "int_mm")
    rows = rows_of(33, shape[1]).bfloat16()
    expected = torch.cat([reference(row[None]) for row in rows])
    for count in (1, 2, 3, 5, 8, 16, 33):
        got = torch.cat([linear(rows[at : at + count]) for at in range(0, 33, count)])
        assert torch.equal(got, expected), count
    shuffled = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear(rows[shuffled]), expected[shuffled])


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_row_of_zeros_gives_zeros_and_none_that_is_no_number(quantization):
    assert torch.equal(quantized(quantization, 24, 32)(torch.zeros(2, 32)), torch.zeros(2, 24))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 1319)], ids=["plain", "bias"])
def test_selected_outputs_are_those_of_the_whole(quantization, bias):
    linear = quantized(quantization, 1319, 128, bias)
    ids, rows = torch.tensor([0, 7, 64, 1300, 1318]), rows_of(4, 128)
    assert torch.equal(linear.select(ids).dense(), linear.dense()[:, ids])
    assert torch.equal(linear.select(ids)(rows), linear(rows)[:, ids])


@pytest.mark.parametrize("packed", [False, True])
def test_selected_outputs_of_full_weights_are_those_of_the_whole(packed):
    linear = Linear(weights_of(64, 48).t(), torch.linspace(-1, 1, 64))
    linear = OneDnnLinear(linear) if packed else linear
    ids, rows = torch.tensor([0, 3, 63]), rows_of(4, 48)
    assert type(linear.select(ids)) is type(linear)
    torch.testing.assert_close(linear.select(ids)(rows), linear(rows)[:, ids])


@pytest.mark.parametrize("shape", [(512, 256), (1024, 704)], ids=str)
def test_bytes_are_those_of_the_estimate(shape):
    linear = quantized("int4", *shape)
    assert linear.nbytes == linear.outputs * linear.inputs * bits_per_weight("int4", shape[1]) / 8


@pytest.mark.parametrize("kernel", int8_kernels())
@pytest.mark.parametrize("shape", [(512, 256), (1024, 704)], ids=str)
def test_bytes_are_at_most_those_of_the_estimate_which_counts_the_padding_of_fbgemm(shape, kernel):
    """The fastest kernel differs from one measurement to the next, and only fbgemm pads."""
    codes, scales = quantize_int8(weights_of(*shape))
    linear, estimated = (
        Int8Linear(codes, scales, kernel=kernel),
        shape[0] * shape[1] * bits_per_weight("int8", shape[1], outputs=shape[0]) / 8,
    )
    assert linear.nbytes == estimated if kernel == "fbgemm" else linear.nbytes <= estimated


@pytest.mark.parametrize("quantization", [quantize_int8, quantize_int4])
def test_a_matrix_is_never_held_in_float32(quantization):
    """The sizes of what is quantized at once: large matrices go through in chunks."""
    seen = []

    def counted(part):
        seen.append(part.numel())
        return quantization(part)

    weights = torch.ones(3000, 1024, dtype=torch.bfloat16)
    parts = by_chunks(weights, counted)
    assert max(seen) <= 1 << 20 and sum(seen) == weights.numel() and len(parts[0]) == 3000


def test_8_bit_weights_beside_full_activations_are_those_of_their_codes():
    """The CUDA path, with the kernel that every device has."""
    codes, scales = quantize_int8(weights_of(40, 48))
    linear = Int8WeightLinear(codes, scales, torch.ones(40), torch.float32, "dequantized")
    rows = rows_of(3, 48)
    torch.testing.assert_close(linear(rows), rows @ linear.dense() + 1, rtol=1e-4, atol=1e-3)
    assert torch.equal(linear.select(torch.tensor([3, 1])).dense(), linear.dense()[:, [3, 1]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(64, 128), (1319, 576), (256, 704)], ids=str)
def test_on_a_gpu_products_are_those_of_the_dequantized_weights(quantization, shape):
    linear = quantize(Linear(weights_of(*shape).bfloat16().cuda().t()), quantization)
    for count in (1, 2, 8, 33):
        rows = rows_of(count, shape[1]).bfloat16().cuda()
        expected = rows.double() @ linear.dense().double()
        assert ((linear(rows) - expected).abs() < expected.abs().amax(1, keepdim=True) * 0.02).all()
    ids = torch.tensor([0, 5], device="cuda")
    assert torch.equal(linear.select(ids).dense(), linear.dense()[:, ids])


def test_costs_are_measured_once_for_each_shape_and_remembered(tmp_path, monkeypatch):
    first = kernels._costs_of(256, 1024, torch.bfloat16, CPU)
    assert set(first) == set(int8_kernels()[:2])
    for costs in first.values():
        assert sorted(costs) == [1, 2, 4, 8, 16] and all(seconds > 0 for seconds in costs.values())
    kept = json.loads((tmp_path / "cache" / "kernels.json").read_text())
    assert len(kept) == 1 and "256 x 1024" in next(iter(kept))
    kernels._measured.cache_clear()  # as in another process
    monkeypatch.setattr(kernels, "_timed", lambda *_: pytest.fail("measured again"))
    assert kernels._costs_of(256, 1024, torch.bfloat16, CPU) == first


def test_of_a_large_matrix_a_part_is_timed(monkeypatch):
    timed = []

    def seconds(make, inputs, outputs, *_):
        assert make().dense().shape == (inputs, outputs)
        timed.append(outputs)
        return dict.fromkeys(kernels.ROWS, 1.0)

    monkeypatch.setattr(kernels, "_seconds", seconds)
    kernels._costs_of(64, 1 << 20, torch.bfloat16, CPU)
    assert set(timed) == {kernels.READ // 64 // 64 * 64}


@pytest.mark.parametrize("broken", ["", "[1]", '{"a": 3}', '{"a": {"b": {"1": "x"}}}'])
def test_a_broken_memory_of_costs_is_measured_again(tmp_path, broken):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels.json").write_text(broken)
    assert all(costs[1] > 0 for costs in kernels._costs_of(64, 64, torch.float32, CPU).values())


@pytest.mark.parametrize(
    ("formats", "inner", "capability", "chosen"),
    [
        (("int4", "int8"), 1 << 21, "AVX2", "int8"),
        (("int4", "int8"), 1 << 18, "AVX2", "int8"),
        (("int4", "int8"), 1 << 18, "AVX512", "int4"),  # its activations of 8 bits agree less
        (("int4", "int8"), 1 << 21, "AVX512", "int8"),
        (("int4", "int8"), 1 << 21, "DEFAULT", "int4"),
        (("int4",), 1 << 21, "AVX2", "int4"),
        (("int4", "int8"), 96, "AVX2", "int4"),
    ],
)
def test_a_copy_has_8_bits_where_4_are_slow(monkeypatch, formats, inner, capability, chosen):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    config = random_model("llama").config
    shape = replace(parse_config(config.to_dict(), config), intermediate_size=inner)
    assert fastest_copy(shape, CPU, formats) == chosen
    assert fastest_copy(shape, torch.device("cuda"), formats) == "int4"


@pytest.mark.parametrize(("quantization", "full"), [("int8", 3), ("int4", 9)])
def test_full_weights_multiply_where_they_are_measured_to_be_the_faster(monkeypatch, quantization, full):
    """Times that are made up: each row of quantized weights takes 1, all of the full ones together some number."""

    def took(matrices, given):
        multiplying = {type(matrix) is Linear for matrix, _ in matrices}
        assert len(matrices) == 4 and len(multiplying) == 1  # two layers of two, and either all full or none
        return float(full) if multiplying == {True} else float(len(given[256]))

    shapes = [(256, 1024), (1024, 256)]
    layers = [
        [quantize(Linear(weights_of(outputs, inputs).t()), quantization, beside=True) for inputs, outputs in shapes]
        for _ in range(2)
    ]
    assert all(matrix.narrow == WIDEST for layer in layers for matrix in layer)
    monkeypatch.setattr(kernels, "_pass", took)
    limit_rows(layers, shapes, torch.float32, CPU)
    narrow = max(rows for rows in kernels.ROWS if rows <= full)
    assert all(matrix.narrow == narrow for layer in layers for matrix in layer)
    made, rows = layers[0][0], rows_of(narrow + 1, 256)
    assert torch.equal(made(rows), made.wide(rows)) and not torch.equal(made(rows[1:]), made.wide(rows[1:]))
    alone = quantize(made.wide, quantization)
    assert alone.wide is None and not torch.equal(alone(rows), made.wide(rows))


def test_passes_go_through_no_more_layers_than_caches_hold(monkeypatch):
    passes = []
    monkeypatch.setattr(kernels, "READ_LAYERS", 3 * 256 * 1024)
    monkeypatch.setattr(kernels, "_pass", lambda matrices, _: float(passes.append(len(matrices)) or 1))
    layer = [quantize(Linear(weights_of(1024, 256).t()), "int4", beside=True)]
    limit_rows([layer] * 9, [(256, 1024)], torch.float32, CPU)
    assert set(passes) == {3}
    passes.clear()
    limit_rows([layer] * 9, [(256, 1024)], torch.float32, CPU)
    assert not passes  # it is remembered


def test_the_fastest_kernel_for_8_bits_is_taken(monkeypatch):
    for wanted in int8_kernels()[:2]:
        costs = {name: {rows: float(name != wanted) for rows in kernels.ROWS} for name in int8_kernels()}
        monkeypatch.setattr(kernels, "_costs_of", lambda *_, costs=costs: costs)
        assert quantize(Linear(weights_of(1024, 256).t()), "int8").kernel == wanted


def test_nobody_is_told_of_what_torch_will_retire():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized("int8", 24, 32).dense()
