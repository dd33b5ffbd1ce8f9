"""The files of a checkpoint, in a folder or on the hub, and its tensors one by one."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """A model's files, fetched from the hub as they are asked for.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.
    """

    def __init__(self, model: str, revision: str | None) -> None:
        self.model, self.revision = model, revision

    def find(self, name: str) -> Path | None:
        """A file of the checkpoint, None where it has none of this name; errors as `hf_hub_download`."""
        if Path(self.model).is_dir():
            path = Path(self.model) / name
            return path if path.is_file() else None
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except LocalEntryNotFoundError:
            # Offline, what is not in the cache of a model that is there counts as never having been.
            known = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
            if constants.HF_HUB_OFFLINE and isinstance(known, str):
                return None
            raise
        except EntryNotFoundError:
            return None

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

    def weight_files(self) -> dict[str, Path]:
        """The file that holds each tensor; empty where the checkpoint has no safetensors."""
        single = self.find(WEIGHTS)
        if single is not None:
            with safe_open(single, framework="pt") as file:
                return dict.fromkeys(file.keys(), single)
        index: dict[str, str] = self.read_json(INDEX).get("weight_map", {})
        files = {name: self.find(name) for name in sorted(set(index.values()))}
        return {tensor: path for tensor, name in index.items() if (path := files[name]) is not None}


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
