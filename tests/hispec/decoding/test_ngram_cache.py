"""The sources of n-gram drafts: earlier texts by their n-grams, and the last successor of each token, within bounds."""

from random import Random

from hispec.decoding import ngram_cache as module
from hispec.decoding.ngram_cache import NgramCache


def continuation(cache, text, most=3):
    return cache.continuation(text, [], most)


def test_what_was_written_in_an_earlier_text_is_found_and_the_latest_of_equals():
    cache = NgramCache(3)
    cache.start_text([1, 2, 3, 4])
    cache.extend([5, 6])
    cache.start_text([7, 2, 3])
    assert continuation(cache, [7, 2, 3]) == (2, [4, 5, 6])
    cache.extend([8, 9, 1])
    cache.start_text([2, 3])
    assert continuation(cache, [0, 2, 3]) == (2, [8, 9, 1])
    assert continuation(cache, [1, 2, 3]) == (3, [4, 5, 6])


def test_nothing_reaches_from_one_text_into_the_next():
    cache = NgramCache(3)
    cache.start_text([1, 2])
    cache.start_text([3, 4])
    assert continuation(cache, [0, 2]) == (0, [])
    assert continuation(cache, [1, 2, 3]) == (1, [4, 4, 4])
    assert continuation(cache, [1]) == (1, [2])


def test_a_loop_is_followed_in_a_circle():
    cache = NgramCache(3)
    cache.start_text([1, 2, 5, 5, 5, 5])
    assert cache.continuation([1, 2, 5, 5, 5, 5], [], 6) == (3, [5] * 6)
    cache.start_text([7, 8, 9, 7])
    assert cache.continuation([7, 8, 9, 7], [], 7) == (1, [8, 9, 7, 8, 9, 7, 8])
    assert cache.continuation([7, 8, 9, 7, 0, 9, 7], [0, 9, 7], 7) == (1, [8, 9, 7, 0, 9, 7, 8])


def test_a_text_that_goes_on_from_the_one_before_is_read_from_there():
    """A turn of a conversation begins with all turns before it."""
    cache, text = NgramCache(2), [*range(50)]
    cache.start_text(text)
    for _ in range(20):
        text += [text[-1] + 1, 3]
        cache.start_text(text)
    assert continuation(cache, [48]) == (1, [49, 50, 3])
    assert continuation(cache, [54 - 4, 3]) == (2, [4, 3])
    assert len(cache._texts) < 50 + 20 * 6


def test_the_beginning_that_two_texts_share_is_still_known():
    cache = NgramCache(2)
    cache.start_text([1, 2, 3, 4, 5])
    cache.start_text([1, 2, 3, 6, 7, 8])
    assert continuation(cache, [0, 2, 3]) == (2, [6, 7, 8])
    assert continuation(cache, [3, 4])[1][0] == 5


def test_memory_is_bounded_and_the_latest_is_kept(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 64)
    rng, cache = Random(0), NgramCache(3)
    for size in (40, 10, 300, 64, 65, 1, 33, 500):
        text = [rng.randrange(1000) for _ in range(size)]
        cache.start_text(text[: size // 2])
        for at in range(size // 2, size):
            cache.extend(text[at : at + 1])
            assert len(cache._texts) <= 64 and len(cache._after) <= 3 * 64
        if size > 30:
            assert continuation(cache, text[-20:-10], 5) == (3, text[-10:-5])
    cache.start_text([*range(1000)])
    assert len(cache._texts) <= 64 and continuation(cache, [989, 990]) == (2, [991, 992, 993])
    assert continuation(cache, [1, 2]) == (0, [])


def test_recycled_successors_are_the_latest_and_chains_of_them_end():
    cache = NgramCache(2)
    cache.record_argmax([1, 2, 3], [2, 3, 4])
    assert cache.recycled(1, 8) == [2, 3, 4]
    assert cache.recycled(9, 8) == []
    cache.record_argmax([2], [7])
    assert cache.recycled(1, 8) == [2, 7]
    cache.record_argmax([7], [2])
    assert cache.recycled(1, 5) == [2, 7, 2, 7, 2]


def test_chances_follow_what_was_seen_and_are_tried_again():
    cache = NgramCache(2)
    for _ in range(20):
        cache.record_acceptance(0, 0, 1)
        cache.record_acceptance(1, 3, 3)
    low = cache.acceptance(0)
    assert low < 0.4 < 0.9 < cache.acceptance(1)
    for _ in range(200):
        cache.record_acceptance(1, 3, 3)
    assert cache.acceptance(0) > low + 0.2
