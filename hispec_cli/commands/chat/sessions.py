"""The actions of `hispec chat` on sessions that it does not open: list, rename, delete. Imports no torch."""

import time

from hispec.session import Listed, delete_session, list_sessions, rename_session, similar_session
from hispec_cli.options import Format
from hispec_cli.ui.console import say
from hispec_cli.ui.output import write_records, write_table

HEADER = ("NAME", "TURNS", "SAVED", "MODEL", "FIRST PROMPT")
PROMPT_CHARACTERS = 60


def show_sessions(format_: Format) -> None:
    """Write the list of sessions to stdout, the latest first."""
    listed = list_sessions()
    if format_.is_json:
        write_records([_record(one) for one in listed], lines=format_ is Format.jsonl)
        return
    if not listed:
        say("there are no sessions; start one: hispec chat")
        return
    write_table([HEADER, *(_row(one) for one in listed)])


def rename(name: str, new: str) -> None:
    """Rename a session; errors as `rename_session`."""
    rename_session(name, new)
    say(f"{name} is now {new}; continue with: hispec chat --session {new}")


def delete(names: list[str]) -> None:
    """Delete sessions; errors as `delete_session`."""
    for name in names:
        delete_session(name)
        say(f"deleted: {name}")


def say_new(name: str) -> None:
    """Report that a new session is started, in case the name was mistyped."""
    near = similar_session(name)
    say(f"{name} is a new session" + (f"; did you mean {near}? hispec chat --session {near}" if near else ""))


def _record(listed: Listed) -> dict[str, object]:
    session = listed.session
    return {
        "name": listed.path.stem,
        "saved_at": _time(listed, "%Y-%m-%dT%H:%M:%S%z"),
        "turns": None if session is None else len(session.turns),
        "model": None if session is None else session.model.model or session.model.profile,
        "prompt": session.turns[0].prompt if session is not None and session.turns else None,
        "path": str(listed.path),
    }


def _row(listed: Listed) -> tuple[str, ...]:
    record, saved = _record(listed), _time(listed, "%Y-%m-%d %H:%M")
    if record["turns"] is None:
        return (listed.path.stem, "", saved, "", "(damaged)")
    prompt = " ".join(str(record["prompt"] or "").split())
    if len(prompt) > PROMPT_CHARACTERS:
        prompt = prompt[: PROMPT_CHARACTERS - 3] + "..."
    return (listed.path.stem, str(record["turns"]), saved, str(record["model"] or "the default"), prompt)


def _time(listed: Listed, form: str) -> str:
    return time.strftime(form, time.localtime(listed.saved_at))
