"""What a checkpoint stores, from the headers of its safetensors files: nothing of the weights themselves is read."""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from hispec.models.metadata import find_file, read_json
from hispec.profile import Target, resolve_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Stored(NamedTuple):
    """One tensor of a checkpoint: its dtype as safetensors calls it (`BF16`, `U8`), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """Of each number."""
        digits = re.search(r"\d+", self.dtype)
        return int(digits[0]) if digits else 8


@dataclass(frozen=True)
class Headers:
    """The tensors of a checkpoint by name, and how many bytes of it are not on this machine yet."""

    tensors: dict[str, Stored]
    download: int = 0


def read_headers(target: Target) -> Headers | None:
    """The headers of a checkpoint that is on this machine, None where it is not, or not as a whole, or is damaged."""
    from safetensors import safe_open

    tensors: dict[str, Stored] = {}
    for name in _files(target):
        path = find_file(target, name)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(key)
                    tensors[key] = Stored(part.get_dtype(), tuple(part.get_shape()))
        except Exception:  # loading the model will say what is wrong with it
            return None
    return Headers(tensors) if tensors else None


def fetch_headers(target: Target, timeout: float) -> Headers | None:
    """The headers of a checkpoint on the hub, by a few small requests; None where they cannot be had.

    Args:
        target: a hub id and its revision.
        timeout: seconds for each request.
    """
    from huggingface_hub import HfApi, constants

    model = resolve_model(target.model)
    if constants.HF_HUB_OFFLINE or Path(model).exists():
        return None
    try:
        found = HfApi().get_safetensors_metadata(model, revision=target.revision, timeout=timeout)
    except Exception:  # loading the model will say what is wrong with it
        return None
    tensors: dict[str, Stored] = {}
    download = 0
    for name, file in found.files_metadata.items():
        own = {key: Stored(str(info.dtype), tuple(info.shape)) for key, info in file.tensors.items()}
        tensors |= own
        if (path := find_file(target, name)) is None or not path.is_file():
            download += sum(stored.numbers * stored.bits // 8 for stored in own.values())
    return Headers(tensors, download) if tensors else None


def _files(target: Target) -> list[str]:
    """The names of a checkpoint's weight files: one file, or the shards that an index lists."""
    single = find_file(target, WEIGHTS)
    if single is not None and single.is_file():
        return [WEIGHTS]
    listed = (read_json(target, INDEX) or {}).get("weight_map")
    return sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
