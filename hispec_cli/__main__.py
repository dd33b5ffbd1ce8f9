"""Entry point: `hispec` and `python -m hispec_cli`."""

import contextlib
import os
import signal
import sys
import warnings
from types import FrameType

SHOW_CURSOR = b"\r\x1b[K\x1b[?25h"
"""The codes that clean up after a progress bar on a terminal: they clear its line and show the cursor."""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which users say how threads wait for each other."""


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGINT, _end_at_once)
    if not any(name in os.environ for name in WAITING):
        # OpenMP reads it when torch is imported. Threads that spin while they wait take the processor from those that
        # they wait for wherever anything else runs (docs/performance.md).
        os.environ["OMP_WAIT_POLICY"] = "passive"
    for name in ("stdin", "stdout", "stderr"):  # closed by the caller (`2>&-`): write there what goes nowhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115, PTH123
    from hispec_cli.app import run
    from hispec_cli.ui.console import forget_impossible_size, show_warning
    from hispec_cli.ui.output import escape_what_cannot_be_encoded

    escape_what_cannot_be_encoded()
    forget_impossible_size()
    warnings.showwarning = show_warning
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: a Ctrl-C during shut-down has nothing to stop
    sys.exit(code)


def _end_at_once(_signal: int, _frame: FrameType | None) -> None:
    """End at once on Ctrl-C outside of decoding, which has a handler of its own. Nothing is lost.

    A KeyboardInterrupt would surface as an unrelated error of the import that it interrupts.
    """
    with contextlib.suppress(OSError):
        if os.isatty(2) and os.environ.get("TERM") != "dumb":
            os.write(2, SHOW_CURSOR)
        os.write(2, b"error: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
