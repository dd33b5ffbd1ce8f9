"""Reports how many bytes of a checkpoint have been read, by hispec or by `transformers`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hispec.progress import Doing, Progress, Watch


class ReadProgress:
    """Counts the bytes of a checkpoint while they are read.

    Args:
        doing: the verb for what happens to them.
        name: the name that users know the model by.
        files: the files that are read.
        watch: called at the start and after each step of progress.
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
        """Count what `transformers` reads within the context, in place of its progress bar; all tensors count as
        equally large.
        """
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
