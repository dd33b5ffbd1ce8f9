"""The inner side of `hispec.datasets.execution`: gives up what the program must not have, then runs it.

Started as a script of its own, without site-packages. Standard input holds one line of JSON (`report`, the descriptor
to report on; `nonce`, what to report at the program's end; `seconds`; `bytes`), then the program.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE = 4
NOBODY = 65534
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv")
REFUSED = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pty.", "syslog.", "fcntl.", "resource.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def leave_network() -> None:
    """Move into an empty network namespace, as root or else through a user namespace; without either, stay."""
    with suppress(OSError, AttributeError):
        unshare = ctypes.CDLL(None).unshare
        if unshare(CLONE_NEWNET) != 0:
            unshare(CLONE_NEWUSER | CLONE_NEWNET)


def drop_privileges() -> None:
    """Stop being root, whom neither the limit on processes nor the permissions of files would bind.

    Raises:
        OSError: the standard library would be out of reach.
    """
    if os.geteuid() != 0:
        return
    library = str(Path(os.__file__).parent)
    # Python may lie where only root can go, in /root for example; an open folder is a way in that stays.
    opened = f"/proc/self/fd/{os.open(library, os.O_RDONLY)}"
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # else /proc/self stays root's
    next(Path(opened).iterdir())
    for path in [sys.path, *(module.__path__ for module in sys.modules.values() if hasattr(module, "__path__"))]:
        path[:] = [entry.replace(library, opened) for entry in path]


def limit(seconds: float, memory: int) -> None:
    """Set hard limits, and see that the one on processes holds.

    Raises:
        OSError: a limit that does not.
    """
    whole = math.ceil(seconds)
    for kind, most in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))
    signal.alarm(whole + 1)  # for the case that nobody is left to watch the clock
    with suppress(BlockingIOError):
        if os.fork() == 0:
            os._exit(0)
        raise PermissionError("it could start any number of processes")


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse writing, sockets, programs and foreign code, as an audit hook."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if writes or (event.startswith(REFUSED) and event not in HARMLESS):
        raise PermissionError(f"{event} is not allowed here")


def main() -> None:
    """Read the orders, give everything up, run the program, report its end."""
    orders = json.loads(sys.stdin.buffer.readline())
    program = sys.stdin.buffer.read()
    try:
        leave_network()
        drop_privileges()
        limit(orders["seconds"], orders["bytes"])
    except (OSError, ValueError) as error:
        os.write(orders["report"], f"refused: {error}".encode())
        return
    sys.addaudithook(guard)
    os.write(orders["report"], b"ready\n")
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    os.write(orders["report"], orders["nonce"].encode())


if __name__ == "__main__":
    main()
