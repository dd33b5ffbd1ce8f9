"""N-gram drafts: from n-grams, from what a level said after a rejected token, and recycled; no more than are worth it."""

import pytest

from hispec.decoding.drafters import NgramDrafter
from hispec.decoding.ngram_cache import AFTER_REJECTION, RECYCLED, NgramCache


def test_the_longest_match_wins_and_the_latest_of_equals():
    assert NgramDrafter(longest=3, max_tokens=2).propose([1, 2, 3, 9, 9, 2, 3, 7, 7, 1, 2, 3], 10) == [9, 9]
    assert NgramDrafter(longest=3, max_tokens=2).propose([5, 1, 8, 5, 1, 9, 5, 1], 10) == [9, 5]


def test_nothing_comes_to_mind():
    assert NgramDrafter(3, 4).propose([1, 2, 3], 10) == []
    assert NgramDrafter(3, 4).propose([1], 10) == []


def test_room_and_length_bound_a_draft():
    text = [1, 2, 3, 4, 5, 6, 1]
    assert NgramDrafter(2, 3).propose(text, 10) == [2, 3, 4]
    assert NgramDrafter(2, 3).propose(text, 1) == [2]
    assert NgramDrafter(2, 3).propose(text, 0) == []


def test_what_was_said_after_a_rejected_token_is_proposed_once():
    drafter = NgramDrafter(2, 3)
    drafter.cache.record_acceptance(1, 0, 9)
    drafter.rejected([4, 5, 6, 7])
    assert drafter.propose([1, 2, 1], 10) == [4, 5, 6]
    assert drafter.propose([1, 2, 1], 10, min_probability=0) == [2, 1, 2]


@pytest.mark.parametrize("kind", ["n-gram", "rest", "recycled"])
def test_nothing_is_proposed_past_an_end_of_text(kind):
    def propose(room, ends=()):
        drafter = NgramDrafter(2, 4, ends)
        text = [9, 1] if kind != "n-gram" else [1, 2, 3, 4, 5, 1]
        if kind == "rest":
            drafter.rejected([2, 3, 4, 5])
        if kind == "recycled":
            drafter.cache.record_argmax([1, 2, 3, 4], [2, 3, 4, 5])
        return drafter.propose(text, room)

    assert propose(10) == [2, 3, 4, 5]
    assert propose(10, ends=(3,)) == [2, 3]
    assert propose(10, ends=(2,)) == [2]
    assert propose(3) == [2, 3, 4]
    assert propose(0) == []


def test_the_kind_that_was_right_most_often_is_proposed():
    def propose(wrong):
        drafter = NgramDrafter(1, 2)
        drafter.cache.record_argmax([1, 7], [7, 8])
        drafter.rejected([5, 6])
        for kind in wrong:
            drafter.cache.record_acceptance(kind, 0, 20)
        return drafter.propose([1, 2, 1], 10, min_probability=0)

    assert propose([RECYCLED, AFTER_REJECTION]) == [2, 1]
    assert propose([RECYCLED, 1]) == [5, 6]
    assert propose([AFTER_REJECTION, 1]) == [7, 8]


def test_drafts_that_are_not_worth_their_rows_are_not_proposed():
    text, lengths = [1, 2, 3, 4, 5, 6, 1], []
    for wrong in (0, 4, 400):
        drafter = NgramDrafter(1, 5)
        drafter.cache.record_acceptance(1, 0, wrong)
        lengths.append(len(drafter.propose(text, 10, min_probability=0.12)))
    assert 5 == lengths[0] > lengths[1] > lengths[2] == 0
    assert len(drafter.propose(text, 10, min_probability=0)) == 5, "they cost nothing where rows cost nothing"


def test_a_kind_is_verified_by_what_the_text_kept_of_it():
    drafter, text = NgramDrafter(1, 3), [1, 2, 3, 4, 1]
    before = drafter.cache.acceptance(1)
    assert drafter.propose(text, 10, 5) == [2, 3, 4]
    assert drafter.propose([*text, 2, 3, 4], 10, 5) == [1, 2, 3]
    better = drafter.cache.acceptance(1)
    assert drafter.propose([*text, 2, 3, 4, 9, 9, 1], 10, 5) == [2, 3, 4]
    assert before < better > drafter.cache.acceptance(1)


def test_a_draft_that_was_taken_back_with_what_led_to_it_says_nothing():
    drafter = NgramDrafter(1, 3)
    before = drafter.cache.acceptance(1)
    assert drafter.propose([1, 2, 3, 4, 5, 1], 10, 4) == [2, 3, 4]
    drafter.propose([1, 2, 3, 4, 7], 10, 4)
    assert drafter.cache.acceptance(1) == before


def test_only_what_is_committed_is_remembered():
    cache = NgramCache(2)
    drafter = NgramDrafter(2, 2, cache=cache)
    drafter.propose([1, 2, 3, 4], 10, 2)
    drafter.propose([1, 2, 5, 6, 7], 10, 3)
    drafter.remember([1, 2, 5, 6, 7], 4)
    assert NgramDrafter(2, 2, cache=cache).propose([0, 1, 2], 10) == [5, 6]
    assert NgramDrafter(2, 2, cache=cache).propose([0, 3], 10) == []
