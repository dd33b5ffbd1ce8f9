"""`hispec generate`: answer one prompt."""

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hispec.counts import counted
from hispec.errors import LosslessnessError, OutOfMemoryError, UnavailableError, UsageError, is_out_of_memory
from hispec.events import Finished
from hispec.launched import launched, started_by_torchrun
from hispec.prompts import StreamArguments
from hispec_cli.checks import check_message, choose, choose_grammar, chosen_value
from hispec_cli.engine import load_engine
from hispec_cli.exit_codes import INTERRUPTED
from hispec_cli.help import examples
from hispec_cli.options import (
    AnswerOptions,
    CommonOptions,
    DecodingOptions,
    Format,
    GrammarOptions,
    ModelOptions,
    ViewOptions,
    grouped,
    message_option,
    output_option,
)
from hispec_cli.prompts import PromptsOptions, answer_prompts
from hispec_cli.ui.console import say
from hispec_cli.ui.signals import ctrl_c
from hispec_cli.ui.trace import TraceFile
from hispec_cli.ui.typeahead import typeahead_kept
from hispec_cli.ui.views import check_view, choose_view, report, warn_if_cut_off

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hispec.answer import Generation
    from hispec.api import Engine

EXAMPLES = examples(
    'hispec generate "Ben has 12 cards. Mei gives Ben 5 more. How many cards does Ben have?" --verify',
    "hispec generate @question.txt --profile layerskip-llama3-8b --format json",
    "hispec generate --prompts questions.jsonl -o answers.jsonl",
)


@grouped
def generate(
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT|-|@FILE",
            help="The prompt: text, - for standard input, or @FILE for a file. Piped input is put before it.",
        ),
    ] = None,
    model: ModelOptions,
    decoding: AnswerOptions,
    stop: Annotated[
        list[str] | None, message_option(metavar="TEXT", help="End the answer before this text. Repeatable.")
    ] = None,
    system: Annotated[str | None, message_option(metavar="TEXT", help="System message.")] = None,
    raw: Annotated[bool, message_option("--raw", help="Do not apply the chat template.")] = False,
    structure: GrammarOptions,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Decode again with the target alone and compare token ids; exit with code 4 if they differ.",
        ),
    ] = False,
    trace: Annotated[
        Path | None, output_option(metavar="FILE", help="Write every event to this file as JSON lines.")
    ] = None,
    logprobs: Annotated[
        int | None,
        output_option(
            min=0,
            metavar="K",
            help="In JSON, add log-probabilities of each token and of the K most probable, before and after sampling "
            "options.",
        ),
    ] = None,
    view: ViewOptions,
    many: PromptsOptions,
    replay: Annotated[
        Path | None,
        output_option(metavar="FILE", help="Replay a file that --trace wrote, without a model or a prompt."),
    ] = None,
    speed: Annotated[
        float | None,
        output_option(min=0, metavar="X", help="Speed of --replay: 1 is the recorded speed, 0 does not wait."),
    ] = None,
    common: CommonOptions,
) -> None:
    """Answer one prompt. The answer is token for token that of the target model alone."""
    if replay is not None:
        if prompt is not None or verify or trace is not None or many.prompts is not None:
            raise UsageError(
                "--replay cannot be combined with a prompt, --prompts, --verify or --trace",
                "leave out one or the other",
            )
        play(replay, 1.0 if speed is None else speed, view)
        return
    if speed is not None:
        raise UsageError("--speed applies to --replay only", "add --replay FILE, or leave it out")
    check_view(view)
    check_message(system, stop, raw=raw, template=model.chat_template)
    many.check(
        {
            "a prompt": prompt is not None,
            "--trace": trace is not None,
            "--live": bool(view.live),
            f"--format {view.format}": view.format is not Format.auto,
        }
    )
    if logprobs is not None and not view.format.is_json and trace is None and many.prompts is None:
        raise UsageError("--logprobs needs JSON output", "add --format json, --format jsonl or --trace FILE")
    grammar = choose_grammar(structure)
    if many.prompts is not None:
        asking = StreamArguments(system, raw, tuple(stop or ()), grammar, logprobs, verify)
        answer_prompts(many, choose(model, decoding), asking)
        return
    first = speaks(decoding, debug=common.debug)
    text = read_prompt(prompt) if first else ""
    choice = choose(model, decoding, shared=True)

    def check_prompt(tokenizer: "PreTrainedTokenizerBase", context: int) -> None:
        from hispec.room import check_room
        from hispec.text import encode_prompt

        if text:  # the first of several ranks alone has it
            template = choice.profile.chat_template
            ids = encode_prompt(tokenizer, text, system=system, raw=raw, template=template, context=context)
            check_room(ids, context, choice.profile.name)

    with TraceFile(trace if first else None) as traced:
        engine = load_engine(choice, text or None, check_prompt)
        if engine.ranks is not None:
            text = engine.ranks.share(text)
        shown = choose_view(view, engine.new_stats())
        draft_text = shown.draft_text or trace is not None
        problem: Exception | None = None
        with ctrl_c(engine.interrupt), typeahead_kept(shown.stream), shown:
            try:
                for event in engine.stream(
                    text,
                    system=system,
                    raw=raw,
                    stop=stop or (),
                    draft_text=draft_text,
                    grammar=grammar,
                    logprobs=logprobs,
                ):
                    shown.see(event)
                    if isinstance(event, Finished):
                        generation = event.result
                        problem = check(engine, generation) if verify else None
                    traced.see(event)
            except OutOfMemoryError as error:  # the answer up to there is shown first
                problem = problem or error
        shown.finish(generation)
    report(generation.stats)
    warn_if_cut_off(generation)
    if generation.lossless:
        say(f"verified: {counted(len(generation.token_ids), 'token id')}, identical to the target's own")
    if problem is not None:
        raise problem
    if generation.finish_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def play(path: Path, speed: float, options: ViewOptions) -> None:
    """Show a recorded answer."""
    from hispec_cli.ui.replay import read_trace

    recording = read_trace(path)
    view = choose_view(options, recording.stats, share=1)
    with ctrl_c():
        with typeahead_kept(view.stream), view:
            for event in recording.play(speed, view.sleep):
                view.see(event)
        view.finish(recording.result)
    report(recording.final)


def speaks(decoding: DecodingOptions, *, debug: bool) -> bool:
    """Return whether this process reads the prompt and answers; of tensor-parallel processes only the first does.

    The first process on each other machine still reports its errors: its weights or devices may be missing.
    """
    if started_by_torchrun() < 2:
        return True
    if not chosen_value("tensor_parallel", decoding):
        raise UsageError(
            "torchrun started several processes, each of which would write its own answer",
            "add --tensor-parallel to share the work, or start hispec without torchrun",
        )
    place = launched()
    if place.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (for the rest of the process)
        if place.local_rank and not debug:
            sys.stderr = sys.stdout
    return not place.rank


def read_prompt(argument: str | None) -> str:
    """Join the piped input and the argument, in this order.

    Raises:
        UsageError: no prompt, an unreadable file, bytes that are not UTF-8.
    """
    parts = []
    if argument == "-" or _is_piped(sys.stdin):
        parts.append(_decode(sys.stdin.buffer.read(), "standard input"))
    if argument is not None and argument.startswith("@"):
        try:
            parts.append(_decode(Path(argument[1:]).expanduser().read_bytes(), argument[1:]))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{argument[1:]} cannot be read: {reason}", "check the path after @") from None
    elif argument is not None and argument != "-":
        parts.append(argument)
    text = "\n".join(part for part in parts if part.strip())
    from hispec.utf8 import check_utf8

    check_utf8(text, "the prompt")
    if not text:
        message = "the prompt is empty" if parts else "there is no prompt"
        raise UsageError(message, 'pass one: hispec generate "...", or pipe it in')
    return text


def check(engine: "Engine", generation: "Generation") -> Exception | None:
    """Compare with the target alone and return the error, if any, to be reported after the answer."""
    try:
        engine.check_lossless(generation)
    except LosslessnessError as error:
        return error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return UnavailableError(
            "the memory ran out while verifying; the answer is not verified",
            "verify a shorter one, or see: hispec doctor",
        )
    except KeyboardInterrupt:
        generation.lossless = None
        return typer.Exit(INTERRUPTED)
    return None


def _is_piped(stream: object) -> bool:
    """Return whether there is input to read: a pipe, a file or a socket, but neither a terminal nor /dev/null."""
    try:
        mode = os.fstat(stream.fileno()).st_mode  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start})", "convert it first, for example with iconv"
        ) from None
