"""The Typer app, and the only place where errors become exit codes. Imports no torch: commands do, once they run."""

import os
import sys
import traceback
from time import sleep
from typing import Annotated

import typer
from typer.completion import get_completion_inspect_parameters, install_callback, show_callback

from hispec.errors import HispecError, UnavailableError, is_lost_peer, is_out_of_memory
from hispec.launched import is_connected, is_first_here
from hispec_cli.commands import doctor, fit_exits, generate, profile, pull, serve
from hispec_cli.commands.bench import command as bench
from hispec_cli.commands.calibrate import command as calibrate
from hispec_cli.commands.chat import command as chat
from hispec_cli.completion import Shell, with_shell
from hispec_cli.exit_codes import BUG, INTERRUPTED, USAGE
from hispec_cli.help import Command, Group, examples
from hispec_cli.ui.console import report_error, say
from hispec_cli.ui.output import ReaderLeft, write

NAME = "hispec"

SILENT_SECONDS = 5.0
"""The time that a process waits for another one to report what both have met."""

app = typer.Typer(
    name=NAME,
    cls=Group,
    help="Hierarchical speculative decoding: faster generation, token for token the same as the target model alone.",
    epilog=examples(
        'hispec generate "Anna has 3 apples. Ben has 4 times as many. How many apples do they have together?"'
    ),
    no_args_is_help=True,
    add_completion=False,  # its own options take no shell
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", cls=Command, epilog=generate.EXAMPLES)(generate.generate)
app.command("chat", cls=Command, epilog=chat.EXAMPLES)(chat.chat)
app.command("serve", cls=Command, epilog=serve.EXAMPLES)(serve.serve)
app.command("pull", cls=Command, epilog=pull.EXAMPLES)(pull.pull)
app.add_typer(bench.app, name="bench")
app.command("calibrate", cls=Command, epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.add_typer(profile.app, name="profile")
app.command("doctor", cls=Command, epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("fit-exits", cls=Command, epilog=fit_exits.EXAMPLES)(fit_exits.fit_exits)


def _show_version(asked: bool) -> None:
    if asked:
        from hispec import __version__

        write(f"hispec {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    show_completion: Annotated[
        Shell | None,
        typer.Option(
            callback=show_callback,
            is_eager=True,
            show_default="yours, as SHELL says",
            help="Print the completion script for a shell and exit.",
        ),
    ] = None,
    install_completion: Annotated[
        Shell | None,
        typer.Option(
            callback=install_callback,
            is_eager=True,
            show_default="yours, as SHELL says",
            help="Install shell completion of commands, options, profiles, sessions and datasets.",
        ),
    ] = None,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code: 0 done, 1 a bug, 2 usage, 3 a gate, 4 outputs differ, 5 environment, 130 interrupted.
    """
    debug = "--debug" in arguments or bool(os.environ.get("HISPEC_DEBUG"))
    try:
        if f"_{NAME.upper()}_COMPLETE" in os.environ:
            get_completion_inspect_parameters()  # registers the shells that the library can answer
        code = app(with_shell(arguments), prog_name=NAME, standalone_mode=False) or 0
    except ReaderLeft:
        return 0
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        if context is not None and type(error).__name__ == "NoArgsIsHelpError":  # Typer does not export it
            say(context.get_help(), "none")
            return USAGE
        command = "hispec" if context is None else context.command_path
        message = error.format_message().rstrip(".").replace("Value error, ", "")  # the validator's own prefix
        _report(message, f"see: {command} --help")
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        message, hint, code = _explained(error)
        _report(message, hint, own=is_connected() and code != USAGE and not is_lost_peer(error))
        if debug:
            traceback.print_exc()
        return code
    if code == INTERRUPTED and is_first_here():
        report_error("interrupted", None)
    return int(code)


def _report(message: str, hint: str, *, own: bool = False) -> None:
    """Report an error; of processes that were started together, the first on this machine does, unless it is another's own.

    The others wait a while to be ended, since their end would end the first one before it has spoken.
    """
    if is_first_here():
        report_error(message, hint)
    elif own:
        sys.stderr = sys.__stderr__
        report_error(f"rank {os.environ['RANK']}: {message}", hint)
    else:
        sleep(SILENT_SECONDS)


def _explained(error: Exception) -> tuple[str, str, int]:
    """Return the message, the hint, and the exit code."""
    if isinstance(error, HispecError):
        return error.message, error.hint, error.exit_code
    if is_out_of_memory(error):
        hint = "choose a smaller model or dtype, or see: hispec doctor"
        return f"the memory ran out: {error or 'of this machine'}", hint, UnavailableError.exit_code
    if is_lost_peer(error):
        return (
            "another process of this run has ended",
            "see its own message, or that of torchrun",
            UnavailableError.exit_code,
        )
    hint = "please report it with the output of the same command and --debug"
    return f"this is a bug in hispec: {type(error).__name__}: {error}", hint, BUG
