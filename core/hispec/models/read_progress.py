"""How many bytes of a checkpoint have been read, told while it is read by us or by `transformers`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hispec.progress import Doing, Progress, Watch


class ReadProgress:
    """Counts the bytes of a checkpoint as they are read.

    Args:
        doing: what is done with them.
        name: of the model, as users know it.
        files: that are read.
        watch: told at once, and whenever there is more.
    """

    def __init__(self, doing: Doing, name: str, files: Iterable[Path], watch: Watch) -> None:
        self._state = Progress(doing, name, sum(path.stat().st_size for path in set(files)))
        self._watch = watch
        watch(self._state)

    def add(self, size: int) -> None:
        """Count `size` bytes more."""
        self._state = replace(self._state, done=min(self._state.done + size, self._state.size))
        self._watch(self._state)

    @contextmanager
    def by_transformers(self) -> Iterator[None]:
        """Count what `transformers` reads meanwhile, as it would show it by a bar: every tensor as large as another."""
        from transformers.utils import logging

        def counting(bar: type[Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            class Counting(bar):  # type: ignore[misc]
                def __iter__(this) -> Iterator[Any]:  # noqa: N805 (`self` counts)
                    items = list(super().__iter__())
                    for item in items:
                        yield item
                        self.add(-(-self._state.size // len(items)))

            return Counting(*arguments, **options)

        before = logging.set_tqdm_hook(counting)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)
