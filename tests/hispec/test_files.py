"""Files that are written whole, and by one process at a time."""

import os
import signal
import subprocess
import sys

import pytest

from hispec.errors import UnavailableError, UsageError
from hispec.files import hold, write_whole

HELD = UsageError("it is held", "wait")


def test_a_file_is_held_by_one_alone_whatever_it_is_called(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    lock = hold(tmp_path / "file", HELD)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="it is held"):
            hold(tmp_path / name, HELD)
    hold(tmp_path / "other", HELD).release()
    lock.release()
    hold(tmp_path / "link", HELD).release()


def test_a_process_that_is_killed_lets_go(tmp_path):
    code = f"""
import pathlib, time
from hispec.errors import UsageError
from hispec.files import hold
lock = hold(pathlib.Path({str(tmp_path / "file")!r}), UsageError("", ""))
print("held", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="it is held"):
            hold(tmp_path / "file", HELD)
        child.send_signal(signal.SIGKILL)
        child.wait()
        hold(tmp_path / "file", HELD).release()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "file", b"before", "make room")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="cannot be written: No space left"):
        write_whole(tmp_path / "file", b"after", "make room")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]
