"""GGUF files on a hub: their headers, fetched alone, so that a model is known before all of it is downloaded."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hispec.errors import UsageError
from hispec.models import gguf, gguf_config
from hispec.models.hub import is_offline

FIRST = 1 << 16
"""Bytes of a file after which its header may be whole."""

fetched: dict[tuple[str, str | None, str | None], Path] = {}
"""The fetched headers' files, by repository, file and revision; they are removed when the process ends."""
_folders: list[TemporaryDirectory[str]] = []


def fetch_beginning(model: str, file: str, revision: str | None, commit: str | None) -> Path:
    """Return as much of a file as holds its header; the hub is asked for it once.

    Args:
        model: id of the repository.
        file: its name there.
        revision: branch, tag or commit, as the user gave it.
        commit: the commit that the revision stands for.

    Raises:
        HfHubHTTPError: and others of the hub's client.
        UnavailableError, UsageError: the header is invalid, as for `gguf.parse_header`.
    """
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    key = (model, file, revision)
    if key in fetched:
        return fetched[key]
    if is_offline():
        return Path(hf_hub_download(model, file, revision=commit))  # says that it is not here
    found, wanted = bytearray(), FIRST
    url = hf_hub_url(model, file, revision=commit)
    with get_session().stream("GET", url, headers=build_hf_headers(), follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        for piece in answer.iter_bytes():
            found += piece
            if len(found) >= wanted and (wanted := gguf_config.needed(found, f"{model}:{file}")) <= len(found):
                break
    _folders.append(TemporaryDirectory(prefix="hispec-gguf-"))
    path = Path(_folders[-1].name) / Path(file).name
    path.write_bytes(found)
    return fetched.setdefault(key, path)


def no_file(model: str, file: str, revision: str | None) -> UsageError:
    """Return the error of a file that a repository does not have, with those that it has."""
    known = _files(model, revision)
    hint = f"choose one of these: {gguf.listed(known)}" if known else "check its name on the hub"
    return UsageError(f"{model} has no file {file}", hint)


def check_other(model: str, revision: str | None) -> None:
    """Refuse a repository that is named without a file, and has nothing but GGUF files.

    Raises:
        UsageError: naming some of them.
    """
    if known := _files(model, revision):
        raise UsageError(
            f"{model} has no config.json, but {gguf.listed(known)}", f"name one of them: --model {model}:{known[0]}"
        )


def _files(model: str, revision: str | None) -> list[str]:
    """Return the GGUF files of a repository, as far as the hub says."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(model, revision=revision)
    except Exception:  # the list is only part of a hint
        return []
    return sorted(name for name in files if name.endswith(gguf.ENDING) and not gguf.PART.search(name))
