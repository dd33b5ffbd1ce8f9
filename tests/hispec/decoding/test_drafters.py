"""N-gram drafts: from the text, from the rest of a rejected draft; never more than there is room for."""

from hispec.decoding.drafters import NgramDrafter


def test_the_longest_match_wins_and_the_latest_of_equals():
    drafter = NgramDrafter(longest=3, most=2)
    assert drafter.propose([1, 2, 3, 9, 9, 2, 3, 7, 7, 1, 2, 3], 10) == [9, 9]
    assert drafter.propose([5, 1, 8, 5, 1, 9, 5, 1], 10) == [9, 5]


def test_nothing_comes_to_mind():
    assert NgramDrafter(3, 4).propose([1, 2, 3], 10) == []
    assert NgramDrafter(3, 4).propose([1], 10) == []


def test_room_and_length_bound_a_draft():
    text = [1, 2, 3, 4, 5, 6, 1]
    assert NgramDrafter(2, 3).propose(text, 10) == [2, 3, 4]
    assert NgramDrafter(2, 3).propose(text, 1) == [2]
    assert NgramDrafter(2, 3).propose(text, 0) == []


def test_bytes_that_only_look_alike_are_no_match():
    """Token 256 is byte 1 after byte 0; a match across two tokens' bytes must not count."""
    assert NgramDrafter(1, 3).propose([0x00010000, 0x00000100, 7, 1], 5) == []
    assert NgramDrafter(1, 3).propose([1 << 8, 1 << 16, 256 * 256, 3, 256 * 256], 5) == [3, 65536]


def test_the_rest_of_a_rejected_draft_is_proposed_once():
    drafter = NgramDrafter(2, 3)
    drafter.rejected([4, 5, 6, 7])
    assert drafter.propose([1, 2, 1], 10) == [4, 5, 6]
    assert drafter.propose([1, 2, 1], 10) == [2, 1]


def test_nothing_is_proposed_past_an_end_of_text():
    assert NgramDrafter(2, 4, ends=(3,)).propose([1, 2, 3, 4, 5, 1], 10) == [2, 3]
    assert NgramDrafter(2, 4).propose([1, 2, 3, 4, 5, 1], 10) == [2, 3, 4, 5]
