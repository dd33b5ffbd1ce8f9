"""The option `--prompts` of `hispec generate`: many prompts from a file, with their results in a file, resumable."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from hispec.counts import counted
from hispec.errors import LosslessnessError, UsageError
from hispec.files import write_whole
from hispec.journal import check_journal
from hispec.launched import started_by_torchrun
from hispec.prompts import SUFFIX, PromptLine, StreamArguments, answer_lines, read_lines
from hispec_cli.checks import Choice
from hispec_cli.engine import load_engine
from hispec_cli.exit_codes import INTERRUPTED
from hispec_cli.options import output_option
from hispec_cli.ui.console import say
from hispec_cli.ui.prompts_progress import PromptsProgress
from hispec_cli.ui.signals import ctrl_c


@dataclass(frozen=True)
class PromptsOptions:
    """Options for many prompts."""

    prompts: Annotated[
        Path | None,
        output_option(
            metavar="FILE",
            help="Answer every line of a JSONL file; a line has the key prompt, and optionally id and system.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        output_option(
            "-o", "--output", metavar="FILE", help="With --prompts, write the answers to this file, as JSONL."
        ),
    ] = None
    resume: Annotated[bool, output_option("--resume", help="With --prompts, continue where an earlier run ended.")] = (
        False
    )

    def check(self, excluded: dict[str, bool]) -> None:
        """Refuse options that go with many prompts alone, or not with them.

        Args:
            excluded: options that do not go with --prompts, and whether they were given.

        Raises:
            UsageError: naming one.
        """
        if self.prompts is None:
            if self.output is not None or self.resume:
                option = "--output" if self.output is not None else "--resume"
                raise UsageError(f"{option} needs --prompts", "add --prompts FILE, or leave it out")
            return
        if given := [option for option, is_given in excluded.items() if is_given]:
            raise UsageError(f"--prompts and {given[0]} exclude each other", "leave out one of them")
        if self.output is None:
            raise UsageError("--prompts needs a file for the answers", "add -o FILE.jsonl")
        if started_by_torchrun() > 1:
            raise UsageError("--prompts is for one process", "start hispec without torchrun")
        from hispec_cli.ui.report.files import check_output

        check_output(self.output, (".jsonl",))
        check_journal(_journal_of(self.output), resume=self.resume)


def answer_prompts(options: PromptsOptions, choice: Choice, asking: StreamArguments) -> None:
    """Answer a file of prompts.

    Args:
        options: checked.
        choice: the model, and how to decode.
        asking: the arguments for every prompt.

    Raises:
        UsageError: a file that cannot be read; in the end, prompts that could not be answered.
        LosslessnessError: --verify found answers that differ; it is raised at the end.
        typer.Exit: it was interrupted.
    """
    assert options.prompts is not None and options.output is not None
    lines = read_lines(options.prompts)
    engine = load_engine(choice, max((line.prompt for line in lines), key=len))
    from hispec.configuration import configuration_of
    from hispec.journal import Journal

    config = configuration_of(engine) | {"asking": asking.to_record()}
    records: list[dict[str, Any]] = []
    failed: list[PromptLine] = []
    interrupted = False
    with Journal(_journal_of(options.output), config, resume=options.resume) as journal:
        if journal.set_aside is not None:
            say(f"an earlier run's answers are now in {journal.set_aside}")
        keys = {line.key for line in lines}
        progress = PromptsProgress(len(lines), sum(record.get("key") in keys for record in journal.records))
        asked = Event()

        def interrupt() -> None:
            asked.set()
            engine.interrupt()

        try:
            with ctrl_c(interrupt), progress:
                for line, record in answer_lines(engine, lines, asking, journal):
                    records.append(record)
                    failed += [line] if "error" in record else []
                    progress.see(record)
                    # Between two answers the engine had none to end.
                    if asked.is_set() and len(records) < len(lines):
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            interrupted = True
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(options.output, text.encode("utf-8", "surrogatepass"), "choose another place with -o, and --resume")
    _conclude(options.output, records, failed, total=len(lines), interrupted=interrupted)


def _conclude(
    output: Path, records: list[dict[str, Any]], failed: list[PromptLine], *, total: int, interrupted: bool
) -> None:
    """Print a summary and raise the error that sets the exit code; the journal stays if lines are left."""
    answered = len(records) - len(failed)
    say(f"{counted(answered, 'answer')} of {counted(total, 'prompt')} in {output}")
    if cut := sum(record.get("complete") is False for record in records):
        say(f"cut off before they matched the grammar: {counted(cut, 'answer')}; raise --max-new-tokens", "yellow")
    if interrupted:
        say("interrupted; continue with --resume")
        raise typer.Exit(INTERRUPTED)
    if failed:
        first = next(record["error"]["message"] for record in records if "error" in record)
        raise UsageError(
            f"{counted(len(failed), 'prompt')} not answered; the first, line {failed[0].number}: {first}",
            f"{output} has every error; mend these lines, and continue with --resume",
        )
    with suppress(OSError):
        _journal_of(output).unlink()
    if differing := [record["line"] for record in records if record.get("verified") is False]:
        raise LosslessnessError(
            f"{counted(len(differing), 'answer')} not the target's own; the first is line {differing[0]}",
            "look closer: hispec generate with that prompt and --verify",
        )


def _journal_of(output: Path) -> Path:
    return output.with_name(output.name + SUFFIX)
