"""Chat templates: from messages to text, and from there to token ids."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hispec.errors import UsageError
from hispec.room import check_beginning
from hispec.utf8 import check_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Place = tuple[int, int, int]
"""A control token that a message spells out: the message's index, the token's first character and the one after its
last.
"""
ANOTHER = "mend it, or give another with --chat-template FILE"
NO_SYSTEM = "leave out --system, put its text into the prompt, or give another template with --chat-template FILE"


def read_template(path: Path) -> str:
    """Read a chat template from a file.

    Raises:
        UsageError: a file that is missing, empty, not UTF-8, or not a Jinja template.
    """
    try:
        template = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise UsageError(f"the chat template {path} cannot be read: {reason}", "give a file with a template") from None
    if not template.strip():
        raise UsageError(f"the chat template {path} is empty", "give a file with a template, or leave it out")
    check_syntax(template)
    return template


def check_syntax(template: str) -> None:
    """Refuse a chat template that cannot be parsed. Without a tokenizer it cannot be tried.

    Raises:
        UsageError: naming the line.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([[{"role": "user", "content": "Hello"}]], chat_template=template)
    except Exception as error:  # other errors may be due to missing special tokens
        if getattr(error, "lineno", None) is not None:  # a SyntaxError of Python, too: blocks nested too deeply
            raise UsageError(f"the chat template fails: {_reason(error)}", ANOTHER) from None


class ChatTemplate:
    """The chat template of a tokenizer, or one that replaces it.

    Only the template writes control tokens: one that is spelled out in a message is encoded as plain letters. In an
    answer of the model, tokens that decoding shows, such as `<think>`, are an exception: the model wrote them.

    Args:
        tokenizer: the target's.
        template: Jinja; None for the tokenizer's own.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, template
        source = str(template or tokenizer.chat_template)
        added = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        special = {token.content: id_ for id_, token in added.items() if token.special}
        self._control = special | {token.content: id_ for id_, token in added.items() if token.content in source}
        self._in_answers, self._elsewhere = _any_of(special), _any_of(self._control)

    def encode(self, messages: Sequence[Message], context: int | None = None) -> list[int]:
        """Return the ids of the messages and of the beginning of an answer.

        They are those of `apply_chat_template`, save for control tokens that messages spell out.

        Args:
            messages: each with a role and its content, in order.
            context: the number of positions of the model, to refuse what is far too long without tokenizing all of it.

        Raises:
            UsageError: a template that fails, or that leaves a system message out; a text that is far too long.
        """
        text = self._written(messages)
        if context is not None:
            check_beginning(self._tokenizer, text, context)
        starts = self._spelled(messages, text)
        # The template writes the special tokens itself.
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(starts))
        if not starts:
            return list(encoded["input_ids"])
        ids: list[int] = []
        for id_, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if id_ in self._control.values() and not starts.isdisjoint(range(start, end)):
                ids += self._letters(text[start:end], id_)
            else:
                ids.append(id_)
        return ids

    def _written(self, messages: Sequence[Message]) -> str:
        """Return the output of the template; raises the errors of `encode`."""
        system = messages[0]["role"] == "system"
        try:
            text = self._render(messages)
        except UsageError as error:
            if system:
                with suppress(UsageError):
                    self._render(messages[1:])
                    error.hint = NO_SYSTEM
            raise
        if system and self._ignores(messages, text):
            raise UsageError("the chat template has no place for a system message", NO_SYSTEM)
        check_utf8(text, "what the chat template writes")
        return text

    def _ignores(self, messages: Sequence[Message], text: str) -> bool:
        """Return whether the template's output does not depend on the first message."""
        first, *others = messages
        try:
            return self._render([{**first, "content": f"x{first['content']}"}, *others]) == text
        except UsageError:
            return False

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            written: Any = self._tokenizer.apply_chat_template(
                list(messages), chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise UsageError(f"the chat template fails: {_reason(error)}", f"{ANOTHER}, or pass --raw") from None
        return str(written)

    def _spelled(self, messages: Sequence[Message], text: str) -> set[int]:
        """Return the positions in the template's output of control tokens that messages spell out.

        The template has seen the messages as they are. Their tokens are found by rendering again with marks in the
        messages. The result counts only where it differs by nothing but the marks; where the template looks at a token
        itself, a mark next to the token may still leave the output the same.
        """
        places = [
            (index, *match.span())
            for index, message in enumerate(messages)
            for match in (self._in_answers if message["role"] == "assistant" else self._elsewhere).finditer(
                message["content"]
            )
        ]
        if not places:
            return set()
        found = self._locate(messages, places, text)
        if found is not None:
            return found
        return set().union(*(self._locate(messages, [place], text) or () for place in places))

    def _locate(self, messages: Sequence[Message], places: Sequence[Place], text: str) -> set[int] | None:
        """Return the positions in the text of tokens at some places; None where the template depends on one of them."""
        seen = {*text, *(character for message in messages for character in message["content"])}
        mark = next(sign for sign in map(chr, range(0xFDD0, 0x110000)) if sign not in seen)

        def marked(disguise: Callable[[str], str]) -> str:
            contents = [message["content"] for message in messages]
            for index, start, end in reversed(places):
                content = contents[index]
                contents[index] = content[:start] + disguise(content[start:end]) + content[end:]
            try:
                return self._render([{**m, "content": c} for m, c in zip(messages, contents, strict=True)])
            except UsageError:
                return ""

        written = marked(lambda token: mark + token[1:])
        if len(written) == len(text) and all(a in (b, mark) for a, b in zip(written, text, strict=True)):
            return {at for at, character in enumerate(written) if character == mark}
        before, after = marked(lambda token: mark + token), marked(lambda token: token + mark)
        found = []
        if before.replace(mark, "") == text:
            found.append({at for at in _positions(before, mark) if self._elsewhere.match(text, at)})
        if after.replace(mark, "") == text:
            ends = set(_positions(after, mark))
            found.append({match.start() for match in self._elsewhere.finditer(text) if match.end() in ends})
        return set.intersection(*found) if found else None

    def _letters(self, text: str, id_: int) -> list[int]:
        """Return the ids of a control token's letters."""
        tokenizer = self._tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if id_ not in ids:
            return ids
        # The tokenizer does not split an added token, even one that is not special: only its two halves are plain text.
        return [id_ for part in (text[:1], text[1:]) for id_ in tokenizer(part, add_special_tokens=False)["input_ids"]]


def _any_of(tokens: dict[str, int]) -> re.Pattern[str]:
    """Return a pattern of any of the tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _positions(text: str, mark: str) -> list[int]:
    """Return the positions of marks in the text without them."""
    return [match.start() - number for number, match in enumerate(re.finditer(re.escape(mark), text))]


def _reason(error: Exception) -> str:
    """Return why a template failed: the message that it raised itself, otherwise the kind of the error too."""
    from jinja2 import TemplateError

    line = getattr(error, "lineno", None)
    said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}".rstrip(": ")
    return f"line {line}: {getattr(error, 'message', None) or said}" if line is not None else said
