"""Opening a chat: its session, the model that it is with, and the engine."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hispec.errors import HispecError, UsageError
from hispec.precedence import resolve_settings
from hispec.session import ModelChoice, Session, SessionStore
from hispec_cli.checks import Choice, chat_template_of, check_message, choose
from hispec_cli.commands.chat.slash import KEYS
from hispec_cli.engine import load_engine
from hispec_cli.options import AnswerOptions, ModelOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hispec.api import Engine
    from hispec.grammar import Grammar


def open_session(name: str) -> tuple[SessionStore, Session | None]:
    """Open a session, and return it with its content; None for a new one.

    Raises:
        UsageError: the session is open elsewhere, or damaged.
        UnavailableError: its files cannot be used.
    """
    store = SessionStore(name)
    try:
        return store, store.read()
    except HispecError:
        store.close()
        raise


def new_store() -> SessionStore:
    """Begin a session that is named after the time."""
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    for name in (stamp, *(f"{stamp}-{number}" for number in range(2, 1000))):
        try:
            store = SessionStore(name)
        except UsageError:  # begun in the same second
            continue
        if not store.path.exists():
            return store
        store.close()
    raise UsageError("too many sessions were started in this second", "wait a second")


def settle(
    model: ModelOptions,
    saved: Session | None,
    system: str | None,
    stop: Sequence[str] | None,
    grammar: "Grammar | None",
) -> tuple[ModelOptions, Session]:
    """Return the model of a chat and its session, in which options replace saved values.

    Args:
        model: the options that name it.
        saved: the session as it was left, None for a new one.
        system: a message of the options.
        stop: texts of the options.
        grammar: of the options.
    """
    # A session that is continued elsewhere, or later, has the same model, whatever source its name came from.
    saved = saved or Session.new(
        model=ModelChoice(profile=os.environ.get("HISPEC_PROFILE") or None), chat_template=chat_template_of(model)
    )
    chosen = ModelChoice(**{key: getattr(model, key) for key in ModelChoice.model_fields})
    changes: dict[str, Any] = {}
    if chosen == ModelChoice():
        model = replace(model, **saved.model.model_dump())
    else:
        changes["model"] = chosen
    if system is not None:
        changes["system"] = system
    if model.chat_template is not None:
        changes["chat_template"] = chat_template_of(model)
    if stop is not None:
        changes["stop"] = tuple(stop)
    if grammar is not None:
        changes["grammar"] = grammar
    return model, saved.model_copy(update=changes)


def choose_with(model: ModelOptions, decoding: AnswerOptions, saved: Session) -> tuple[Choice, dict[str, Any]]:
    """Choose a model as `hispec_cli.checks.choose` for a session, refusing its texts and settings too.

    Returns:
        The choice, and the settings of the session that are not asked for again.
    """
    check_message(saved.system, saved.stop)
    earlier = {key: value for key, value in saved.options.items() if key in KEYS and key not in decoding}
    mode = {"mode": earlier["mode"]} if "mode" in earlier else {}
    choice = choose(model, decoding | mode)
    resolve_settings(earlier | decoding, choice.profile, environ=os.environ)
    if saved.chat_template is not None:
        choice = replace(choice, profile=choice.profile.model_copy(update={"chat_template": saved.chat_template}))
    return choice, earlier


def load(choice: Choice, earlier: dict[str, Any], system: str | None) -> "tuple[Engine, dict[str, Any]]":
    """Load the model, and return the settings too that are asked for now or were in the session."""

    def check(tokenizer: "PreTrainedTokenizerBase", _: int) -> None:
        from hispec.conversation import check_template

        check_template(choice.profile, tokenizer, system)

    engine = load_engine(choice, check=check)
    from hispec_cli.commands.chat.chat import engine_options

    options = earlier | {key: value for key, value in choice.decoding.items() if key in KEYS}
    if earlier:
        engine = engine.with_settings(**engine_options(options))
    return engine, options
