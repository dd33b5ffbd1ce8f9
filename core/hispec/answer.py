"""The result of one answer: text, token ids, statistics and conditions."""

from dataclasses import asdict, dataclass
from typing import Any

from hispec.events import FinishReason, TokenLogprobs
from hispec.grammar import Grammar
from hispec.metrics import Stats


@dataclass
class Generation:
    """One finished answer.

    Attributes:
        profile: the profile's name.
        prompt: the prompt as the user wrote it.
        prompt_ids: the token ids that the target read, including the chat template's.
        text: the validated text, cut before a stop string.
        token_ids: the validated ids, an EOS included.
        finish_reason: the reason why the answer ended.
        stats: the counts and times of its decoding.
        environment: the versions, device and dtypes that the engine ran with.
        seed: the seed that the answer was sampled with; None for a greedy answer.
        lossless: whether `Engine.check_lossless` found the ids equal to the target's own; None before it was called.
        logprobs: the log-probabilities of each of `token_ids`; None if they were not requested.
        grammar: the grammar that the answer had to match, if any.
        complete: whether the answer matches the grammar; an answer that was cut off may not. None without a grammar.
    """

    profile: str
    prompt: str
    prompt_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    environment: dict[str, Any]
    seed: int | None = None
    lossless: bool | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    grammar: Grammar | None = None
    complete: bool | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the `hispec.generate/1` object."""
        record = {
            "schema": "hispec.generate/1",
            "profile": self.profile,
            "prompt": self.prompt,
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_record(),
            "environment": self.environment,
        }
        logprobs = None if self.logprobs is None else [asdict(one) for one in self.logprobs]
        extra = {"seed": self.seed, "verified": self.lossless, "logprobs": logprobs, "complete": self.complete}
        return record | {key: value for key, value in extra.items() if value is not None}
