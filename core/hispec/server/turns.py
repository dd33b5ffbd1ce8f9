"""A queue of bounded length that is fair among clients."""

from collections import deque
from collections.abc import Sequence
from threading import Condition
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FullError(Exception):
    """The queue is full."""


class Turns(Generic[Item]):
    """Items wait by client; clients take turns, and the items of each come in order. Safe to use from several threads.

    Args:
        most: the largest number of waiting items.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: dict[str, deque[Item]] = {}
        """In the order in which clients will have their turn."""
        self._closed = False
        self._changed = Condition()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, client: str, items: Sequence[Item]) -> None:
        """Add items of a client to the queue.

        Raises:
            FullError: there is no room for all of them, or the queue is closed; none waits.
        """
        with self._changed:
            if self._closed or len(self) + len(items) > self.most:
                raise FullError
            self._waiting.setdefault(client, deque()).extend(items)
            self._changed.notify()

    def take(self) -> Item | None:
        """Return the next item once there is one, or None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            client = next(iter(self._waiting))
            items = self._waiting.pop(client)
            item = items.popleft()
            if items:
                self._waiting[client] = items  # behind all others
            return item

    def remove(self, item: Item) -> None:
        """Forget an item, if it waits."""
        with self._changed:
            for client, items in self._waiting.items():
                if item in items:
                    items.remove(item)
                    if not items:
                        del self._waiting[client]
                    return

    def close(self) -> list[Item]:
        """Close the queue, and return the items that waited."""
        with self._changed:
            self._closed = True
            left = [item for items in self._waiting.values() for item in items]
            self._waiting = {}
            self._changed.notify_all()
            return left
