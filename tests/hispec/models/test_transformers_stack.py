"""Spans on our cache compute what the whole model computes, for every family."""

import pytest
import torch

from hispec.errors import UsageError
from hispec.models.config import check_rotary
from hispec.models.families import FAMILIES
from hispec.models.transformers_stack import TransformersStack
from tests.support import PROMPT, decode_ids, hierarchy_of, random_model

IDS = [*PROMPT, 9, 2, 6, 5, 3, 5, 8]


@pytest.fixture(params=FAMILIES)
def family_model(request):
    return random_model(request.param)


def test_spans_in_pieces_equal_one_forward_pass(family_model):
    stack = TransformersStack(family_model, "random")
    stack.reserve(len(IDS))
    logits = []
    for start, end in ((0, 5), (5, 6), (6, 9), (9, 12)):
        hidden = stack.embed(IDS[start:end])
        for first, last in ((0, 1), (1, 3), (3, 4)):
            hidden = stack.run(hidden, first, last, start)
        logits.append(stack.head(hidden))
    with torch.inference_mode():
        expected = family_model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(torch.cat(logits), expected, atol=1e-4, rtol=1e-4)


def test_running_again_at_an_earlier_position_rewinds(family_model):
    stack = TransformersStack(family_model, "random")
    stack.reserve(len(IDS))
    stack.run(stack.embed([7] * len(IDS)), 0, 4, 0)
    hidden = stack.run(stack.embed(IDS[:6]), 0, 4, 0)
    hidden = torch.cat((hidden, stack.run(stack.embed(IDS[6:]), 0, 4, 6)))
    with torch.inference_mode():
        expected = family_model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(stack.head(hidden), expected, atol=1e-4, rtol=1e-4)


def test_decoding_equals_generate(family_model):
    prompt = torch.tensor([PROMPT])
    expected = family_model.generate(prompt, max_new_tokens=20, do_sample=False)[0, len(PROMPT) :].tolist()
    assert decode_ids(hierarchy_of(family_model, 1, 2), (1, 2, 4), max_new_tokens=20) == expected


def test_a_sliding_window_bounds_the_context():
    model = random_model("mistral")
    model.config.sliding_window = 64
    assert TransformersStack(model, "windowed").context == 64


def test_growing_the_cache_keeps_what_it_holds_and_less_changes_nothing():
    stack = TransformersStack(random_model(), "random")
    stack.reserve(32)
    stack.run(stack.embed(IDS), 0, 4, 0)
    held = [part.clone() for part in stack.cache.read(3, len(IDS))]
    layers = list(stack.cache.layers)
    stack.reserve(16)
    assert all(now is before for now, before in zip(stack.cache.layers, layers, strict=True))
    stack.reserve(stack.cache.positions + 1)
    assert all(now is not before for now, before in zip(stack.cache.layers, layers, strict=True))
    for now, before in zip(stack.cache.read(3, len(IDS)), held, strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=0)


def test_a_rotary_embedding_that_changes_with_the_text_is_refused_by_name():
    with pytest.raises(UsageError, match="some/model uses 'dynamic' rotary"):
        check_rotary("dynamic", "some/model")


def test_a_reduced_head_reads_its_words_as_the_whole_head_does(family_model):
    stack = TransformersStack(family_model, "random")
    hidden, ids = torch.randn(3, 32), torch.tensor([1, 5, 6, 20])
    reduced = stack.head(hidden, stack.reduce_head(ids))
    torch.testing.assert_close(reduced, stack.head(hidden)[:, ids], atol=1e-5, rtol=1e-5)
