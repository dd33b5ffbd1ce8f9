"""Sessions on disk: complete or refused, locked by one process, and without loss of committed tokens."""

import json
import os
import resource

import pytest

from hispec.errors import UnavailableError, UsageError
from hispec.session import (
    Session,
    SessionStore,
    Turn,
    latest_session,
    list_sessions,
    read_session,
    rename_session,
    write_session,
)

TURN = Turn("Why?", "Because \x1b[31m\u202e é", (1, 2, 4), "eos")
OTHER = Turn("And?", "So", (5, 4), "length", seed=7)
SESSION = Session.new(model={"profile": "tiny"}, options={"temperature": 0.5}, system="Be brief.", turns=(TURN, OTHER))


@pytest.fixture
def store(tmp_path):
    opened = []

    def open_(name="talk"):
        for store in opened:
            store.close()
        opened.append(SessionStore(name, tmp_path / "sessions"))
        return opened[-1]

    yield open_
    opened[-1].close()


def test_what_is_saved_is_read_for_the_owner_alone(store):
    talk = store()
    assert talk.read() is None
    talk.save(SESSION)
    assert talk.path.stat().st_mode & 0o777 == 0o600 and talk.folder.stat().st_mode & 0o777 == 0o700
    assert store().read() == SESSION
    assert names(talk.folder) == ["talk.journal", "talk.json"]
    talk = store()
    talk.close()
    assert names(talk.folder) == ["talk.json"]


def names(folder):
    """The files of a folder, without the hidden locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("replaces", [False, True])
def test_a_journal_that_was_left_is_taken_over_once(store, replaces):
    talk = store()
    talk.begin(SESSION, "More?", replaces)
    talk.note([6], "Ye")
    talk.note([7, 8], "s")
    talk = store()
    before = SESSION.turns[: 1 if replaces else 2]
    turn = Turn("More?", "Yes", (6, 7, 8), "interrupted")
    assert talk.read().turns == (*before, turn) and talk.recovered == turn
    talk = store()
    assert talk.read().turns == (*before, turn) and talk.recovered is None


def test_what_was_saved_is_not_taken_over_again(store, monkeypatch):
    talk = store()
    talk.begin(SESSION, "More?", False)
    talk.note([6], "Yes")
    with monkeypatch.context() as patch:  # killed between the two steps of saving
        patch.setattr(SessionStore, "_empty", lambda _: None)
        talk.save(SESSION.model_copy(update={"answers": 1, "turns": (*SESSION.turns, OTHER)}))
    assert store().read().turns == (*SESSION.turns, OTHER)


@pytest.mark.parametrize("cut", range(0, 70, 3))
def test_a_journal_cut_anywhere_gives_its_whole_lines(store, cut):
    talk = store()
    talk.begin(SESSION, "More?", False)
    header = talk._journal_path.stat().st_size
    for number in range(3):
        talk.note([number], "word ")
    data = talk._journal_path.read_bytes()[: header + cut]
    talk._journal_path.write_bytes(data)
    turns = store().read().turns[2:]
    assert [turn.token_ids for turn in turns] == (
        [tuple(range(data.count(b"\n") - 1))] if data.count(b"\n") > 1 else []
    )


def test_two_processes_cannot_have_one_session(store):
    talk = store()
    with pytest.raises(UsageError, match="open in another process"):
        SessionStore("talk", talk.folder)
    SessionStore("other", talk.folder).close()
    talk.close()
    SessionStore("talk", talk.folder).close()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "x\x1b[31m", "é", "a" * 101])
def test_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a session"):
        SessionStore(name, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("session/1", "session/2"),
        lambda text: text.replace('"answer"', '"answers"'),
        lambda text: text.replace('"eos"', '"because"'),
        lambda text: text.replace('"system"', '"sistem"'),
        lambda text: "\xff" + text,
    ],
)
def test_a_damaged_file_is_refused_with_a_hint_and_stays(store, damage):
    talk = store()
    talk.save(SESSION)
    damaged = damage(talk.path.read_text(encoding="utf-8"))
    talk.path.write_text(damaged, encoding="latin-1" if damaged[:1] == "\xff" else "utf-8", errors="replace")
    kept = talk.path.read_bytes()
    with pytest.raises(UsageError, match="not a complete saved conversation") as error:
        store().read()
    assert "start again" in error.value.hint and talk.path.read_bytes() == kept


def test_a_disk_that_is_full_keeps_what_was_there(store, monkeypatch):
    talk = store()
    talk.save(SESSION)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UnavailableError, match="No space left"):
            talk.save(Session.new())
    assert talk.read() == SESSION
    assert names(talk.folder) == ["talk.journal", "talk.json"]


def test_no_failure_to_write_is_anything_but_unavailable(store, monkeypatch):
    talk = store()
    talk.begin(SESSION, "More?", False)

    def refuse(*_, **__):
        raise PermissionError(30, "Read-only file system")

    for name, act in (
        ("exists", talk.exists),
        ("unlink", talk.discard),
        ("rename", lambda: rename_session("talk", "other", talk.folder)),
    ):
        with monkeypatch.context() as patch, pytest.raises((UnavailableError, UsageError)) as error:
            patch.setattr(f"pathlib.Path.{name}", refuse)
            if name == "rename":
                talk.close()
            act()
        assert "Read-only file system" in error.value.message
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", refuse)
        store("other").close()


def test_a_note_that_did_not_fit_is_not_written_later(store):
    talk = store()
    talk.begin(SESSION, "More?", False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (talk._journal_path.stat().st_size, resource.RLIM_INFINITY))
    try:
        with pytest.raises(UnavailableError, match="cannot be used"):
            talk.note([6], "Ye")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        talk.note([7], "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert store().read().turns[-1].token_ids == (7,)


def test_an_answer_that_was_left_is_renamed_too(store):
    talk = store()
    talk.begin(SESSION, "More?", False)
    talk.note([6], "Yes")
    talk.close()
    rename_session("talk", "other", talk.folder)
    assert [one.path.stem for one in list_sessions(talk.folder)] == ["other"]
    assert store("other").read().turns[-1] == Turn("More?", "Yes", (6,), "interrupted")


def test_the_latest_is_the_one_saved_last(store, tmp_path):
    folder = tmp_path / "sessions"
    with pytest.raises(UsageError, match="no earlier session"):
        latest_session(folder)
    for at, name in enumerate(("b", "a", "c")):
        store(name).save(SESSION)
        os.utime(folder / f"{name}.json", (at % 2, at % 2))
    assert latest_session(folder) == "a"


def test_an_earlier_conversation_is_set_aside(store):
    talk = store()
    assert [talk.set_aside(session) for session in (SESSION, Session.new())] == ["talk-1", "talk-2"]
    assert store("talk-1").read() == SESSION


def test_saving_and_reading_a_file(tmp_path):
    write_session(tmp_path / "talk.json", SESSION)
    assert read_session(tmp_path / "talk.json") == SESSION
    assert json.loads((tmp_path / "talk.json").read_text())["turns"][0]["answer"] == TURN.answer
    with pytest.raises(UsageError, match="cannot be read"):
        read_session(tmp_path / "none.json")
    with pytest.raises(UnavailableError, match="cannot be written"):
        write_session(tmp_path / "none" / "talk.json", SESSION)
