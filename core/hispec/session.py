"""Sessions: conversations on disk, where a killed process loses nothing that was validated.

`NAME.json` has the conversation after the last finished answer; it is replaced as a whole. `NAME.journal` has what the
target validated of the answer under way, a line each time; its lock also keeps the session to one process.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hispec.errors import UnavailableError, UsageError
from hispec.events import FinishReason
from hispec.files import hold, write_whole
from hispec.grammar import Grammar

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer.

    Attributes:
        prompt: the prompt as the user wrote it.
        answer: the validated text.
        token_ids: the validated ids, an EOS included.
        finish_reason: the reason why the answer ended; `interrupted` for one that was cut off.
        seed: the seed that the answer was sampled with; None for a greedy answer.
    """

    prompt: str
    answer: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    seed: int | None = None


class ModelChoice(BaseModel):
    """The options that chose the model, None where they were not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str | None = None
    model: str | None = None
    draft_exit: int | None = None
    intermediate_exit: int | None = None


class Session(BaseModel):
    """A saved conversation.

    Attributes:
        model: the name of the model that answers.
        options: decoding settings that were asked for, by the names of `hispec.settings.Settings`.
        system: the system message.
        chat_template: a template that replaces the profile's or the tokenizer's.
        stop: texts that end an answer.
        grammar: the grammar that answers must match.
        turns: the turns in order.
        answers: the number of answers that were begun and saved; it shows whether a journal has yet to be merged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Annotated[Literal["hispec.session/1"], Field(alias="schema")]
    model: ModelChoice = ModelChoice()
    options: dict[str, Any] = {}
    system: str | None = None
    chat_template: str | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    turns: tuple[Turn, ...] = ()
    answers: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def new(cls, **values: Any) -> "Session":
        """Return a session that begins."""
        return cls.model_validate({"schema": "hispec.session/1", **values})


def read_session(path: Path) -> Session:
    """Read a saved conversation.

    Raises:
        UsageError: no such file, or one that is damaged.
    """
    try:
        return Session.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path} is not a complete saved conversation: {where + ': ' if where else ''}{first['msg']}",
            "mend the file, or move it away to start again",
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the path") from None


def write_session(path: Path, session: Session) -> None:
    """Save a conversation so that only its owner can read it. A reader sees the old file or the new one, never a part.

    Raises:
        UnavailableError: the file cannot be written; the old file is unchanged.
    """
    data = _written(session).encode("utf-8", "backslashreplace")
    write_whole(path, data, "make room, or save elsewhere", mode=0o600)


def _written(session: Session) -> str:
    """Return a session as JSON, a line for each turn."""
    record = session.model_dump(mode="json", by_alias=True, exclude_none=True)
    turns = ",\n".join(f"  {json.dumps(turn, ensure_ascii=False)}" for turn in record.pop("turns"))
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
    return "{\n" + ",\n".join([*lines, f' "turns": [\n{turns}\n ]' if turns else ' "turns": []']) + "\n}\n"


def sessions_folder() -> Path:
    """Return the folder of sessions."""
    return platformdirs.user_data_path("hispec") / "sessions"


def latest_session(folder: Path | None = None) -> str:
    """Return the name of the session that was saved last.

    Raises:
        UsageError: there is none.
    """
    saved = _saved(folder)
    if not saved:
        raise UsageError("there is no earlier session", "start one: hispec chat")
    return saved[0].stem


@dataclass(frozen=True)
class Listed:
    """A session of a list.

    Attributes:
        path: the file of the session, which has its name.
        saved_at: the time of the last save, in seconds since 1970.
        session: None where the file is damaged.
    """

    path: Path
    saved_at: float
    session: Session | None


def list_sessions(folder: Path | None = None) -> list[Listed]:
    """Return all sessions, the one that was saved last first."""
    listed = []
    for path in _saved(folder):
        session = None
        with suppress(UsageError):
            session = read_session(path)
        listed.append(Listed(path, path.stat().st_mtime, session))
    return listed


def similar_session(name: str, folder: Path | None = None) -> str | None:
    """Return the name of the session that may have been meant, None where no name is like the given one."""
    near = difflib.get_close_matches(name, [path.stem for path in _saved(folder)], n=1)
    return near[0] if near else None


def rename_session(name: str, new: str, folder: Path | None = None) -> None:
    """Give a session another name; an answer that a killed process left is taken over first.

    Raises:
        UsageError: there is no such session, one has the new name, or another process has one of them open.
        UnavailableError: the files cannot be used.
    """
    with _existing(name, folder) as store:
        store.read()
        with closing(SessionStore(new, folder)) as other:
            if other.exists():
                raise UsageError(f"there is a session {new} already", "choose another name, or delete that one first")
            with _usable(store.path, "check its folder"):
                store.path.rename(other.path)


def delete_session(name: str, folder: Path | None = None) -> None:
    """Remove a session; errors as `rename_session`."""
    with _existing(name, folder) as store:
        store.discard()


@contextmanager
def _existing(name: str, folder: Path | None) -> Iterator["SessionStore"]:
    path = (folder or sessions_folder()) / f"{name}.json"
    if not _NAME.fullmatch(name) or not path.exists():
        near = similar_session(name, folder)
        hint = f"did you mean {near}? " if near else ""
        raise UsageError(f"there is no session {name}", f"{hint}list them: hispec chat --list-sessions")
    with closing(SessionStore(name, folder)) as store:
        yield store


def _saved(folder: Path | None) -> list[Path]:
    """Return the files of all sessions, the latest first."""
    saved = [path for path in (folder or sessions_folder()).glob("*.json") if _NAME.fullmatch(path.stem)]
    return sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True)


@contextmanager
def _usable(path: Path, hint: str) -> Iterator[None]:
    """Raise what keeps a file from being used as an `UnavailableError`."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"{path} cannot be used: {error.strerror}", hint) from None


class SessionStore:
    """The files of one session, locked by this process until the session is closed or the process ends.

    Args:
        name: letters, digits, dots, dashes and underscores.
        folder: the folder of sessions; by default the user's own.

    Raises:
        UsageError: an impossible name, or a session that another process has open.
        UnavailableError: the files cannot be used.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a session", "use letters, digits, dots, dashes and underscores, 100 at most"
            )
        self.name = name
        self.folder = folder or sessions_folder()
        self.path = self.folder / f"{name}.json"
        self._journal_path = self.folder / f"{name}.journal"
        self.recovered: Turn | None = None
        """The turn that a process before this one did not come to save."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = hold(
                self._journal_path,
                UsageError(
                    f"the session {name} is open in another process",
                    "leave it there first, or choose another name with --session",
                ),
            )
            descriptor = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            # Without a buffer: what could not be written would be written again at the next chance.
            self._journal = os.fdopen(descriptor, "r+b", buffering=0)
        except OSError as error:
            raise UnavailableError(
                f"the session {self.path} cannot be used: {error.strerror}",
                "check its folder, or pass --no-history without --session",
            ) from None

    def read(self) -> Session | None:
        """Return the session as it was left, with the committed tokens of a killed process; None for a new one.

        Raises:
            UsageError: a damaged file.
        """
        if not self.exists():
            return None
        session = read_session(self.path)
        self._journal.seek(0)
        header, *lines = _whole_lines(self._journal.read()) or [{}]
        if header.get("answer") != session.answers + 1:
            return session
        try:
            turn = Turn(
                str(header["prompt"]),
                "".join(str(line["text"]) for line in lines),
                tuple(int(id_) for line in lines for id_ in line["token_ids"]),
                "interrupted",
            )
            before = session.turns[:-1] if header["replaces"] else session.turns
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{self._journal_path} is damaged", "remove it to go on without the answer that broke off"
            ) from None
        if turn.token_ids:
            session = session.model_copy(update={"turns": (*before, turn), "answers": session.answers + 1})
            self.save(session)
            self.recovered = turn
        return session

    def exists(self) -> bool:
        """Return whether it has ever been saved."""
        with _usable(self.path, "check its folder"):
            return self.path.exists()

    def save(self, session: Session) -> None:
        """Save after an answer or a change; errors as `write_session`."""
        write_session(self.path, session)
        self._empty()

    def begin(self, session: Session, prompt: str, replaces: bool) -> None:
        """Note that an answer begins.

        Args:
            session: the session before the turn.
            prompt: the prompt to be answered.
            replaces: whether the answer will take the place of the last turn's.
        """
        self.save(session)
        self._write({"answer": session.answers + 1, "prompt": prompt, "replaces": replaces})

    def note(self, token_ids: Sequence[int], text: str) -> None:
        """Write the committed text of the answer. The operating system has it when this returns, so a crash loses none
        of it.
        """
        self._write({"token_ids": list(token_ids), "text": text})

    def set_aside(self, session: Session) -> str:
        """Save a session that is about to be replaced under a name of its own; returns the name."""
        names = (f"{self.name[:90]}-{number}" for number in count(1))
        name = next(name for name in names if not (self.folder / f"{name}.json").exists())
        write_session(self.folder / f"{name}.json", session)
        return name

    def discard(self) -> None:
        """Remove a session in which nothing was said."""
        with _usable(self.path, "check its folder"):
            self.path.unlink(missing_ok=True)
        self._empty()

    def close(self) -> None:
        """Let others have the session."""
        if not self._journal.closed:
            with suppress(OSError):  # an empty journal that stays does no harm
                if self._journal.seek(0, os.SEEK_END) == 0:
                    self._journal_path.unlink(missing_ok=True)
            self._journal.close()
            self._lock.release()

    def _write(self, record: dict[str, Any]) -> None:
        with _usable(self._journal_path, "make room"):
            self._journal.write(json.dumps(record).encode() + b"\n")

    def _empty(self) -> None:
        with _usable(self._journal_path, "check its folder"):
            self._journal.seek(0)
            self._journal.truncate()


def _whole_lines(data: bytes) -> list[dict[str, Any]]:
    """Return the records of a journal; the last line may have been cut off by the end of its process."""
    records = []
    for line in data.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records
