"""One chat: a conversation that shows answers and saves them."""

import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from hispec.conversation import Conversation
from hispec.counts import counted
from hispec.errors import UnavailableError
from hispec.events import Committed, Event, Finished
from hispec.grammar import Grammar
from hispec.metrics import Stats
from hispec.precedence import SettingError, without_effect
from hispec.session import Session, SessionStore, Turn, write_session
from hispec_cli.ui.console import breaking_width, report_error, say, stderr
from hispec_cli.ui.markdown import write_markdown
from hispec_cli.ui.panels import lines_of, printable, rows_for_terminal, wrap
from hispec_cli.ui.plain import View
from hispec_cli.ui.signals import ctrl_c
from hispec_cli.ui.views import report, warn_if_cut_off


class Chat:
    """A conversation with its view and its file.

    Args:
        conversation: the conversation with the engine.
        store: the store of its session; None keeps it in memory.
        session: the session so far; its stop texts end answers.
        options: decoding settings that were asked for.
        new_view: a view for an answer, from its empty figures.
        markdown: whether finished answers are rendered; the view then shows none of them for good.
    """

    def __init__(
        self,
        conversation: Conversation,
        store: SessionStore | None,
        session: Session,
        options: dict[str, Any],
        new_view: Callable[[Stats], View],
        markdown: bool = False,
    ) -> None:
        self.conversation, self.store, self.options = conversation, store, options
        self._session, self._new_view, self._markdown = session, new_view, markdown
        mode = conversation.engine.settings.mode
        self.speculative_mode = "hispec" if mode == "autoregressive" else mode
        self.last_stats: Stats | None = None
        self.answers, self.tokens, self.seconds = 0, 0, 0.0
        self.interrupted = False
        """Whether the last answer was interrupted."""
        self._unsaved: UnavailableError | None = None
        """The error of the last attempt to save the session."""
        self._kept: tuple[Path, Session] | None = None
        """The file that the user last wrote the conversation to, and the content."""

    def ask(self, prompt: str) -> None:
        """Answer a prompt; errors as `Conversation.ask`."""
        self._show(lambda **options: self.conversation.ask(prompt, **options), prompt, replaces=False)

    def retry(self) -> None:
        """Answer the last prompt again."""
        turns = self.conversation.turns
        self._show(self.conversation.retry, turns[-1].prompt if turns else "", replaces=True)

    def set(self, key: str, value: Any) -> None:
        """Change a decoding setting.

        Raises:
            UsageError: a value that is not accepted.
        """
        options = {**self.options, key: value}
        try:
            engine = self.conversation.engine.with_sampling(**engine_options(options))
        except SettingError as error:
            raise error.named(key.replace("_", "-")) from None
        self.conversation.engine = engine
        self.options = {**options, key: getattr(engine.settings, key)}
        say(f"{key} {'none' if self.options[key] is None else self.options[key]}")
        for note in without_effect(engine.settings, {key: "option"}):
            say(f"note: {note}", "yellow")
        self.save()

    def match(self, grammar: Grammar | None) -> None:
        """Have answers from now on match a grammar, or none; errors as `Engine.check_grammar`."""
        if grammar is not None:
            self.conversation.engine.check_grammar(grammar)
        self.conversation.grammar = grammar
        say("answers may be any text" if grammar is None else f"answers match the {grammar.kind}")
        self.save()

    def replace(self, system: str | None, turns: Iterable[Turn]) -> None:
        """Go on with another conversation. The one until now is set aside where it is saved at all."""
        if self.store is not None and self.conversation.turns:
            name = self.store.set_aside(self.snapshot())
            say(f"the conversation so far is saved: hispec chat --session {name}")
        self.conversation.restart(system, turns)
        self.save()

    def snapshot(self) -> Session:
        """Return the session to be saved."""
        conversation = self.conversation
        values = {
            "options": self.options,
            "system": conversation.system,
            "turns": tuple(conversation.turns),
            "grammar": conversation.grammar,
        }
        return self._session.model_copy(update=values)

    def save(self) -> None:
        """Save the session, where there is something to save.

        Raises:
            UnavailableError: the disk is full, or gone.
        """
        self._session = self.snapshot()
        if self.store is None:
            return
        try:
            if self._session.turns or self.store.exists():
                self.store.save(self._session)
            self._unsaved = None
        except UnavailableError as error:
            self._unsaved = error
            raise UnavailableError(
                f"the conversation is not saved: {error.message}",
                "write it elsewhere with /save FILE; the next turn tries again",
            ) from None

    def save_as(self, path: Path) -> None:
        """Write the conversation to a file of the user's; errors as `write_session`."""
        write_session(path, self.snapshot())
        self._kept = path, self.snapshot()

    @property
    def unsaved(self) -> bool:
        """Return whether the last turn could not be saved."""
        return self._unsaved is not None

    def leave(self, *, named: bool) -> None:
        """Print how to continue the session.

        Args:
            named: whether the user named the session, which is then kept even without a turn.

        Raises:
            UnavailableError: the session could not be saved, not now either.
        """
        if self.store is None:
            return
        if not self.conversation.turns:
            if not named:
                self.store.discard()
            return
        if self._unsaved is not None:
            with suppress(UnavailableError):
                self.save()
        if self._unsaved is None:
            say(f"continue with: hispec chat --session {self.store.name}")
            return
        path = self._kept[0] if self._kept is not None and self._kept[1] == self.snapshot() else self._rescue()
        raise UnavailableError(
            f"the session {self.store.name} was not saved: {self._unsaved.message}",
            "before leaving, write a conversation elsewhere with /save FILE"
            if path is None
            else f"it is kept: start hispec chat, then write /load {path}",
        )

    def _rescue(self) -> Path | None:
        """Write the conversation to the folder for temporary files, if that can be."""
        try:
            descriptor, name = mkstemp(prefix="hispec-", suffix=".json")
            os.close(descriptor)
        except OSError:
            return None
        path = Path(name)
        try:
            write_session(path, self.snapshot())
        except UnavailableError:
            path.unlink(missing_ok=True)
            return None
        return path

    def show_last_turn(self) -> None:
        """Show the last turn of a continued conversation."""
        if turns := self.conversation.turns:
            say(f"{counted(len(turns), 'turn')}, the last of them:")
            say(f"> {turns[-1].prompt}", "bold")
            console, answer = stderr(), printable(turns[-1].answer.rstrip())
            lines = lines_of(answer, wrap(answer, console.width))
            console.out(rows_for_terminal(lines, breaking_width(console)), end="", highlight=False)

    def _show(self, ask: Callable[..., Generator[Event]], prompt: str, *, replaces: bool) -> None:
        """Show an answer and keep it, however it ends."""
        engine = self.conversation.engine
        view = self._new_view(engine.new_stats())
        events = ask(stop=self._session.stop, draft_text=view.draft_text)
        begin = partial(SessionStore.begin, session=self.snapshot(), prompt=prompt, replaces=replaces)
        problem = self._attempt(begin)
        finished = broken = False
        try:
            with ctrl_c(engine.interrupt), closing(events), view:
                for event in events:
                    if isinstance(event, Committed) and problem is None:
                        problem = self._attempt(partial(SessionStore.note, token_ids=event.token_ids, text=event.text))
                    view.see(event)
                    if isinstance(event, Finished):
                        finished = True
                        self._finish(view, event)
        except BaseException:
            broken = True
            if not finished:
                view.break_off()
            raise
        finally:
            self._session = self._session.model_copy(update={"answers": self._session.answers + 1})
            try:
                self.save()
            except UnavailableError as error:
                problem = error
            if broken and problem is not None:
                report_error(problem.message, problem.hint)
        if problem is not None:
            raise problem

    def _finish(self, view: View, event: Finished) -> None:
        """Finish the view of an answer, and print the messages about it."""
        generation, stats = event.result, event.result.stats
        view.finish(generation)
        if self._markdown:
            write_markdown(generation.text)
        self.last_stats, self.interrupted = stats, event.finish_reason == "interrupted"
        self.answers, self.tokens = self.answers + 1, self.tokens + stats.new_tokens
        self.seconds += stats.total_seconds
        report(stats)
        warn_if_cut_off(generation)
        if not sys.stderr.isatty():
            return
        if event.finish_reason == "interrupted":
            say("stopped; the validated part of the answer is kept")
        elif event.finish_reason == "length" and generation.complete is not False:
            limit = self.conversation.engine.settings.max_new_tokens
            full = stats.new_tokens < limit
            say(
                "the context is full: /undo or /reset"
                if full
                else f"the answer reached max_new_tokens, {limit}; /set it for longer ones"
            )

    def _attempt(self, act: Callable[[SessionStore], None]) -> UnavailableError | None:
        """Write to the session; an error is reported after the answer, which does not depend on it."""
        try:
            if self.store is not None:
                act(self.store)
        except UnavailableError as error:
            return error
        return None


def engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as `Engine.with_settings` takes them: a mode brings its own lengths, where none are asked for."""
    lengths = {"draft_tokens": None, "validate_every": None} if "mode" in options else {}
    return lengths | options
