"""The files of a checkpoint, in a folder or on the hub, and its tensors one by one."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hispec.counts import counted
from hispec.errors import UnavailableError
from hispec.machine import disk_free
from hispec.models.explain import explain
from hispec.progress import Progress, Watch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
VOCABULARIES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""What tokenizers without a `tokenizer.json` are made from."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes that weights are computed with, by their names in safetensors."""
ROWS = 4096
"""Of two tables that are compared: as many are read at once."""
GB = 1e9
"""Bytes of a gigabyte, as the hub counts them."""


class Checkpoint:
    """A model's files, fetched from the hub as they are asked for.

    All files are of one commit, the one that the revision stood for when this process first asked: a branch may move
    between two files, and what is in the cache of a commit is never asked for again.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.
    """

    def __init__(self, model: str, revision: str | None) -> None:
        self.model, self.revision = model, revision

    @property
    def commit(self) -> str | None:
        """What its revision stands for; a folder's own revision. Errors as `hf_hub_download`."""
        return self.revision if self.is_local else _commit(self.model, self.revision)

    def find(self, name: str, **options: Any) -> Path | None:
        """A file of the checkpoint, None where it has none of this name; errors and options as `hf_hub_download`."""
        if self.is_local:
            path = Path(self.model) / name
            return path if path.is_file() else None
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        commit = self.commit
        if self._cached(name) is False:
            return None
        try:
            return Path(hf_hub_download(self.model, name, revision=commit, **options))
        except LocalEntryNotFoundError:
            # Offline, what is not in the cache of a model that is there counts as never having been.
            if constants.HF_HUB_OFFLINE and self._cached("config.json"):
                return None
            raise
        except EntryNotFoundError:
            return None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: a folder, or a configuration alone."""
        return Path(self.model).exists()

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file's object, empty where there is no such file.

        Raises:
            ValueError: it is not an object in JSON.
        """
        path = self.find(name)
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        if not isinstance(found, dict):
            raise ValueError(f"{name} is not an object")
        return found

    def tokenizer_folder(self) -> str:
        """Where its tokenizer lies on this machine; downloads it. Errors as `find`."""
        config = self.find("config.json")
        found = [self.find(name) for name in TOKENIZER]
        if self.is_local or config is None:
            return self.model
        if found[0] is None:
            for name in VOCABULARIES:
                self.find(name)
        return str(config.parent)

    def shards(self) -> dict[str, list[str]] | None:
        """The names of the files that hold the weights, as its index has them: of each, its tensors.

        None where one file holds them all, or is to be looked for; it wins over an index, as in `transformers`.

        Raises:
            UnavailableError: an index that names files outside of the checkpoint.
            ValueError: an index that is none.
        """
        if (Path(self.model) / WEIGHTS).is_file() if self.is_local else self._cached(WEIGHTS):
            return None
        index = self.read_json(INDEX).get("weight_map")
        if index is None:
            return None
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ValueError(f"{INDEX} has no map of weights")
        files: dict[str, list[str]] = {}
        for tensor, name in index.items():
            if Path(name).name != name:
                raise UnavailableError(
                    f"the index of {self.model} names a file outside of it: {name}", "choose another checkpoint"
                )
            files.setdefault(name, []).append(tensor)
        return files

    def missing(self) -> dict[str, int]:
        """Files of the weights that are yet to be downloaded, and their bytes.

        Raises:
            UnavailableError: it has no weights that can be loaded, or lacks some of those that its index names.
        """
        shards = self.shards()
        sizes = {name: self._size(name) for name in sorted(shards or [WEIGHTS])}
        absent = [name for name, size in sizes.items() if size is None]
        if absent and shards is None:
            raise self._without_weights()
        if absent:
            raise self._without_shards(absent)
        return {name: size for name, size in sizes.items() if size}

    def weight_files(self) -> dict[str, Path]:
        """The file that holds each tensor, whatever an index says; downloads what is missing.

        Pickled weights are never touched.

        Raises:
            UnavailableError: as `missing`, or a file that is damaged.
        """
        shards = self.shards()
        paths = {name: self.find(name) for name in sorted(shards or [WEIGHTS])}
        absent = [name for name, path in paths.items() if path is None]
        if absent:
            raise self._without_weights() if shards is None else self._without_shards(absent)
        return {tensor: path for path in paths.values() if path is not None for tensor in self._tensors_of(path)}

    def _tensors_of(self, path: Path) -> list[str]:
        """What a file says that it holds; safetensors compares that with its length."""
        try:
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        except SafetensorError as error:
            cure = "download or save the model again"
            if not self.is_local:
                at = f" --revision {self.revision}" if self.revision else ""
                cure = f"download it again: hf download {self.model} {path.name}{at} --force-download"
            raise UnavailableError(f"the weights of {self.model} are damaged: {path.name}: {error}", cure) from error

    def _size(self, name: str) -> int | None:
        """Bytes that are yet to be downloaded for a file; 0 for one that is here, None for one that is nowhere."""
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if self.is_local or constants.HF_HUB_OFFLINE:
            return None if self.find(name) is None else 0
        try:
            found = hf_hub_download(self.model, name, revision=self.commit, dry_run=True)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        return (found.file_size or 0) if found.will_download else 0

    def _cached(self, name: str) -> Path | bool | None:
        """A file in the hub's cache; False for one that the hub is known to lack, None where nothing is known."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.model, name, revision=self.commit)
        return Path(found) if isinstance(found, str) else None if found is None else False

    def _has(self, name: str) -> bool:
        """Whether it has a file, without fetching it."""
        return self._size(name) is not None

    def _without_weights(self) -> UnavailableError:
        pickle = next((name for name in PICKLES if self._has(name)), None)
        if pickle is not None:
            return UnavailableError(
                f"the weights of {self.model} are pickled ({pickle}), and unpickling could run any code: "
                "only safetensors are loaded",
                "choose a revision with safetensors, or load it where you trust it and save_pretrained it",
            )
        where = "check that the folder is complete, or save it again" if self.is_local else "choose another checkpoint"
        if not self.is_local and self._offline:
            where = "run once without --offline and HF_HUB_OFFLINE to complete the download"
        return UnavailableError(f"{self.model} has no weights: neither {WEIGHTS} nor an index of shards", where)

    def _without_shards(self, absent: list[str]) -> UnavailableError:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        cure = "copy the whole folder, or save it again" if self.is_local else "choose another revision"
        if not self.is_local and self._offline:
            cure = "run once without --offline and HF_HUB_OFFLINE to complete the download"
        return UnavailableError(
            f"the weights of {self.model} are incomplete: its index names {absent[0]}{more}, which is not there", cure
        )

    @property
    def _offline(self) -> bool:
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)


@cache
def _commit(model: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub model stands for, seen where its configuration lies in the cache."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if not isinstance(cached, str) and not constants.HF_HUB_OFFLINE:
            # Downloading retries a hub out of reach for half a minute; this asks it once.
            get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision))
        return Path(hf_hub_download(model, "config.json", revision=revision)).parent.name
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return revision


def download(missing: list[tuple[Checkpoint, str, int]], watch: Watch) -> None:
    """Fetch files that are not here yet; the client resumes what was begun.

    Args:
        missing: checkpoint, file and bytes of each, as `Checkpoint.missing` finds them.
        watch: told the total before anything is fetched, and again as it goes on; not called when all is here.

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

        try:
            checkpoint.find(name, tqdm_class=_counting_bar(count))
        except Exception as error:
            raise explain(error, checkpoint.model, checkpoint.revision) from error
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
    """The hub client's progress bar for one file, which also says how many bytes are here, shown or not."""
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


def read_tensors(files: dict[str, Path], names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Some tensors of a checkpoint, each valid only until the next; their files are mapped meanwhile.

    What has been read of a mapped file counts as this process's memory, so few should be asked for at once.
    """
    with ExitStack() as opened:
        known: dict[Path, Any] = {}
        for name in names:
            path = files[name]
            if path not in known:
                known[path] = opened.enter_context(safe_open(path, framework="pt"))
            yield name, known[path].get_tensor(name)


def read_shapes(files: dict[str, Path], names: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of some tensors of a checkpoint, from the headers of its files alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, held in groupby(sorted(names, key=lambda name: files[name]), key=lambda name: files[name]):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in held}
    return shapes


def first_dtype(files: dict[str, Path]) -> torch.dtype | None:
    """Return the dtype of the first tensor that weights are computed with, as `transformers` does; None without any."""
    if not files:
        return None
    with safe_open(min(files.values()), framework="pt") as file:
        stored = (file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118 (not a dict)
        return next((FLOATS[name] for name in stored if name in FLOATS), None)


def holds_equal(files: dict[str, Path], one: str, other: str) -> bool:
    """Return whether two tensors of a checkpoint have the same shape and values; both are read."""
    with safe_open(files[one], framework="pt") as first, safe_open(files[other], framework="pt") as second:
        slices = first.get_slice(one), second.get_slice(other)
        rows, *_ = shape = slices[0].get_shape()
        if shape != slices[1].get_shape():
            return False
        return all(bool((slices[0][at : at + ROWS] == slices[1][at : at + ROWS]).all()) for at in range(0, rows, ROWS))
