"""`hispec chat`: a conversation, turn by turn."""

import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hispec.counts import counted
from hispec.errors import HispecError, UsageError
from hispec.extras import require
from hispec_cli.checks import Choice, chat_template_of, check_message, choose
from hispec_cli.completion import sessions
from hispec_cli.engine import load_engine
from hispec_cli.help import examples
from hispec_cli.options import (
    AnswerOptions,
    CommonOptions,
    Format,
    ModelOptions,
    grouped,
    message_option,
    output_option,
)
from hispec_cli.ui.console import say
from hispec_cli.ui.theme import Palette
from hispec_cli.ui.views import check_view, choose_view

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hispec.api import Engine
    from hispec.metrics import Stats
    from hispec.session import Session, SessionStore
    from hispec_cli.commands.chat.chat import Chat
    from hispec_cli.ui.plain import View

EXAMPLES = examples("hispec chat", "hispec chat --session cooking --system 'Answer in one sentence.'")


session_option = partial(typer.Option, rich_help_panel="Saved sessions")


@dataclass(frozen=True)
class SessionsOptions:
    """What to do with saved sessions, in the place of a chat."""

    list_sessions: Annotated[
        bool, session_option("--list-sessions", help="List sessions, the latest first, and exit.")
    ] = False
    rename_session: Annotated[
        tuple[str, str] | None, session_option(metavar="OLD NEW", help="Give a session another name, and exit.")
    ] = None
    delete_session: Annotated[
        list[str] | None,
        session_option(metavar="NAME", autocompletion=sessions, help="Delete a session, and exit; repeatable."),
    ] = None

    def carry_out(self, format_: Format) -> bool:
        """Do the one thing that is asked for; False where nothing is.

        Raises:
            UsageError: more than one, no such session, or one that is in use.
        """
        if sum(map(bool, (self.list_sessions, self.rename_session, self.delete_session))) > 1:
            raise UsageError(
                "--list-sessions, --rename-session and --delete-session exclude each other", "give one of them"
            )
        from hispec_cli.commands.chat.sessions import delete, rename, show_sessions

        if self.list_sessions:
            show_sessions(format_)
        elif self.rename_session is not None:
            rename(*self.rename_session)
        elif self.delete_session:
            delete(self.delete_session)
        else:
            return False
        return True


@grouped
def chat(
    *,
    model: ModelOptions,
    decoding: AnswerOptions,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", autocompletion=sessions, help="Go on with this session, or begin it; by default a new one."
        ),
    ] = None,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Go on with the session that was saved last, or with that of --session.")
    ] = False,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            envvar="HISPEC_HISTORY",
            help="Keep what is typed, and conversations without --session, on this machine.",
        ),
    ] = True,
    system: Annotated[str | None, message_option(metavar="TEXT", help="A system message.")] = None,
    stop: Annotated[
        list[str] | None, message_option(metavar="TEXT", help="End answers before this text; repeatable.")
    ] = None,
    markdown: Annotated[
        bool, output_option("--markdown", envvar="HISPEC_MARKDOWN", help="Render finished answers as Markdown.")
    ] = False,
    format: Annotated[  # noqa: A002
        Format, output_option("--format", help="How to write answers to stdout; json and jsonl: objects, one a line.")
    ] = Format.auto,
    live: Annotated[
        bool | None,
        output_option(
            "--live/--no-live", envvar="HISPEC_LIVE", help="The live view; by default on a terminal, not with pipes."
        ),
    ] = None,
    palette: Annotated[
        Palette, output_option(envvar="HISPEC_PALETTE", help="Colours of the live view.")
    ] = Palette.default,
    saved_sessions: SessionsOptions,
    common: CommonOptions,
) -> None:
    """Talk with a model, which answers token for token as the target alone would. /help lists the commands.

    Input that is not a terminal is one turn a line.
    """
    if saved_sessions.carry_out(format):
        return
    if markdown and format is not Format.auto:
        raise UsageError(f"--markdown and --format {format} exclude each other", "leave out one of them")
    check_view(format, live)
    check_message(system, stop)
    from hispec.session import ModelChoice, Session, latest_session
    from hispec_cli.commands.chat.sessions import say_new

    if sys.stdin.isatty():
        require("chat", "a conversation on a terminal")
    store, saved = None, None
    if session is not None or continue_:
        store, saved = open_session(latest_session() if session is None else session)
    try:
        if continue_ and saved is None:
            raise UsageError(f"there is no session {session}", "leave out --continue to begin it")
        if session is not None and saved is None:
            say_new(session)
        # A session that goes on elsewhere, or later, is with the same model, wherever its name came from.
        saved = saved or Session.new(
            model=ModelChoice(profile=os.environ.get("HISPEC_PROFILE") or None), chat_template=chat_template_of(model)
        )
        chosen = ModelChoice(**{key: getattr(model, key) for key in ModelChoice.model_fields})
        if chosen == ModelChoice():
            model = replace(model, **saved.model.model_dump())
        else:
            saved = saved.model_copy(update={"model": chosen})
        if system is not None:
            saved = saved.model_copy(update={"system": system})
        if model.chat_template is not None:
            saved = saved.model_copy(update={"chat_template": chat_template_of(model)})
        if stop is not None:
            saved = saved.model_copy(update={"stop": tuple(stop)})
        rendered = markdown and sys.stdout.isatty()

        def new_view(stats: "Stats") -> "View":
            return choose_view(format, live, palette, stats, keep=not rendered)

        choice, earlier = choose_with(model, decoding, saved)
        engine, options = load(choice, earlier, saved.system)
        if store is None and history and sys.stdin.isatty():
            store = new_store()
        from hispec.conversation import Conversation
        from hispec_cli.commands.chat.chat import Chat
        from hispec_cli.commands.chat.loop import converse, feed
        from hispec_cli.commands.chat.slash import take

        conversation = Conversation(engine, saved.system, saved.turns)
        talk = Chat(conversation, store, saved, options, new_view, rendered)
        if store is not None and store.recovered is not None:
            count = len(store.recovered.token_ids)
            say(
                f"the last answer was cut off; its {counted(count, 'validated token')} kept, /retry answers anew",
                "yellow",
            )
        if sys.stdin.isatty():
            from hispec_cli.commands.chat.keyboard import Keyboard

            welcome(talk)
            keyboard = Keyboard(history, palette)
            converse(partial(take, talk), keyboard.read, keyboard.offer)
            talk.leave(named=session is not None or continue_)
        else:
            feed(partial(take, talk), sys.stdin.buffer)
    finally:
        if store is not None:
            store.close()


def choose_with(model: ModelOptions, decoding: AnswerOptions, saved: "Session") -> "tuple[Choice, dict[str, Any]]":
    """Choose a model as `hispec_cli.checks.choose` for a session, refusing its texts and settings too.

    Returns:
        The choice, and the settings of the session that are not asked for anew.
    """
    from hispec.precedence import resolve_settings
    from hispec_cli.commands.chat.slash import KEYS

    check_message(saved.system, saved.stop)
    earlier = {key: value for key, value in saved.options.items() if key in KEYS and key not in decoding}
    mode = {"mode": earlier["mode"]} if "mode" in earlier else {}
    choice = choose(model, decoding | mode)
    resolve_settings(earlier | decoding, choice.profile, environ=os.environ)
    if saved.chat_template is not None:
        choice = replace(choice, profile=choice.profile.model_copy(update={"chat_template": saved.chat_template}))
    return choice, earlier


def load(choice: "Choice", earlier: dict[str, Any], system: str | None) -> "tuple[Engine, dict[str, Any]]":
    """Load the model: (engine, the settings that are asked for now or were in the session)."""

    def check(tokenizer: "PreTrainedTokenizerBase", _: int) -> None:
        from hispec.conversation import check_template

        check_template(choice.profile, tokenizer, system)

    engine = load_engine(choice, check=check)
    from hispec_cli.commands.chat.chat import asked
    from hispec_cli.commands.chat.slash import KEYS

    options = earlier | {key: value for key, value in choice.decoding.items() if key in KEYS}
    if earlier:
        engine = engine.with_settings(**asked(options))
    return engine, options


def welcome(talk: "Chat") -> None:
    """Say what answers, how to leave, and where the conversation was left."""
    engine = talk.conversation.engine
    say(f"{engine.profile.name} on {engine.environment['device']} · /help lists commands, Ctrl-D leaves")
    talk.show_last_turn()


def open_session(name: str) -> "tuple[SessionStore, Session | None]":
    """A session, and what it holds so far: None where it is new.

    Raises:
        UsageError: it is open elsewhere, or damaged.
        UnavailableError: its files cannot be used.
    """
    from hispec.session import SessionStore

    store = SessionStore(name)
    try:
        return store, store.read()
    except HispecError:
        store.close()
        raise


def new_store() -> "SessionStore":
    """A session named after the time."""
    from hispec.session import SessionStore

    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    for name in (stamp, *(f"{stamp}-{number}" for number in range(2, 1000))):
        try:
            store = SessionStore(name)
        except UsageError:  # begun in the same second
            continue
        if not store.path.exists():
            return store
        store.close()
    raise UsageError("too many sessions were begun in this second", "wait a second")
