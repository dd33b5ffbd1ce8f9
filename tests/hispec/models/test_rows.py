"""One width: a row comes out the same to the last bit, however many rows are computed together."""

from random import Random

import pytest
import torch

from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.sampling import Sampling
from hispec.decoding.state import PrefixCache
from hispec.limits import WIDEST
from hispec.models import rows
from hispec.models.graphs import with_graphs
from hispec.models.rows import BUCKET, CANDIDATES, RowCounts, equal_counts, without_other_places
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.static import StaticPolicy
from tests.support import fused_stack, random_model

KINDS = ("fused", "graphed", "transformers")
LENGTH = 150
TEXT = [Random(0).randrange(24) for _ in range(LENGTH)]


def stack_of(kind, dtype=torch.bfloat16, family="llama", width="auto", **changes):
    model = random_model(family, max_position_embeddings=512, **changes).to(dtype)
    if kind == "transformers":
        stack = TransformersStack(model, "random")
    else:
        stack = with_graphs(fused_stack(model), "on" if kind == "graphed" else "off")
    stack.prepare(width)
    return stack


@torch.inference_mode()
def logits_of(stack, pieces):
    """The logits of the whole text, run in pieces of some sizes."""
    stack.clear()
    stack.reserve(LENGTH)
    found, at = [], 0
    for size in pieces:
        hidden = stack.run(stack.embed(TEXT[at : at + size]), 0, 2, at)
        found.append(stack.head(stack.run(hidden, 2, 4, at)))
        at += size
    assert at == LENGTH
    return torch.cat(found)


def pieces(seed, most):
    """Sizes that add up to the text's."""
    rng, left = Random(seed), LENGTH
    while left:
        size = min(left, rng.randint(1, most))
        yield size
        left -= size


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_bits_one_by_one_and_in_passes_of_any_size(kind, dtype, family):
    stack = stack_of(kind, dtype, family)
    one_by_one = logits_of(stack, [1] * LENGTH)
    assert one_by_one.isfinite().all()
    for seed in range(4):
        assert torch.equal(logits_of(stack, pieces(seed, 12)), one_by_one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_larger_matrices_in_passes_as_wide_as_a_prompts(dtype):
    stack = stack_of("fused", dtype, hidden_size=256, intermediate_size=512, vocab_size=4096)
    one_by_one = logits_of(stack, [1] * LENGTH)
    for seed in range(4):
        assert torch.equal(logits_of(stack, pieces(seed, 64)), one_by_one)


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"head_dim": 12}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes_of_attention_too(kind, changes):
    stack = stack_of(kind, **changes)
    assert torch.equal(logits_of(stack, pieces(1, 16)), logits_of(stack, [1] * LENGTH))


@pytest.mark.parametrize("width", [1, 3, 8, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_a_width(kind, width):
    stack = stack_of(kind, width=width)
    assert stack.rows.describe() == width
    assert torch.equal(logits_of(stack, pieces(2, 20)), logits_of(stack, [1] * LENGTH))


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_stacks_compute_what_they_computed(kind):
    stack, free = stack_of(kind, torch.float32), stack_of(kind, torch.float32, width="free")
    torch.testing.assert_close(logits_of(stack, pieces(0, 9)), logits_of(free, pieces(0, 9)), atol=1e-4, rtol=1e-4)


def test_what_rows_leave_behind_is_never_seen():
    """Rows of padding, and of a rejected draft, stay in the cache beyond the text."""
    stack = stack_of("fused")
    expected = logits_of(stack, [1] * LENGTH)
    with torch.inference_mode():
        stack.run(stack.embed([7] * 140), 0, 4, 10)
        found = [stack.head(stack.run(stack.embed(TEXT[at : at + 1]), 0, 4, at)) for at in range(10, LENGTH)]
    assert torch.equal(torch.cat(found), expected[10:])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("width", ["auto", 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_ids_are_those_of_the_target_alone(kind, width, sampling):
    stack = stack_of(kind, width=width)
    exits = [Level("draft", stack, 1), Level("intermediate", stack, 2), Level("target", stack, 4)]
    for levels, periods in ((exits, (1, 3, 5)), (exits[1:], (1, 7)), ([Level.of_ngrams(2, 5), *exits[1:]], (1, 1, 3))):
        for seed in range(3):
            prompt = TEXT[: 60 + seed]
            alone, together = (
                Decoder(Hierarchy(own), lambda p=p: StaticPolicy(p), lambda *_: sampling).token_ids(prompt, 40, seed)
                for own, p in ((exits[-1:], (1,)), (levels, periods))
            )
            assert together == alone


@pytest.mark.parametrize("width", ["auto", 8])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_same_whether_its_prompt_was_run_at_once_or_grew(kind, width):
    stack = stack_of(kind, width=width)
    hierarchy = Hierarchy([Level("draft", stack, 1), Level("target", stack, 4)])
    decoder, prefix, text = Decoder(hierarchy, lambda: StaticPolicy((1, 3))), PrefixCache(), TEXT[:70]
    for turn in range(4):
        grown = decoder.token_ids(text, 20) if turn == 0 else None
        events = list(decoder.decode(text, 20, prefix=prefix))
        ids = [token for event in events if event.kind == "committed" for token in event.token_ids]
        assert grown is None or ids == grown
        fresh = Decoder(hierarchy, lambda: StaticPolicy((1, 3)))
        again = PrefixCache()
        assert [t for e in fresh.decode(text, 20, prefix=again) if e.kind == "committed" for t in e.token_ids] == ids
        prefix = again
        text = [*text, *ids, *TEXT[turn : turn + 9]]


def test_what_is_found_equal_is_equal_and_nothing_else():
    def compute(first, count, padded):
        at = torch.arange(first, first + count, dtype=torch.float64)[:, None]
        return at + {2: 0.5, 3: 0.25, 12: 0.75}.get(padded, 0.0)

    assert equal_counts(compute, CANDIDATES) == tuple(c for c in CANDIDATES if c not in (2, 3, 12))


def test_a_count_whose_rows_depend_on_their_place_is_no_width():
    def compute(first, count, padded):
        place = torch.arange(count, dtype=torch.float64) if padded in (4, 6) else torch.zeros(count)
        return (torch.arange(first, first + count) + place * 1e-9)[:, None]

    assert equal_counts(compute, CANDIDATES) == tuple(c for c in CANDIDATES if c not in (4, 6))
    assert equal_counts(lambda first, count, padded: torch.rand(count, 1), CANDIDATES) == CANDIDATES[:1]


@pytest.mark.parametrize("place", [16, 31])
def test_a_wide_count_that_differs_at_its_last_places_only_is_left_out(place):
    """The kernels of fbgemm take six rows at a time, and add the last one or two in another order."""

    def compute(first, count, padded):
        places = torch.arange(count)
        return (first + places + 0.5 * ((places == place) & (padded == 32)))[:, None]

    assert equal_counts(compute, CANDIDATES) == CANDIDATES
    assert without_other_places(compute, CANDIDATES, 64) == tuple(c for c in CANDIDATES if c != 32)


def test_passes_are_cut_and_padded():
    counts = RowCounts((2, 4, 8), 8)
    assert list(counts.passes(1, 5)) == [(1, 2)]
    assert list(counts.passes(19, 5)) == [(8, 8), (8, 8), (3, 4)]
    assert list(RowCounts((6,), 64).passes(13, 0)) == [(6, 6), (6, 6), (1, 6)]
    assert list(RowCounts().passes(3, 0)) == [(3, 3)]


def test_a_prompts_passes_begin_at_multiples_where_its_rows_are_not_interchangeable():
    counts = RowCounts((8,), 64)
    assert not counts.interchangeable and RowCounts((8, 64), 64).interchangeable and RowCounts().interchangeable
    assert list(counts.passes(100, 0, prompt=True)) == [(64, 64), (36, 64)]
    assert list(counts.passes(100, 64, prompt=True)) == [(64, 64), (36, 64)]
    assert list(counts.passes(5, 0, prompt=True)) == [(5, 64)]


def test_attention_looks_at_whole_buckets():
    assert [RowCounts((4,)).length(end) for end in (1, BUCKET, BUCKET + 1)] == [BUCKET, BUCKET, 2 * BUCKET]
    assert RowCounts().length(7) == 7
    assert list(RowCounts((4,)).within_buckets(10, BUCKET - 3)) == [3, 7]
    assert WIDEST in CANDIDATES and rows.prompt_rows(torch.device("cpu")) in CANDIDATES


def test_noise_of_equal_seeds_is_equal_for_all_levels():
    noise = GumbelNoise(1, 24, torch.device("cpu"))
    assert noise.at(4) is noise.at(4)
