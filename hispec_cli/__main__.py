"""Entry point: `hispec` and `python -m hispec_cli`."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGINT, _end_at_once)
    from hispec_cli.app import run

    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: a Ctrl-C during shut-down has nothing to stop
    sys.exit(code)


def _end_at_once(_signal: int, _frame: FrameType | None) -> None:
    """Ctrl-C outside of decoding, which has a gentler handler: nothing is lost by leaving.

    Raising KeyboardInterrupt instead would surface as whatever error the import under way makes of it.
    """
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"error: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
