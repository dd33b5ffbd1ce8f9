"""Entry point: `hispec` and `python -m hispec_cli`. Even Ctrl-C during start-up ends without a traceback."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from hispec_cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
