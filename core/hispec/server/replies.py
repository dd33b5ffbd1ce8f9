"""Responses in the format of the protocol."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from hispec.answer import Generation
from hispec.events import FinishReason, Likely, Scored, TokenLogprobs
from hispec.metrics import Stats
from hispec.server.answering import Echo, Piece

Told = TokenLogprobs | Scored
"""Log-probabilities of a token of an answer, or of a prompt."""

REASONS: dict[FinishReason, str] = {"eos": "stop", "stop": "stop", "length": "length"}
HALF = "\ufffd"
"""The character that stands for an incomplete one."""


class Reply:
    """A completion of text; makes its objects.

    Args:
        model: the name by which the client knows the model.
    """

    kind, part, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._lengths: dict[int, int] = {}
        """The number of characters of the tokens with log-probabilities so far, by choice."""

    def whole(self, generations: Sequence[Generation], echoes: Sequence[Echo | None], each: int) -> dict[str, Any]:
        """Return all in one object.

        Args:
            generations: a choice each.
            echoes: what comes before each.
            each: choices of one prompt.
        """
        choices = [
            self._choice(index, self.text(echo.text + one.text), _both(echo, one), REASONS[one.finish_reason])
            for index, (one, echo) in enumerate(zip(generations, (echo or Echo("") for echo in echoes), strict=True))
        ]
        return self._of(self.kind) | {"choices": choices, "usage": usage(generations, each)}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return the objects that precede the first piece of a choice."""
        return []

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the next text of a choice."""
        return self._chunk(self._choice(index, self.delta(piece.text), piece.logprobs or None, None))

    def end(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return the end of a choice."""
        return self._chunk(self._choice(index, self.delta(None), None, REASONS[reason]))

    def usage(self, generations: Sequence[Generation], each: int) -> dict[str, Any]:
        """Return the usage as the last object of a stream; arguments as `whole`."""
        return self._of(self.part) | {"choices": [], "usage": usage(generations, each)}

    def text(self, text: str) -> dict[str, Any]:
        """Return the text of a choice, whole."""
        return {"text": text}

    def delta(self, text: str | None) -> dict[str, Any]:
        """Return a piece of the text of a choice, None at its end."""
        return {"text": text or ""}

    def logprobs(self, index: int, tokens: Sequence[Told]) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens of a choice."""
        begin = self._lengths.get(index, 0)
        ends = [*accumulate((len(token.text) for token in tokens), initial=begin)]
        self._lengths[index] = ends[-1]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None
                if token.logprob is None
                else {one.text: one.logprob for one in token.top} | {token.text: token.logprob}
                for token in tokens
            ],
            "text_offset": ends[:-1],
        }

    def _of(self, kind: str) -> dict[str, Any]:
        return self._head | {"object": kind}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._of(self.part) | {"choices": [choice]}

    def _choice(
        self, index: int, said: dict[str, Any], tokens: Sequence[Told] | None, reason: str | None
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else self.logprobs(index, tokens)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}


class ChatReply(Reply):
    """An answer in a conversation; makes its objects."""

    kind, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return the objects that precede the first piece of a choice: its role."""
        return [self._chunk(self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None))]

    def text(self, text: str) -> dict[str, Any]:
        """Return the text of a choice, whole."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str | None) -> dict[str, Any]:
        """Return a piece of the text of a choice, None at its end."""
        return {"delta": {} if text is None else {"content": text}}

    def logprobs(self, index: int, tokens: Sequence[Told]) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens of a choice."""
        content = [_likely(token) | {"top_logprobs": [_likely(one) for one in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


def _both(echo: Echo, generation: Generation) -> tuple[Told, ...] | None:
    """Return the log-probabilities of a prompt and its answer, None where they were not asked for."""
    return None if generation.logprobs is None else (*echo.logprobs, *generation.logprobs)


def _likely(one: Likely | Told) -> dict[str, Any]:
    known = HALF not in one.text  # the bytes of half a character are not those of what stands for it
    return {"token": one.text, "logprob": one.logprob, "bytes": [*one.text.encode()] if known else None}


def usage(generations: Sequence[Generation], each: int) -> dict[str, Any]:
    """Return the `usage` object of answers to one request; its `hispec` says how they were decoded.

    Args:
        generations: the answers.
        each: how many of them are to one prompt, whose tokens are counted once.
    """
    all_stats = [generation.stats for generation in generations]
    read, written = sum(one.prompt_tokens for one in all_stats[::each]), sum(one.new_tokens for one in all_stats)
    record = _added(all_stats).to_record()
    kept = (
        "target_passes",
        "tokens_per_target_pass",
        "tokens_per_second",
        "time_to_first_token_s",
        "seconds",
        "levels",
    )
    seeds = [generation.seed for generation in generations]
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(stats.cached_tokens for stats in all_stats[::each])},
        "hispec": {name: record[name] for name in kept} | ({} if None in seeds else {"seeds": seeds}),
    }


def _added(all_stats: Sequence[Stats]) -> Stats:
    """Return the figures of several answers as one; the time to the first token is that of the first."""
    first, *others = all_stats
    total = first.copy()
    for stats in others:
        total = replace(
            total,
            levels=[a.plus(b) for a, b in zip(total.levels, stats.levels, strict=True)],
            new_tokens=total.new_tokens + stats.new_tokens,
            target_passes=total.target_passes + stats.target_passes,
            seconds={
                name: total.seconds.get(name, 0.0) + stats.seconds.get(name, 0.0)
                for name in {*total.seconds, *stats.seconds}
            },
        )
    return total
