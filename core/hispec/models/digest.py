"""Digests of the files that a profile's answers and speed depend on: equal for equal contents in any folder.

Every byte counts, since a checkpoint that was trained a little further differs in some of its tensors only. Hashing
takes seconds per ten gigabytes, so digests of large files are remembered, by path, size, time of change and inode.
"""

import hashlib
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hispec.files import remember, remembered
from hispec.frequencies import frequencies_path
from hispec.models.checkpoint import Checkpoint, checkpoints_of
from hispec.models.checkpoint_files import CONFIG, GENERATION_CONFIG, TOKENIZER, VOCABULARIES
from hispec.profile import Profile

SMALL = (
    CONFIG,
    GENERATION_CONFIG,
    *TOKENIZER,
    *VOCABULARIES,
    "adapter_config.json",
    "adapter_model.safetensors",
)
"""The files of a checkpoint, besides its weights, that its answers depend on."""
DIGITS = 16
"""The number of characters of a digest that are shown and compared."""
DIGESTS = "digests.json"
"""The cache of digests, in the user's cache folder."""
LARGE = 1 << 24
"""Bytes from which a digest is remembered."""
SETTLED_S = 2.0
"""A file that changed so lately may change again with the same time of change: its digest is not remembered."""


def digests_of_profile(profile: Profile, *, dummy: bool) -> dict[str, Any]:
    """Return digests of all files that decode a profile.

    Args:
        profile: a profile whose models are on this machine.
        dummy: whether the weights are drawn at random: there are no files of them then.

    Returns:
        By model as the profile names it, and for `profile`, the file that it names: a digest for each file, the
        weights of a model counting as one.

    Raises:
        OSError: a file that cannot be read.
        HispecError: weights that are incomplete.
    """
    digests: dict[str, Any] = {
        name: _digests_of_model(checkpoint)
        for name, checkpoint in checkpoints_of(profile, "hispec", dummy=dummy).items()
    }
    own = {"translators": profile.translators, "frequencies": frequencies_path(profile)}
    beside = {name: Path(path) for name, path in own.items() if path is not None and Path(path).is_file()}
    return digests | {"profile": {name: _joint([path]) for name, path in beside.items()}}


def _digests_of_model(checkpoint: Checkpoint) -> dict[str, str]:
    """Return digests of the files of a model, by their names; its weights are one."""
    checkpoint.find(checkpoint.config_file)
    small = {name: checkpoint.here(name) for name in SMALL if checkpoint.gguf_file is None}
    digests = {name: _joint([path]) for name, path in small.items() if path is not None}
    if checkpoint.dummy:
        return digests
    shards = map(checkpoint.find, checkpoint.shards())
    return digests | {"weights": _joint(path for path in shards if path is not None)}


def _joint(paths: Iterable[Path]) -> str:
    """Return the digest of some files, in their order."""
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        digests = list(pool.map(_digest_of_file, paths))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:DIGITS]


def _digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file; the hub's cache names large files by it."""
    path = path.resolve()
    if path.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", path.name):
        return path.name
    found = path.stat()
    key = [found.st_size, found.st_mtime_ns, found.st_ino]
    if found.st_size >= LARGE and (known := _known().get(str(path))) is not None and known[:-1] == key:
        return str(known[-1])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if found.st_size >= LARGE and time.time() - found.st_mtime > SETTLED_S:
        _add(str(path), [*key, digest])
    return digest


def _known() -> dict[str, list[int | str]]:
    """Return the cached entries by path: size, time of change, inode and digest."""
    return {path: entry for path, entry in remembered(DIGESTS).items() if isinstance(entry, list)}


def _add(path: str, entry: list[int | str]) -> None:
    """Add a file to the cache, and drop files that no longer exist."""
    known = {other: value for other, value in _known().items() if Path(other).is_file()}
    remember(DIGESTS, known | {path: entry})
