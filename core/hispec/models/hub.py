"""Quick requests to the hub, and the settings of its client. Every request ends within a given time."""

import queue
import threading
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")
State = Literal["reachable", "unreachable", "offline"]
Access = Literal["granted", "refused", "missing", "unknown"]


def is_offline() -> bool:
    """Return whether the hub's client is not to use the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def quieten() -> None:
    """Keep the hub's client from narrating its retries: what matters of them is in the error that ends them."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def within(seconds: float, call: Callable[[], T], otherwise: T) -> T:
    """Return the result of a call, or `otherwise` if it fails or takes longer.

    A request's own timeout does not cover the look-up of a name, hence a thread, which may outlive the call.
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
    """Return whether the hub answers, even with an error."""
    from huggingface_hub import constants, get_session

    if is_offline():
        return "offline"

    def ask() -> State:
        get_session().head(constants.ENDPOINT, timeout=seconds)
        return "reachable"

    return within(seconds, ask, "unreachable")


def quieten_transformers() -> None:
    """Keep the library from narrating: what matters of it is in the error that ends it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
