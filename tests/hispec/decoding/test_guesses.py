"""Guesses: from the text, from the tail of a cut draft; never more than there is room for."""

from hispec.decoding.guesses import Guesser


def test_the_longest_match_wins_and_the_latest_of_equals():
    guesser = Guesser(longest=3, most=2)
    assert guesser.guess([1, 2, 3, 9, 9, 2, 3, 7, 7, 1, 2, 3], 10) == [9, 9]
    assert guesser.guess([5, 1, 8, 5, 1, 9, 5, 1], 10) == [9, 5]


def test_nothing_comes_to_mind():
    assert Guesser(3, 4).guess([1, 2, 3], 10) == []
    assert Guesser(3, 4).guess([1], 10) == []


def test_room_and_length_bound_a_guess():
    text = [1, 2, 3, 4, 5, 6, 1]
    assert Guesser(2, 3).guess(text, 10) == [2, 3, 4]
    assert Guesser(2, 3).guess(text, 1) == [2]
    assert Guesser(2, 3).guess(text, 0) == []


def test_bytes_that_only_look_alike_are_no_match():
    """Token 256 is byte 1 after byte 0; a match across two tokens' bytes must not count."""
    assert Guesser(1, 3).guess([0x00010000, 0x00000100, 7, 1], 5) == []
    assert Guesser(1, 3).guess([1 << 8, 1 << 16, 256 * 256, 3, 256 * 256], 5) == [3, 65536]


def test_the_tail_of_a_cut_draft_is_offered_once():
    guesser = Guesser(2, 3)
    guesser.offer([4, 5, 6, 7])
    assert guesser.guess([1, 2, 1], 10) == [4, 5, 6]
    assert guesser.guess([1, 2, 1], 10) == [2, 1]
