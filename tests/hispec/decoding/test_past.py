"""What guesses are made from: earlier texts by their n-grams, the last successor of each token, within bounds."""

from random import Random

from hispec.decoding import past as module
from hispec.decoding.past import Past


def follow(past, text, most=3):
    return past.follow(text, [], most)


def test_what_was_written_in_an_earlier_text_is_found_and_the_latest_of_equals():
    past = Past(3)
    past.begin([1, 2, 3, 4])
    past.extend([5, 6])
    past.begin([7, 2, 3])
    assert follow(past, [7, 2, 3]) == (2, [4, 5, 6])
    past.extend([8, 9, 1])
    past.begin([2, 3])
    assert follow(past, [0, 2, 3]) == (2, [8, 9, 1])
    assert follow(past, [1, 2, 3]) == (3, [4, 5, 6])


def test_nothing_reaches_from_one_text_into_the_next():
    past = Past(3)
    past.begin([1, 2])
    past.begin([3, 4])
    assert follow(past, [0, 2]) == (0, [])
    assert follow(past, [1, 2, 3]) == (1, [4, 4, 4])
    assert follow(past, [1]) == (1, [2])


def test_a_loop_is_followed_in_a_circle():
    past = Past(3)
    past.begin([1, 2, 5, 5, 5, 5])
    assert past.follow([1, 2, 5, 5, 5, 5], [], 6) == (3, [5] * 6)
    past.begin([7, 8, 9, 7])
    assert past.follow([7, 8, 9, 7], [], 7) == (1, [8, 9, 7, 8, 9, 7, 8])
    assert past.follow([7, 8, 9, 7, 0, 9, 7], [0, 9, 7], 7) == (1, [8, 9, 7, 0, 9, 7, 8])


def test_a_text_that_goes_on_from_the_one_before_is_read_from_there():
    """A turn of a conversation begins with all turns before it."""
    past, text = Past(2), [*range(50)]
    past.begin(text)
    for _ in range(20):
        text += [text[-1] + 1, 3]
        past.begin(text)
    assert follow(past, [48]) == (1, [49, 50, 3])
    assert follow(past, [54 - 4, 3]) == (2, [4, 3])
    assert len(past._texts) < 50 + 20 * 6


def test_the_beginning_that_two_texts_share_is_still_known():
    past = Past(2)
    past.begin([1, 2, 3, 4, 5])
    past.begin([1, 2, 3, 6, 7, 8])
    assert follow(past, [0, 2, 3]) == (2, [6, 7, 8])
    assert follow(past, [3, 4])[1][0] == 5


def test_memory_is_bounded_and_the_latest_is_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 64)
    dice, past = Random(0), Past(3)
    for size in (40, 10, 300, 64, 65, 1, 33, 500):
        text = [dice.randrange(1000) for _ in range(size)]
        past.begin(text[: size // 2])
        for at in range(size // 2, size):
            past.extend(text[at : at + 1])
            assert len(past._texts) <= 64 and len(past._after) <= 3 * 64
        if size > 30:
            assert follow(past, text[-20:-10], 5) == (3, text[-10:-5])
    past.begin([*range(1000)])
    assert len(past._texts) <= 64 and follow(past, [989, 990]) == (2, [991, 992, 993])
    assert follow(past, [1, 2]) == (0, [])


def test_recycled_successors_are_the_latest_and_chains_of_them_end():
    past = Past(2)
    past.see([1, 2, 3], [2, 3, 4])
    assert past.recycle(1, 8) == [2, 3, 4]
    assert past.recycle(9, 8) == []
    past.see([2], [7])
    assert past.recycle(1, 8) == [2, 7]
    past.see([7], [2])
    assert past.recycle(1, 5) == [2, 7, 2, 7, 2]


def test_chances_follow_what_was_seen_and_are_tried_again():
    past = Past(2)
    for _ in range(20):
        past.judge(0, 0, 1)
        past.judge(1, 3, 3)
    low = past.chance(0)
    assert low < 0.4 < 0.9 < past.chance(1)
    for _ in range(200):
        past.judge(1, 3, 3)
    assert past.chance(0) > low + 0.2
