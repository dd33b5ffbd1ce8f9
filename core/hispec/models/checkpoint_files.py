"""The files of a checkpoint, in a folder or on the hub, and the content of the small ones."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from hispec.errors import HispecError, UsageError
from hispec.extras import require
from hispec.models import gguf, gguf_config, gguf_hub
from hispec.models.hub import Access, is_offline, quieten, within
from hispec.profile import resolve_model

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
ADAPTER = "adapter_config.json"
"""The file of an adapter. If peft is installed, `transformers` applies the adapter to the weights."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
VOCABULARIES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Files from which tokenizers without a `tokenizer.json` are made."""
SHIPPED_CONFIGS = Path(__file__).parent / "configs"
"""The configurations of models that shipped profiles name."""
ONLINE = "run once without --offline and HF_HUB_OFFLINE to complete the download"


@dataclass(frozen=True)
class CheckpointFiles:
    """A model's files, fetched from the hub when they are requested.

    All files are of one commit, the one that the revision stood for when this process first asked: a branch may move
    between two files, and what is in the cache of a commit is never asked for again.

    Attributes:
        name: the model, as users know it: a local folder, a GGUF file, a hub id, `ORG/NAME:FILE.gguf` of a hub, or
            `builtin:NAME`.
        revision: the revision of a hub id.
        dummy: whether its weights are drawn at random: it then has the configuration that ships for the model, where
            one does, and no other file.
    """

    name: str
    revision: str | None = None
    dummy: bool = False

    @cached_property
    def _place(self) -> tuple[str, str | None]:
        """Return the folder or hub id, and the GGUF file in it that holds the model.

        The file is None for a checkpoint in safetensors, and for a folder with several.
        """
        model = resolve_model(self.name)
        path = Path(model)
        if path.is_dir():
            files = [] if any(path.glob("*.safetensors")) else [one.name for one in path.glob(f"*{gguf.ENDING}")]
            return model, files[0] if len(files) == 1 else None
        if not model.lower().endswith(gguf.ENDING):
            return model, None
        repository, colon, file = model.partition(":")
        if colon and not path.exists():
            return repository, file
        return str(path.parent), path.name

    @property
    def model(self) -> str:
        """Return the name that the loading libraries need: a folder or a hub id."""
        return self._place[0]

    @property
    def gguf_file(self) -> str | None:
        """Return the name of the GGUF file that holds it, None for a checkpoint in safetensors."""
        return self._place[1]

    @property
    def config_file(self) -> str:
        """Return the name of the file that holds its configuration."""
        return self.gguf_file or CONFIG

    @property
    def shown(self) -> str:
        """Return the name of the checkpoint in error messages."""
        return self.model if self.gguf_file is None else self.name

    @property
    def is_local(self) -> bool:
        """Return whether it is on this machine: a folder, or a configuration alone."""
        return self.shipped is not None or Path(self.model).exists()

    @property
    def looks_local(self) -> bool:
        """Return whether its name is that of a folder rather than of a repository."""
        file = self.gguf_file is not None and not self.name.endswith(f":{self.gguf_file}")
        return file or Path(self.model).exists() or self.model.startswith((".", "/", "~")) or self.model.count("/") > 1

    @cached_property
    def shipped(self) -> Path | None:
        """Return the shipped configuration if nothing else of the checkpoint is used, else None."""
        return self.shipped_config if self.dummy else None

    @property
    def shipped_config(self) -> Path | None:
        """Return the configuration that ships for a hub id, None where there is none."""
        path = SHIPPED_CONFIGS / f"{self.model.replace('/', '--')}.json"
        return path if self.model.count("/") == 1 and path.is_file() else None

    @property
    def commit(self) -> str | None:
        """Return the commit of its revision; for a folder the revision itself. Errors as `hf_hub_download`."""
        return self.revision if self.is_local else _commit_of(self.model, self.revision, self.gguf_file)

    @property
    def commit_here(self) -> str | None:
        """Return the commit of a hub model in the cache; None for a folder."""
        path = None if Path(self.model).exists() else self._cached(self.gguf_file or CONFIG, self.revision)
        return _commit_in(path) if isinstance(path, Path) else None

    def check_name(self) -> None:
        """Refuse a name that neither a folder of a model nor a repository of the hub can have.

        Raises:
            UsageError: a folder without config.json, or a name that no repository has; a GGUF file that is not there,
                or several.
            UnavailableError: the package that reads GGUF files is missing.
        """
        if self.shipped is not None:
            return
        if self.gguf_file is not None:
            if self.looks_local:
                gguf.check_file(Path(self.model) / self.gguf_file, self.name)
            else:
                gguf.check_undivided(self.gguf_file, self.name)
            require("gguf", f"the GGUF file {self.name}")
            if self.looks_local:
                return
        elif self.looks_local:
            gguf.check_single(Path(self.model), self.name)
            if not (Path(self.model) / CONFIG).is_file():
                raise UsageError(
                    f"no model at {self.model}: it has no config.json",
                    "pass a folder saved by save_pretrained, a GGUF file, or a hub id",
                )
            return
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.model)
        except HFValidationError:
            raise UsageError(
                f"{self.model!r} is neither a folder nor an id that a hub could have",
                "give a folder, or an id such as org/name",
            ) from None

    @contextmanager
    def explaining(self, *, tokenizer: bool = False) -> Iterator[None]:
        """Translate errors that the loading libraries raise within the context; see `hispec.models.explain`.

        Args:
            tokenizer: whether it is the tokenizer that is loaded.
        """
        try:
            yield
        except HispecError:
            raise
        except Exception as error:
            from hispec.models.explain import explain, explain_tokenizer

            raise (explain_tokenizer if tokenizer else explain)(error, self) from error

    def here(self, name: str) -> Path | None:
        """Return a file that is on this machine, None for any other; no network is used."""
        return self._look(name, self.revision) or None

    def find(self, name: str, **options: Any) -> Path | None:
        """Return a file, downloaded if need be, None where the checkpoint has none of this name.

        Errors and options are those of `hf_hub_download`.
        """
        if self.is_local:
            return self.here(name)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        quieten()
        commit = self.commit
        if self._look(name, commit) is False:
            return None
        # The one file of a model is asked for by its revision, for only then is it found by that again.
        revision = self.revision if name == self.gguf_file else commit
        try:
            return Path(hf_hub_download(self.model, name, revision=revision, **options))
        except LocalEntryNotFoundError:
            # If a model is in the cache, a file that is not there counts as absent when offline.
            if is_offline() and self._look(self.config_file, commit):
                return None
            raise
        except EntryNotFoundError:
            return None

    def _look(self, name: str, revision: str | None) -> Path | Literal[False] | None:
        """Look for a file on this machine: False for one that there is none of, None where only the hub knows."""
        if self.shipped is not None:
            return self.shipped if name == CONFIG else False
        if Path(self.model).exists():
            path = Path(self.model) / name
            return path if path.is_file() else False
        return self._cached(name, revision)

    def _cached(self, name: str, revision: str | None) -> Path | Literal[False] | None:
        """Look for a file in the hub's cache; see `_look`."""
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(self.model, name, revision=revision)
        except ValueError:  # not a name that a hub could have
            return None
        return Path(found) if isinstance(found, str) else None if found is None else False

    def _size(self, name: str) -> int | None:
        """Return the bytes of a file that are yet to be downloaded; None for a file that is nowhere."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if self.is_local or is_offline():
            return None if self.find(name) is None else 0
        try:
            found = hf_hub_download(self.model, name, revision=self.commit, dry_run=True)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        return (found.file_size or 0) if found.will_download else 0

    # The header of a GGUF file

    @cached_property
    def header(self) -> gguf.Header | None:
        """Return the header of its GGUF file, which is fetched if the file is on a hub; None for a checkpoint in
        safetensors.

        Raises:
            UsageError: no such file, or one of several.
            UnavailableError: a damaged one, or the hub cannot be reached.
        """
        path = self._header_file
        return None if path is None else self._read_header(path)

    def _read_header(self, path: Path) -> gguf.Header:
        header = gguf.read_header(path, self.name)
        if path == self._file_here:
            gguf.check_whole(path, header, self.name)
        return header

    @property
    def _file_here(self) -> Path | None:
        """Return its GGUF file, None where it is not on this machine."""
        return None if self.gguf_file is None else self.here(self.gguf_file)

    @property
    def _header_file(self) -> Path | None:
        """Return its GGUF file, or as much of it as has been fetched: its header; None for a checkpoint in safetensors.

        Errors as `header`.
        """
        if self.gguf_file is None:
            return None
        self.check_name()
        if (path := self._file_here) is not None:
            return path
        with self.explaining():
            return gguf_hub.fetch_beginning(self.model, self.gguf_file, self.revision, self.commit)

    @property
    def header_here(self) -> gguf.Header | None:
        """Return the header of its GGUF file; None where it is not on this machine or cannot be read."""
        try:
            path = self._file_here or gguf_hub.fetched.get((self.model, self.gguf_file, self.revision))
            return None if path is None else self._read_header(path)
        except (HispecError, OSError):
            return None  # loading the model will report the error

    # Files in JSON

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file, empty if there is no such file; raises the errors of `find`.

        Raises:
            ValueError: the file is not a JSON object.
        """
        return _read_object(self.find(name))

    def read_here(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, None if it is not on this machine (yet) or not an object.

        A GGUF file has a configuration and no other.
        """
        if self.gguf_file is not None:
            return self._values_here() if name == CONFIG else None
        path = self.here(name)
        try:
            return None if path is None else _read_object(path)
        except (OSError, ValueError):
            return None  # loading the model will report the error

    def _values_here(self) -> dict[str, Any] | None:
        """Return the values of a GGUF file in the place of `config.json`; None where it is not here or cannot be
        read.
        """
        header = self.header_here
        try:
            return None if header is None else self._values(header)
        except HispecError:
            return None  # loading the model will report the error

    def _values(self, header: gguf.Header) -> dict[str, Any]:
        path = self._header_file
        assert path is not None
        return gguf_config.values_of(header, path, self.name)

    @property
    def has_tokenizer(self) -> bool:
        """Return whether the vocabulary of a tokenizer is on this machine."""
        if self.gguf_file is not None:
            return self.header_here is not None
        return any(map(self.here, ("tokenizer.json", *VOCABULARIES)))

    # Quick requests to the hub

    def access(self, seconds: float) -> Access:
        """Return whether its files may be downloaded: `granted`, `refused` by its licence gate, `missing`, or
        `unknown`.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        def ask() -> Access:
            try:
                url = hf_hub_url(self.model, self.config_file, revision=self.revision)
                get_hf_file_metadata(url, timeout=seconds)
            except GatedRepoError:  # also a RepositoryNotFoundError
                return "refused"
            except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
                return "missing"
            return "granted"

        return within(seconds, ask, "unknown")

    def fetch_config(self, seconds: float) -> None:
        """Bring `config.json` into the cache, or the header of a GGUF file, if that can be done in time."""
        within(seconds, lambda: self.commit if self.gguf_file is None else self._header_file, None)


@cache
def _commit_of(model: str, revision: str | None, file: str | None) -> str | None:
    """Return the commit that a revision of a hub model stands for, as the path of its configuration in the cache shows.

    Args:
        model: id of the repository.
        revision: its branch, tag or commit.
        file: the GGUF file that is meant, which is not fetched; None for a checkpoint in safetensors.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(model, file or CONFIG, revision=revision)
        if file is not None:
            if isinstance(cached, str):
                return _commit_in(Path(cached))
            return (
                revision
                if is_offline()
                else get_hf_file_metadata(hf_hub_url(model, file, revision=revision)).commit_hash
            )
        if not isinstance(cached, str) and not is_offline():
            # Downloading retries a hub out of reach for half a minute; this asks it once.
            get_hf_file_metadata(hf_hub_url(model, CONFIG, revision=revision))
        return Path(hf_hub_download(model, CONFIG, revision=revision)).parent.name
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        if file is not None:
            raise gguf_hub.no_file(model, file, revision) from None
        return revision


def _commit_in(path: Path) -> str:
    """Return the commit that a file of the hub's cache belongs to."""
    return path.parts[path.parts.index("snapshots") + 1]


def _read_object(path: Path | None) -> dict[str, Any]:
    """Return the object in a JSON file, empty for no file; a file is parsed again only once it has changed."""
    if path is None:
        return {}
    found = path.stat()
    return _parse(path, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=64)
def _parse(path: Path, *_: int) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not an object")
    return found
