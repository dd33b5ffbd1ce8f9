"""The options of `hispec chat`."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from hispec.errors import UsageError
from hispec_cli.completion import sessions
from hispec_cli.options import Format, ViewOptions, output_option

session_option = partial(typer.Option, rich_help_panel="Saved sessions")


@dataclass(frozen=True)
class SessionsOptions:
    """Options that manage saved sessions instead of starting a chat."""

    list_sessions: Annotated[
        bool, session_option("--list-sessions", help="List the saved sessions, the latest first, and exit.")
    ] = False
    rename_session: Annotated[
        tuple[str, str] | None, session_option(metavar="OLD NEW", help="Rename a session and exit.")
    ] = None
    delete_session: Annotated[
        list[str] | None,
        session_option(metavar="NAME", autocompletion=sessions, help="Delete a session and exit. Repeatable."),
    ] = None

    def carry_out(self, format_: Format) -> bool:
        """Do the one thing that is asked for, and return whether there is one.

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


@dataclass(frozen=True)
class AnswersViewOptions(ViewOptions):
    """The options that say how answers are shown."""

    format: Annotated[
        Format, output_option("--format", help="Format of answers on stdout; json and jsonl print one object per line.")
    ] = Format.auto
