"""Clients take turns, and no more wait than there is room for."""

from threading import Thread

import pytest

from hispec.server.turns import FullError, Turns


def taken(turns):
    return [turns.take() for _ in range(len(turns))]


def test_clients_take_turns_and_the_items_of_each_come_in_order():
    turns = Turns(10)
    turns.put("a", ["a1", "a2", "a3"])
    turns.put("b", ["b1"])
    turns.put("c", ["c1", "c2"])
    assert taken(turns) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_one_who_comes_later_waits_for_one_item_of_each_other_client():
    turns = Turns(10)
    turns.put("a", ["a1", "a2", "a3"])
    assert turns.take() == "a1"
    turns.put("b", ["b1"])
    assert taken(turns) == ["a2", "b1", "a3"]


def test_all_of_a_request_or_nothing_waits():
    turns = Turns(3)
    turns.put("a", [1, 2])
    with pytest.raises(FullError):
        turns.put("b", [3, 4])
    assert len(turns) == 2
    turns.put("b", [3])


def test_what_is_taken_back_makes_room_and_never_comes():
    turns = Turns(2)
    turns.put("a", [1, 2])
    turns.remove(1)
    turns.remove("never there")
    turns.put("b", [3])
    assert taken(turns) == [2, 3]


def test_closing_wakes_those_who_wait_and_returns_what_did():
    turns, found = Turns(3), []
    waiting = Thread(target=lambda: found.append(turns.take()))
    waiting.start()
    turns.close()
    waiting.join(10)
    assert found == [None]
    other = Turns(3)
    other.put("a", [1, 2])
    assert other.close() == [1, 2] and other.take() is None
    with pytest.raises(FullError):
        other.put("a", [3])
