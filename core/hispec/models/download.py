"""Downloads the weights of checkpoints, after a check that all files exist and that the disk has room."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hispec.counts import counted
from hispec.errors import UnavailableError
from hispec.machine import disk_free
from hispec.models.checkpoint import Checkpoint
from hispec.progress import Progress, Watch, unwatched

GB = 1e9
"""Bytes of a gigabyte, as the hub counts them."""


def fetch_weights(checkpoints: Iterable[Checkpoint], watch: Watch = unwatched) -> None:
    """Download the weights that are not on this machine; see `download`.

    Raises:
        UnavailableError: no weights in safetensors, a shard that is not there, no room on the disk, no network.
    """
    missing = []
    for checkpoint in checkpoints:
        with checkpoint.explaining():
            missing += [(checkpoint, name, size) for name, size in checkpoint.missing().items()]
    download(missing, watch)


def download(missing: list[tuple[Checkpoint, str, int]], watch: Watch) -> None:
    """Fetch files that are not on this machine; the client resumes interrupted downloads.

    Args:
        missing: checkpoint, file and bytes of each, as `Checkpoint.missing` finds them.
        watch: called with the total before anything is fetched, and again with the progress; not called if all is here.

    Raises:
        UnavailableError: a disk that is too full.
    """
    if not missing:
        return
    state = Progress("downloading", counted(len(missing), "file"), sum(size for *_, size in missing))
    _check_disk(state.size)
    watch(state)
    finished = 0
    for checkpoint, name, size in missing:

        def count(done: int, before: int = finished, size: int = size) -> None:
            watch(replace(state, done=before + min(done, size)))

        with checkpoint.explaining():
            checkpoint.find(name, tqdm_class=_counting_bar(count))
        finished += size
        watch(replace(state, done=finished))


def _check_disk(size: int) -> None:
    """Refuse a download that the cache's disk has no room for."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = disk_free(cache)
    if size > free:
        raise UnavailableError(
            f"the download has {size / GB:.1f} GB, and {free / GB:.1f} GB are free for {cache}",
            "make room, or set HF_HOME to a folder on another disk",
        )


def _counting_bar(count: Callable[[int], None]) -> type[Any]:
    """Return the hub client's progress bar for one file, which also says how many bytes are here, shown or not."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._here = int(options.get("initial") or 0)
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            self._here += int(n or 0)
            count(self._here)
            return super().update(n)

    return Bar
