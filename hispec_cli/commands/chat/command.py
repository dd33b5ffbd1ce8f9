"""`hispec chat`: a conversation, turn by turn."""

import sys
from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated

import typer

from hispec.counts import counted
from hispec.errors import UnavailableError, UsageError
from hispec.extras import require
from hispec_cli.checks import check_message, choose_grammar
from hispec_cli.commands.chat.options import AnswersViewOptions, SessionsOptions
from hispec_cli.completion import sessions
from hispec_cli.help import examples
from hispec_cli.options import (
    AnswerOptions,
    CommonOptions,
    Format,
    GrammarOptions,
    ModelOptions,
    grouped,
    message_option,
    output_option,
)
from hispec_cli.ui.console import say
from hispec_cli.ui.views import check_view, choose_view

EXAMPLES = examples("hispec chat", "hispec chat --session cooking --system 'Answer in one sentence.'")


@grouped
def chat(
    *,
    model: ModelOptions,
    decoding: AnswerOptions,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=sessions,
            help="Continue this session, or start it; by default a new session is started.",
        ),
    ] = None,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Continue the session that was saved last, or that of --session.")
    ] = False,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            envvar="HISPEC_HISTORY",
            help="Save the input history, and conversations without --session, on this machine.",
        ),
    ] = True,
    system: Annotated[str | None, message_option(metavar="TEXT", help="System message.")] = None,
    stop: Annotated[
        list[str] | None, message_option(metavar="TEXT", help="End answers before this text. Repeatable.")
    ] = None,
    structure: GrammarOptions,
    markdown: Annotated[
        bool, output_option("--markdown", envvar="HISPEC_MARKDOWN", help="Render finished answers as Markdown.")
    ] = False,
    view: AnswersViewOptions,
    saved_sessions: SessionsOptions,
    common: CommonOptions,
) -> None:
    """Chat with a model. The answers are token for token those of the target alone. /help lists the commands.

    If the input is not a terminal, each line is one turn.
    """
    if saved_sessions.carry_out(view.format):
        return
    if markdown and view.format is not Format.auto:
        raise UsageError(f"--markdown and --format {view.format} exclude each other", "leave out one of them")
    check_view(view)
    check_message(system, stop)
    grammar = choose_grammar(structure)
    from hispec.session import latest_session
    from hispec_cli.commands.chat.opening import choose_with, load, new_store, open_session, settle
    from hispec_cli.commands.chat.sessions import say_new

    typed, named = sys.stdin.isatty(), session is not None or continue_
    if typed:
        require("chat", "a conversation on a terminal")
    with ExitStack() as stack:
        store, saved = None, None
        if named:
            store, saved = open_session(latest_session() if session is None else session)
            stack.enter_context(closing(store))
        if continue_ and saved is None:
            raise UsageError(f"there is no session {session}", "leave out --continue to start it")
        if session is not None and saved is None:
            say_new(session)
        model, saved = settle(model, saved, system, stop, grammar)
        choice, earlier = choose_with(model, decoding, saved)
        engine, options = load(choice, earlier, saved.system)
        if store is None and history and typed:
            store = stack.enter_context(closing(new_store()))
        from hispec.conversation import Conversation
        from hispec_cli.commands.chat.chat import Chat
        from hispec_cli.commands.chat.loop import converse, feed
        from hispec_cli.commands.chat.slash import take

        rendered = markdown and sys.stdout.isatty()
        new_view = partial(choose_view, view, keep=not rendered)
        conversation = Conversation(engine, saved.system, saved.turns, saved.grammar)
        talk = Chat(conversation, store, saved, options, new_view, rendered)
        if store is not None and store.recovered is not None:
            count = len(store.recovered.token_ids)
            say(
                f"the last answer was cut off; its {counted(count, 'validated token')} kept, /retry answers again",
                "yellow",
            )
        if not typed:
            try:
                feed(partial(take, talk), sys.stdin.buffer)
            except UnavailableError:
                if talk.unsaved:  # there is no next turn that could try again
                    talk.leave(named=named)
                raise
            return
        from hispec_cli.commands.chat.keyboard import Keyboard

        say(f"{engine.profile.name} on {engine.environment['device']} · /help lists commands, Ctrl-D leaves")
        talk.show_last_turn()
        keyboard = Keyboard(history, view.palette)
        converse(partial(take, talk), keyboard.read, keyboard.offer)
        talk.leave(named=named)
