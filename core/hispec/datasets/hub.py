"""Fetches one pinned file from a hub of datasets or from the hub's cache. Failures are reported within seconds."""

from pathlib import Path

from hispec.datasets.base import HubFile
from hispec.errors import UnavailableError


def fetch(file: HubFile, name: str, *, offline: bool = False) -> Path:
    """Return the path of a dataset's file on this machine, after downloading it if needed.

    A commit never changes, so a file that is in the cache is used without a request to the hub. The whole-dataset
    loader of the `datasets` library is not used for this: without a network it serves whatever revision it cached last,
    it waits minutes for a hub that does not answer, and it prepares the training split too.

    Args:
        file: the file to fetch.
        name: the name of the dataset, for messages.
        offline: never touch the network; so does HF_HUB_OFFLINE=1.

    Raises:
        UnavailableError: the file is not in the cache, and the hub does not answer, is gated, or does not have it.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        is_offline_mode,
        try_to_load_from_cache,
    )

    # Downloading would look there too, but even for that the client may ask the hub something about itself first.
    cached = try_to_load_from_cache(file.repo, file.path, repo_type="dataset", revision=file.revision)
    if isinstance(cached, str):
        return Path(cached)
    if offline or is_offline_mode():
        raise UnavailableError(
            f"dataset {name} ({file.repo}) is not in the hub's cache, and the network may not be used",
            f"run once without --offline and HF_HUB_OFFLINE, or pass a file: --dataset FILE --format-as {name}",
        )
    try:
        # Downloading retries a hub out of reach for minutes; this asks it once.
        get_hf_file_metadata(hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.revision))
        return Path(hf_hub_download(file.repo, file.path, repo_type="dataset", revision=file.revision))
    except Exception as error:
        raise _explain(error, file, name) from error


def _explain(error: Exception, file: HubFile, name: str) -> UnavailableError:
    """Translate errors of the hub's client."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    elsewhere = f"or pass a file: --dataset FILE --format-as {name}"
    if isinstance(error, GatedRepoError):
        return UnavailableError(
            f"dataset {file.repo} is gated",
            f"ask for access on its page and log in with: hf auth login; {elsewhere}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UnavailableError(
            f"the hub has no dataset {file.repo}, or does not show it", f"check HF_ENDPOINT and the login; {elsewhere}"
        )
    if isinstance(error, RevisionNotFoundError):
        return UnavailableError(
            f"dataset {file.repo} has no revision {file.revision} on this hub", f"check HF_ENDPOINT; {elsewhere}"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return UnavailableError(
            f"dataset {file.repo} has no file {file.path} at revision {file.revision} on this hub",
            f"check HF_ENDPOINT; {elsewhere}",
        )
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return UnavailableError(
        f"dataset {name} ({file.repo}) is not in the cache and cannot be downloaded: {line}",
        f"check the network, HF_ENDPOINT and the disk, {elsewhere}",
    )
