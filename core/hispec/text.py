"""Between text and token ids: chat templates on the way in, incremental decoding and stop strings on the way out."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.events import Committed, Drafted, Event, Judged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_utf8(text: str, name: str) -> None:
    """Refuse text with half a surrogate pair, which is how bytes that are no UTF-8 arrive from a command line.

    Raises:
        UsageError: calling the text by `name`.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{name} is not UTF-8 text", "pass it as UTF-8")


def check_stop(stop: Sequence[str]) -> None:
    """Refuse texts that cannot end an answer.

    Raises:
        UsageError: an empty one, or one that is not UTF-8.
    """
    if not all(stop):
        raise UsageError("a stop text is empty", "pass --stop a text of at least one character")
    for text in stop:
        check_utf8(text, "a stop text")


def check_room(ids: Sequence[int], context: int, name: str, *, conversation: bool = False) -> int:
    """Return how many tokens an answer may have.

    Args:
        ids: that the model reads.
        context: positions of the model.
        name: of the model or profile, for the error.
        conversation: whether earlier turns are among the ids.

    Raises:
        UsageError: none.
    """
    room = context - len(ids)
    if room < 1:
        raise UsageError(
            f"the {'conversation' if conversation else 'prompt'} has {counted(len(ids), 'token')}, "
            f"and the context of {name} holds {context}",
            f"{'leave out earlier turns, or ' if conversation else ''}shorten the prompt by at least "
            f"{counted(1 - room, 'token')}",
        )
    return room


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    system: str | None = None,
    raw: bool = False,
    template: str | None = None,
    history: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Turn a prompt into the ids that the model reads.

    With a chat template, only the template writes control tokens: one that is spelled out in a message is its letters.

    Args:
        tokenizer: the target's.
        prompt: what the user wrote.
        system: a system message; needs a chat template.
        raw: take the prompt as it is, without a chat template.
        template: a chat template that replaces the tokenizer's.
        history: earlier turns, (prompt, answer) each; without a template they stand before the prompt, blank lines
            between.

    Raises:
        UsageError: an empty prompt, or one that is not UTF-8; a template that fails; a system message where there is no template to carry it.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty", "write a prompt, or pipe one in")
    check_utf8(prompt, "the prompt")
    check_utf8(system or "", "the system message")
    if raw or not (template or tokenizer.chat_template):
        if system is not None:
            raise UsageError(
                "a system message needs a chat template, and none is in use",
                "leave out --raw, or give the profile a chat_template" if raw else "give the profile a chat_template",
            )
        ids = tokenizer("\n\n".join([*(text for turn in history for text in turn), prompt]))["input_ids"]
    else:
        messages = [] if system is None else [{"role": "system", "content": system}]
        for said, answer in history:
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": prompt})
        ids = _encode_messages(tokenizer, messages, template or None)
    if not ids:
        raise UsageError("the prompt has no tokens", "write more, or mend the chat_template")
    return list(ids)


def _encode_messages(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], template: str | None
) -> list[int]:
    """Let the chat template write the messages, its control tokens but not theirs; errors as `encode_prompt`.

    A mark is put before each control token in a message, so that it is known again in what the template wrote. The
    marks are taken out before anything is encoded: text around them becomes the tokens that it would be without.
    """
    control = _control_tokens(tokenizer, template)
    spelled = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
    contents = "".join(message["content"] for message in messages)
    mark = next(sign for sign in map(chr, range(0xFDD0, 0xFDF0)) if sign not in contents)  # no characters by themselves
    marked = [{**message, "content": spelled.sub(mark + r"\g<0>", message["content"])} for message in messages]
    try:
        written: Any = tokenizer.apply_chat_template(
            marked, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise UsageError(f"the chat template fails: {error}", "mend the chat_template, or pass --raw") from None
    pieces = written.split(mark)
    starts = set(accumulate(map(len, pieces[:-1])))
    text = "".join(pieces)
    # The template writes the special tokens itself.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(starts))
    if not starts:
        return list(encoded["input_ids"])
    ids: list[int] = []
    for id_, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if id_ in control.values() and not starts.isdisjoint(range(start, end)):
            ids += _letters(tokenizer, text[start:end], id_)
        else:
            ids.append(id_)
    return ids


def _control_tokens(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> dict[str, int]:
    """Tokens that mean something beyond their letters: special ones, and added ones that the template names."""
    template = str(template or tokenizer.chat_template)
    return {
        token.content: id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or token.content in template)
    }


def _letters(tokenizer: "PreTrainedTokenizerBase", text: str, id_: int) -> list[int]:
    """The ids of a control token's letters."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if id_ not in ids:
        return ids
    # The tokenizer keeps an added token whole that is not called special: in two parts it is no such token.
    return [id_ for part in (text[:1], text[1:]) for id_ in tokenizer(part, add_special_tokens=False)["input_ids"]]


class TextStream:
    """Token ids in, printable text out, ending before the first stop string.

    Bytes that are not yet a character, and text that may yet become a stop string, are held back.

    Args:
        tokenizer: a fast tokenizer.
        stops: stop strings, none empty.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._decoded = ""
        self._shown = 0
        self.token_ids: list[int] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that has been released so far."""
        return self._decoded[: self._shown]

    def feed(self, token: int) -> str:
        """Add one token; returns what became printable. Once `stopped`, the token completed a stop string."""
        self.token_ids.append(token)
        self._decoded += self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        ends = [at for stop in self._stops if (at := self._decoded.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._decoded = self._decoded[: min(ends)]
            return self._release(len(self._decoded))
        held = max((_overlap(self._decoded, stop) for stop in self._stops), default=0)
        return self._release(len(self._decoded) - held)

    def finish(self) -> str:
        """No more tokens will come; returns what was held back, half characters as U+FFFD."""
        if not self.stopped:
            whole = str(self._tokenizer.decode(self.token_ids, skip_special_tokens=True))
            # A tokenizer that cleans up spaces may rewrite what was shown; what was shown stays.
            if whole.startswith(self._decoded):
                self._decoded = whole
        return self._release(len(self._decoded))

    def _release(self, upto: int) -> str:
        piece = self._decoded[self._shown : upto]
        self._shown = max(self._shown, upto)
        return piece


class DraftText:
    """Gives drafts and corrections their text, which may all be taken back; feed it every event of an answer.

    A token's text is what it adds to the text before it. A token that ends inside a character adds nothing, the one
    that completes the character adds all of it. Each token costs one decoding of itself, the waiting tokens before it
    and a few validated ones, since subword decoders look at neighbours.

    Args:
        tokenizer: a fast tokenizer.
    """

    CONTEXT = 8
    """Most validated tokens to decode with the waiting ones: twice as many as a character has bytes."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._validate([])

    def see(self, event: Event) -> Event:
        """The event, with text if it is a draft or a correction."""
        match event:
            case Drafted():
                return replace(event, texts=tuple(map(self._add, event.token_ids)))
            case Judged():
                self._keep(len(self._waiting) - event.proposed + event.accepted)
                if event.correction is not None:
                    return replace(event, correction_text=self._add(event.correction))
            case Committed():
                # The target has judged all that waited, so nothing waits behind what it validated.
                self._validate([*self._context, *event.token_ids][-self.CONTEXT :])
        return event

    def _validate(self, context: list[int]) -> None:
        self._context, self._waiting = context, list[int]()
        while len(self._context) > self.CONTEXT // 2 and self._decode(whole=False).startswith("\ufffd"):
            del self._context[0]  # the end of a character whose beginning is out of sight
        self._lengths = [len(self._decode())]
        """Of the text before each waiting token, and after the last."""

    def _add(self, token: int) -> str:
        self._waiting.append(token)
        text, before = self._decode(), self._lengths[-1]
        self._lengths.append(max(before, len(text)))
        return text[before:]

    def _keep(self, count: int) -> None:
        del self._waiting[count:], self._lengths[count + 1 :]

    def _decode(self, whole: bool = True) -> str:
        """The text so far; where it ends in an unfinished character, which is decoded as U+FFFD, without it."""
        text: str = self._tokenizer.decode(self._context + self._waiting, skip_special_tokens=True)
        return text.rstrip("\ufffd") if whole else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
