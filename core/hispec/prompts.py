"""Answers prompts from a file one after the other. No answer is lost or computed twice."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hispec.errors import HispecError, LosslessnessError, UsageError
from hispec.grammar import Grammar
from hispec.journal import Journal
from hispec.utf8 import check_utf8

if TYPE_CHECKING:
    from hispec.api import Engine

SUFFIX = ".journal"
"""The ending of the file next to the results that keeps answers while a run is under way."""

HINT = 'write one object a line: {"prompt": "..."}, with "id" and "system" if need be'


@dataclass(frozen=True)
class PromptLine:
    """One line of the file.

    Attributes:
        number: the line number, from 1.
        id: the user's own, any JSON value; None where there is none.
        prompt: the prompt to answer.
        system: a system message.
        error: the reason why the prompt cannot be answered, if it cannot.
        key: identifies the line; equal lines have equal keys, except for a count.
    """

    number: int
    id: Any = None
    prompt: str = ""
    system: str | None = None
    error: UsageError | None = None
    key: str = ""

    def to_record(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the object of a result: the line's number, its id if it has one, and the fields of the outcome."""
        return {"line": self.number, **({} if self.id is None else {"id": self.id}), **result}


@dataclass(frozen=True)
class StreamArguments:
    """The arguments of `hispec.api.Engine.stream` for every prompt.

    Attributes:
        system: a system message for lines without one of their own.
        verify: compare every answer with the target's own.
    """

    system: str | None = None
    raw: bool = False
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None
    verify: bool = False

    def to_record(self) -> dict[str, Any]:
        """Return the values that answers depend on, as JSON."""
        grammar = None if self.grammar is None else [self.grammar.kind, self.grammar.source]
        return {**vars(self), "stop": list(self.stop), "grammar": grammar}


def read_lines(path: Path) -> list[PromptLine]:
    """Read a file of prompts, one JSON object a line; blank lines are skipped.

    A line that cannot be answered has its error, and the others are read all the same.

    Raises:
        UsageError: a file that cannot be read, or without any prompt.
    """
    try:
        data = path.expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", "check the path after --prompts") from None
    lines, seen = [], Counter[str]()
    for number, text in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text.strip():
            digest = sha256(text.strip()).hexdigest()[:32]
            seen[digest] += 1
            lines.append(_read_line(number, text, f"{digest}-{seen[digest]}"))
    if not lines:
        raise UsageError(f"{path} has no prompts", HINT)
    return lines


def _read_line(number: int, text: bytes, key: str) -> PromptLine:
    own = None
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise UsageError("it is not a JSON object", HINT)
        own = record.get("id")
        prompt, system = record.get("prompt", record.get("question")), record.get("system")
        if prompt is None:
            raise UsageError("it has no prompt", HINT)
        if not isinstance(prompt, str) or not isinstance(system, str | None):
            raise UsageError(f"its {'system' if isinstance(prompt, str) else 'prompt'} is not text", HINT)
        if not prompt.strip():
            raise UsageError("its prompt is empty", HINT)
        check_utf8(prompt, "the prompt")
        check_utf8(system or "", "the system message")
    except UsageError as error:
        return PromptLine(number, own, error=error)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else error
        return PromptLine(number, error=UsageError(f"it is not JSON: {what}", HINT))
    return PromptLine(number, own, prompt, system, key=key)


def answer_lines(
    engine: "Engine", lines: Sequence[PromptLine], asking: StreamArguments, journal: Journal
) -> Iterator[tuple[PromptLine, dict[str, Any]]]:
    """Answer lines in order; those that are in the journal are not answered again.

    Args:
        engine: the engine that answers.
        lines: the lines of the file.
        asking: the arguments for every prompt.
        journal: a journal of the same configuration. An answer is written to it before it is yielded; errors are not,
            so that a resumed run tries these lines again.

    Yields:
        Each line and its result, which has `error` if the line could not be answered.

    Raises:
        KeyboardInterrupt: the engine was interrupted; the answer under way is lost, those before it are not.
    """
    from hispec.decoding.state import PrefixCache

    known = {record["key"]: record["result"] for record in journal.records if {"key", "result"} <= record.keys()}
    prefix = PrefixCache()
    for line in lines:
        if line.key in known:
            yield line, line.to_record(known[line.key])
            continue
        try:
            if line.error is not None:
                raise line.error
            result = _answer(engine, line, asking, prefix)
        except HispecError as error:
            yield line, line.to_record({"error": {"message": error.message, "hint": error.hint}})
        else:
            journal.add({"key": line.key, "result": result})
            yield line, line.to_record(result)


def _answer(engine: "Engine", line: PromptLine, asking: StreamArguments, prefix: Any) -> dict[str, Any]:
    *_, last = engine.stream(
        line.prompt,
        system=asking.system if line.system is None else line.system,
        raw=asking.raw,
        stop=asking.stop,
        grammar=asking.grammar,
        logprobs=asking.logprobs,
        prefix=prefix,
    )
    generation = last.result  # type: ignore[union-attr]
    if generation.finish_reason == "interrupted":
        raise KeyboardInterrupt
    if asking.verify:
        try:
            engine.check_lossless(generation)
        except LosslessnessError:
            generation.lossless = False  # reported with the result, and at the end
    return dict(generation.to_record())
