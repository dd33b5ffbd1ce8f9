"""Converts between text and token ids: prompts to ids, and the ids of answers to text that ends at a stop text."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from hispec.chat_template import ChatTemplate, Message
from hispec.detokenizer import Detokenizer
from hispec.errors import UsageError
from hispec.events import Committed, Drafted, Event, Likely, Scored, TokenLogprobs, Verified
from hispec.room import check_beginning
from hispec.utf8 import check_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Told = TypeVar("Told", Likely, Scored, TokenLogprobs)
TOPS = ("top", "sampling_top")
"""Where log-probabilities of a token have those of others beside it."""


def check_stop(stop: Sequence[str]) -> None:
    """Refuse texts that cannot end an answer.

    Raises:
        UsageError: an empty one, or one that is not UTF-8.
    """
    if not all(stop):
        raise UsageError("a stop text is empty", "pass --stop a text of at least one character")
    for text in stop:
        check_utf8(text, "a stop text")


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    system: str | None = None,
    raw: bool = False,
    template: str | None = None,
    history: Sequence[tuple[str, str]] = (),
    context: int | None = None,
) -> list[int]:
    """Turn a prompt into the ids that the model reads.

    With a chat template, only the template writes control tokens; see `ChatTemplate`.

    Args:
        tokenizer: the target's.
        prompt: the prompt as the user wrote it.
        system: a system message; needs a chat template.
        raw: use the prompt without a chat template.
        template: a chat template that replaces the tokenizer's.
        history: earlier turns, (prompt, answer) each; without a template they stand before the prompt, blank lines
            between.
        context: the number of positions of the model, to refuse what is far too long without tokenizing all of it.

    Raises:
        UsageError: an empty prompt, or one that is not UTF-8; a template that fails; a system message that no template
            carries.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty", "write a prompt, or pipe one in")
    check_utf8(prompt, "the prompt")
    check_utf8(system or "", "the system message")
    if raw or not (template or tokenizer.chat_template):
        if system is not None:
            raise UsageError(
                "a system message needs a chat template, and none is in use",
                "leave out --raw or --system" if raw else "leave out --system, or give one with --chat-template FILE",
            )
        text = "\n\n".join([*(text for turn in history for text in turn), prompt])
        if context is not None:
            check_beginning(tokenizer, text, context)
        ids = tokenizer(text)["input_ids"]
        if not ids:
            raise UsageError("the prompt has no tokens", "write more")
        return list(ids)
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for said, answer in history:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    return encode_messages(tokenizer, [*messages, {"role": "user", "content": prompt}], template, context)


def encode_messages(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    template: str | None = None,
    context: int | None = None,
) -> list[int]:
    """Turn the messages of a conversation into the ids that the model reads, by a chat template.

    Args:
        tokenizer: the target's.
        messages: each with a role and its content, in order.
        template: a chat template that replaces the tokenizer's.
        context: the number of positions of the model, as for `encode_prompt`.

    Raises:
        UsageError: no messages, or one that is not UTF-8; no chat template, or one that fails.
    """
    if not messages:
        raise UsageError("there are no messages", "give at least one")
    for message in messages:
        check_utf8(message["content"], f"a message of the {message['role']}")
    if not (template or tokenizer.chat_template):
        raise UsageError(
            "the model has no chat template: it is a base model, which continues text",
            "give it a text to continue, or a chat template",
        )
    ids = ChatTemplate(tokenizer, template or None).encode(messages, context)
    if not ids:
        raise UsageError("the prompt has no tokens", "write more, or mend the chat template")
    return ids


class TextStream:
    """Token ids in, printable text out, ending before the first stop text.

    Text that the next tokens may change, and text that may become a stop text, is held back; released text is final.
    Without a stop text, all of it equals `tokenizer.decode` of the ids without special tokens. A stop text may contain
    special tokens, like the `stop_strings` of `transformers`.

    Args:
        tokenizer: a fast tokenizer.
        stops: stop texts, none empty.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._settled = ""
        self._shown = 0
        self._specials: list[tuple[int, str]] = []
        """Special tokens, each with its place in the text, ascending."""
        self.token_ids: list[int] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Return the released text."""
        return self._settled[: self._shown]

    def feed(self, token: int) -> str:
        """Add one token; returns what became printable. Once `stopped`, the token completed a stop text."""
        self.token_ids.append(token)
        before = max(0, len(self._settled) - self._longest)
        self._settled += self._detokenizer.add(token)
        if not self._stops:
            return self._release(len(self._settled))
        text = self._settled + self._detokenizer.unsettled()
        if (special := self._detokenizer.special(token)) is not None:
            self._specials.append((len(text), special))
        written = self._with_specials(text, before)
        ends = [at for stop in self._stops if (at := written.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._settled = text[: max(self._shown, self._place(min(ends), before))]
            return self._release(len(self._settled))
        written = self._with_specials(self._settled, before)
        held = max(_overlap(written, stop) for stop in self._stops)
        return self._release(self._place(len(written) - held, before))

    def finish(self) -> str:
        """Return the text that was held back, as no more tokens will come; incomplete characters become U+FFFD."""
        if not self.stopped:
            self._settled += self._detokenizer.finish()
        return self._release(len(self._settled))

    def _with_specials(self, text: str, start: int) -> str:
        """Return the text from some place on with the special tokens there spelled out."""
        parts, at = [], start
        for place, special in self._specials_from(start):
            if place <= len(text):
                parts += [text[at:place], special]
                at = place
        return "".join([*parts, text[at:]])

    def _place(self, at: int, start: int) -> int:
        """Return the place in the text of a place in what `_with_specials` returned."""
        for place, special in self._specials_from(start):
            if start + at <= place:
                break
            at = max(place - start, at - len(special))
        return start + at

    def _specials_from(self, start: int) -> list[tuple[int, str]]:
        return self._specials[bisect_left(self._specials, start, key=lambda special: special[0]) :]

    def _release(self, upto: int) -> str:
        piece = self._settled[self._shown : upto]
        self._shown = max(self._shown, upto)
        return piece


def with_text(event: Committed, text: TextStream, tokenizer: "PreTrainedTokenizerBase") -> Committed:
    """Add the text of committed ids, keeping only those up to the one that completes a stop text; see `with_texts`, too."""
    piece, count = "", 0
    for token in event.token_ids:
        piece, count = piece + text.feed(token), count + 1
        if text.stopped:
            break

    logprobs = with_texts(event.logprobs[:count], tokenizer)
    return replace(event, token_ids=event.token_ids[:count], text=piece, logprobs=logprobs)


def with_texts(tokens: Sequence[Told], tokenizer: "PreTrainedTokenizerBase") -> tuple[Told, ...]:
    """Return tokens with the text that each decodes to alone, half characters as U+FFFD, and so those beside them."""

    def spelled(one: Told) -> Told:
        beside: dict[str, Any] = {
            name: with_texts(getattr(one, name), tokenizer) for name in TOPS if hasattr(one, name)
        }
        return replace(one, text=tokenizer.decode([one.token_id]), **beside)

    return tuple(map(spelled, tokens))


class DraftText:
    """Gives drafts and corrections their text, which may all be taken back; feed it every event of an answer.

    A token's text is the text that it adds to the text before it. A token that ends inside a character adds nothing,
    the one that completes the character adds all of it. Each token costs one decoding of itself, the waiting tokens
    before it and a few validated ones, since subword decoders depend on neighbours.

    Args:
        tokenizer: a fast tokenizer.
    """

    CONTEXT = 8
    """The largest number of validated tokens to decode with the waiting ones: twice the bytes of a character."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._validate([])

    def see(self, event: Event) -> Event:
        """Return the event, with text if it is a draft or a correction."""
        match event:
            case Drafted():
                return replace(event, texts=tuple(map(self._add, event.token_ids)))
            case Verified():
                self._keep(len(self._waiting) - event.proposed + event.accepted)
                if event.correction is not None:
                    return replace(event, correction_text=self._add(event.correction))
            case Committed():
                # The target has verified all waiting tokens, so none is left.
                self._validate([*self._context, *event.token_ids][-self.CONTEXT :])
        return event

    def _validate(self, context: list[int]) -> None:
        self._context, self._waiting = context, list[int]()
        while len(self._context) > self.CONTEXT // 2 and self._decode(whole=False).startswith("\ufffd"):
            del self._context[0]  # the end of a character whose beginning is no longer in the context
        self._lengths = [len(self._decode())]
        """The text before each waiting token, and after the last one."""

    def _add(self, token: int) -> str:
        self._waiting.append(token)
        text, before = self._decode(), self._lengths[-1]
        self._lengths.append(max(before, len(text)))
        return text[before:]

    def _keep(self, count: int) -> None:
        del self._waiting[count:], self._lengths[count + 1 :]

    def _decode(self, whole: bool = True) -> str:
        """Return the text so far; where it ends in an unfinished character, which is decoded as U+FFFD, without it."""
        text: str = self._tokenizer.decode(self._context + self._waiting, skip_special_tokens=True)
        return text.rstrip("\ufffd") if whole else text


def _overlap(text: str, stop: str) -> int:
    """Return length of the longest proper beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
