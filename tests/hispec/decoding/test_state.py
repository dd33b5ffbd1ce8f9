"""The rows that one decoding takes over from another, and those that levels of several precisions share in one
cache.
"""

import pytest
import torch

from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Verified
from hispec.models.rows import RowCounts
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.static import StaticPolicy
from tests.support import GREEDY, PROMPT, decode_ids, greedy_by_hand, hierarchy_of, random_model
from tests.toy import ToyStack, exits_of

LENGTH = 16


def copies_of(model, *seeds):
    """Stacks of other weights that share the cache of the first, a model's own."""
    target = TransformersStack(model, "target")
    copies = [TransformersStack(random_model("llama", seed=seed), f"copy {seed}") for seed in seeds]
    for copy in copies:
        copy.cache = target.cache
    return target, *copies


def test_a_new_decoding_takes_over_what_the_target_has_run_and_no_more(model):
    hierarchy = hierarchy_of(model, 1, 2)
    earlier = DecodingState(hierarchy, PROMPT, 40)
    earlier.append(earlier.logits(2, len(PROMPT) - 1, len(PROMPT)).argmax()[0], 2)
    for _ in range(4):  # drafted, and never verified
        earlier.append(earlier.logits(0, len(earlier.tokens) - 1, len(earlier.tokens)).argmax()[0], 0)
    assert earlier.frontier[0] > earlier.frontier[2] == len(PROMPT)
    later = DecodingState(hierarchy, [*earlier.tokens, 3], 40, earlier)
    assert later.frontier == [len(PROMPT)] * 3


def test_rows_of_an_answer_are_no_rows_of_a_prompt_where_they_round_otherwise(model):
    stack = TransformersStack(model, "target")
    stack.rows = RowCounts((4,), 8)
    hierarchy = Hierarchy([Level("target", stack, stack.num_layers)])
    prompt = [number % 20 for number in range(21)]
    earlier = DecodingState(hierarchy, prompt, 60)
    for _ in decode(earlier, StaticPolicy((1,)), GREEDY, StopCriteria(20)):
        pass
    assert earlier.frontier[0] > 32
    later = DecodingState(hierarchy, [*earlier.tokens, 3], 60, earlier)
    assert later.frontier == [16], "whole passes of the earlier prompt only"


def test_rows_that_another_precision_wrote_are_not_taken_over_as_the_targets(model):
    target, copy = copies_of(model, 5)
    exits = [Level("exit", target, 2), Level("copy", copy, 4), Level("target", target, 4)]
    earlier = DecodingState(Hierarchy(exits), PROMPT, 40)
    earlier.logits(2, len(PROMPT) - 1, len(PROMPT))
    for token in (3, 4, 5):
        earlier.append(token, 1)
    earlier.logits(1, len(PROMPT), len(PROMPT) + 3)
    assert earlier.frontier == [len(PROMPT) + 3, len(PROMPT) + 3, len(PROMPT)]
    assert earlier.ran(target, 2) == earlier.ran(target, 4) == len(PROMPT)
    later = DecodingState(Hierarchy([exits[0], exits[2]]), [*earlier.tokens, 6], 40, earlier)
    assert later.frontier == [len(PROMPT)] * 2


def last(target):
    return Level("target", target, 4)


KINDS = {
    "copy": lambda t, c, f: [Level("copy", c, 4), last(t)],
    "exit of a copy, copy": lambda t, c, f: [Level("exit", c, 1), Level("copy", c, 4), last(t)],
    "exit of a copy, exit of another": lambda t, c, f: [Level("exit", c, 2), Level("finer", f, 2), last(t)],
    "two copies": lambda t, c, f: [Level("copy", c, 4), Level("finer", f, 4), last(t)],
    "exit, copy": lambda t, c, f: [Level("exit", t, 1), Level("copy", c, 4), last(t)],
    "exit of a copy, exit": lambda t, c, f: [Level("exit", c, 1), Level("own exit", t, 2), last(t)],
    "n-grams, copy": lambda t, c, f: [Level.of_ngrams(3, 4), Level("copy", c, 4), last(t)],
}
"""Levels that read one cache at several precisions: of a target, a copy and a finer copy."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_the_target_is_never_written_over_by_another_precision(model, kind):
    """After every step, the target's rows of the cache are bit for bit what they were when it wrote them."""
    target, copy, finer = copies_of(model, 5, 6)
    levels = KINDS[kind](target, copy, finer)
    reference = greedy_by_hand(model, LENGTH)
    for periods in ((1, 1, 1), (1, 2, 3), (1, 4, 9)):
        hierarchy = Hierarchy(levels)
        state = DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH)
        known, rejected = None, 0
        for event in decode(state, StaticPolicy(periods[: len(levels)]), GREEDY, StopCriteria(LENGTH)):
            rejected += isinstance(event, Verified) and event.accepted < event.proposed
            rows = state.frontier[-1]
            cache = torch.stack([torch.stack(target.cache.read(layer, rows)) for layer in range(4)])
            if known is not None:
                kept = min(rows, known.shape[-2])
                assert torch.equal(cache[..., :kept, :], known[..., :kept, :]), event
            known = cache
            for j in range(len(levels)):
                assert all(state.frontier[i] >= state.frontier[j] for i in hierarchy.beneath[j])
        assert state.tokens[len(PROMPT) : state.committed] == reference
        assert rejected > 2, "levels that never disagree show nothing"


def test_exits_of_one_cache_do_not_descend(model):
    target, copy = copies_of(model, 5)
    with pytest.raises(ValueError, match="out of order"):
        Hierarchy([Level("copy", copy, 3), Level("exit", target, 2), Level("target", target, 4)])
    with pytest.raises(ValueError, match="out of order"):
        Hierarchy([Level("copy", copy, 2), Level("copy", copy, 2), Level("target", target, 4)])
    hierarchy = Hierarchy([Level("exit", target, 2), Level("copy", copy, 2), Level("target", target, 4)])
    assert hierarchy.below == (None, None, None)
    assert hierarchy.beneath == ((), (0,), (0, 1))


def test_a_verifier_that_shares_no_layers_with_the_level_below_adds_a_token_of_its_own():
    twin, target = ToyStack.random(4, 6, seed=1), ToyStack.random(4, 6, seed=1)
    for below, drafts in (([Level("twin", twin, 4)], 3), (exits_of(target, 3)[:-1], 3)):
        levels = [*below, *exits_of(target)]
        state = DecodingState(Hierarchy(levels), [0, 1], 42)
        events = [
            event
            for event in decode(state, StaticPolicy((1, drafts)), Sampler(Sampling()), StopCriteria(40))
            if isinstance(event, Verified)
        ]
        all_accepted = [event for event in events if event.accepted == event.proposed]
        assert all_accepted
        if below[0].stack is twin:  # tokens: one of the prefill, then three and a bonus each
            assert all(event.correction is not None for event in all_accepted[:-1])
            assert len(events) == 10
        else:
            assert all(event.correction is None for event in all_accepted)


@pytest.mark.parametrize("length", range(1, 10))
def test_a_bonus_stays_within_the_limit_and_before_the_end_of_text(model, length):
    target, copy = copies_of(model, 5)
    twin = TransformersStack(model, "twin")
    reference = greedy_by_hand(model, LENGTH)
    for levels in ([Level("twin", twin, 4)], [Level("copy", copy, 4)]):
        hierarchy = Hierarchy([*levels, Level("target", target, 4)])
        assert decode_ids(hierarchy, (1, 2), max_new_tokens=length) == reference[:length]
        eos = reference[length]
        expected = reference[: reference.index(eos) + 1]
        assert decode_ids(hierarchy, (1, 2), max_new_tokens=LENGTH, eos_ids=(eos,)) == expected
