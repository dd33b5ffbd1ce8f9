"""What the hub says when it is asked briefly: whether it answers, and whether a model may be had. Nothing here hangs."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hispec.profile import Target, resolve_model

T = TypeVar("T")
State = Literal["reachable", "unreachable", "offline"]
Access = Literal["granted", "refused", "missing", "unknown"]


def within(seconds: float, call: Callable[[], T], otherwise: T) -> T:
    """What a call returns, or `otherwise` where it fails or takes longer.

    A request's own timeout does not cover looking up a name, hence a thread, which nobody waits for in the end.
    """
    answers: queue.Queue[T] = queue.Queue()

    def run() -> None:
        try:
            answers.put(call())
        except Exception:
            answers.put(otherwise)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return otherwise


def hub_state(seconds: float) -> State:
    """Whether the hub answers, whatever it says."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "offline"

    def ask() -> State:
        get_session().head(constants.ENDPOINT, timeout=seconds)
        return "reachable"

    return within(seconds, ask, "unreachable")


def access_to(target: Target, seconds: float) -> Access:
    """Whether a model's files may be downloaded: refused by its licence gate, missing, or not to be learnt."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def ask() -> Access:
        try:
            get_hf_file_metadata(hf_hub_url(target.model, "config.json", revision=target.revision), timeout=seconds)
        except GatedRepoError:  # also a RepositoryNotFoundError
            return "refused"
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            return "missing"
        return "granted"

    return within(seconds, ask, "unknown")


def fetch_config(target: Target, seconds: float) -> Any:
    """Bring a model's `config.json` into the cache, if that can be done in time."""
    from huggingface_hub import hf_hub_download

    return within(
        seconds,
        lambda: hf_hub_download(
            resolve_model(target.model), "config.json", revision=target.revision, etag_timeout=seconds
        ),
        None,
    )
