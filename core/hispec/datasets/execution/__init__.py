"""Runs a program that a model wrote, in a process of its own with limits, and says whether it ran to its end.

What it is held to: wall-clock and processor time, memory, no output kept, no file written, no further process, an
empty working folder, an empty environment, and no network (a network namespace of its own where the system grants one;
everywhere Python itself refuses sockets, writing, starting programs and foreign code through an audit hook).

What that does not protect from: the program can read every file that other users of the machine may read (its own
user's files too, unless this runs as root), it runs on the same kernel, and the audit hook stops accidents, not attacks:
code made to break out of a Python process may succeed. A program that hunts for the secret which marks its end can also
claim a pass. Run models that you do not trust in a container or a virtual machine.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from hispec.errors import UnavailableError

WARNING = (
    "runs code that a model wrote, with limits on time, memory, files, processes and network; they stop accidents, "
    "not attacks: the code can read your files, so use a container for models that you do not trust"
)
"""A warning for the user who allows it, in one line."""

TIMEOUT_S = 5.0
MEMORY_BYTES = 1 << 30
READY = b"ready\n"


def check_program(program: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Run a Python program that may use the standard library.

    Args:
        program: source code.
        timeout_s: the most seconds it may take, by the clock and on the processor.
        memory_bytes: the most address space it may take, the interpreter's included.

    Returns:
        Whether it ran to its last line: an error, an exit before that line and a limit all count as failures.

    Raises:
        UnavailableError: this machine cannot hold a program to these limits.
    """
    if sys.platform != "linux":
        raise UnavailableError(
            "generated code can only be run within limits on Linux", "score it there, or leave it out"
        )
    nonce = secrets.token_hex(16).encode()
    reader, writer = os.pipe()
    limits = {"report": writer, "nonce": nonce.decode(), "seconds": timeout_s, "bytes": memory_bytes}
    with tempfile.TemporaryDirectory(prefix="hispec-") as folder, os.fdopen(reader, "rb", buffering=0) as report:
        Path(folder).chmod(0o755)  # the program may run as another user
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(Path(__file__).parent / "sandbox.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            source = program.encode("utf-8", "backslashreplace")
            with suppress(subprocess.TimeoutExpired):
                process.communicate(json.dumps(limits).encode() + b"\n" + source, timeout=timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(reader, False)
        said = report.read(4096) or b""
    if said.startswith(b"refused"):
        reason = said.decode(errors="replace").partition(": ")[2].strip()
        raise UnavailableError(
            f"this machine cannot hold generated code to its limits: {reason}",
            "run as an ordinary user with a Python that every user can read, or leave the code unscored",
        )
    return said == READY + nonce
