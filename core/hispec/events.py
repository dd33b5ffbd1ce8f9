"""The events that the engine yields while it decodes: plain values, in order, each with the time when it happened.

The engine yields these and knows nothing of who listens; views, metrics, traces and benchmarks read them.
`t` is seconds since decoding started; `seconds` is how long the step itself took, the time that a listener spends
between two events left out.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

FinishReason = Literal["eos", "length", "stop", "interrupted"]
PHASES = ("prefill", "draft", "intermediate", "target")
"""The kinds of work that decoding spends time on."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt has been run: `prompt_tokens` in all, of which `cached_tokens` were already in the KV cache."""

    kind: ClassVar[str] = "prefilled"
    t: float
    prompt_tokens: int
    cached_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Drafted:
    """Level `level` proposed `token_ids`; `texts` has the text of each where it was asked for, else it is empty."""

    kind: ClassVar[str] = "drafted"
    t: float
    level: str
    token_ids: tuple[int, ...]
    seconds: float = 0.0
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """Level `level` verified the last `proposed` tokens: the first `accepted` stay, and its own token `correction` follows.

    Where it rejected one, that replaces it, and what followed is dropped; where it accepted all, it is a bonus, which
    there may be or not. `correction_text` is the correction's text where it was asked for.
    """

    kind: ClassVar[str] = "judged"
    t: float
    level: str
    proposed: int
    accepted: int
    correction: int | None = None
    seconds: float = 0.0
    correction_text: str = ""


@dataclass(frozen=True, slots=True)
class Likely:
    """A possible token, its natural log-probability, and its text if texts were requested."""

    token_id: int
    logprob: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities of one committed token, all the target's own.

    Attributes:
        token_id: the committed token.
        logprob: its log-probability in the model's distribution, before any sampling option applies.
        sampling_logprob: its log-probability in the distribution that it was drawn from: after penalties, mask,
            temperature, top-k, top-p and min-p. Greedy decoding, which has no temperature, uses the scores whose argmax
            it takes.
        top: the most probable tokens by the first, in order.
        sampling_top: the same by the second distribution; there are fewer where fewer tokens are possible.
        text: the token's text, where texts were requested.
    """

    token_id: int
    logprob: float
    sampling_logprob: float
    top: tuple[Likely, ...] = ()
    sampling_top: tuple[Likely, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of a given text, and the target's natural log-probabilities for its place, before any option.

    Attributes:
        token_id: the token in the text.
        logprob: its log-probability; None for the first token, which has no text before it.
        top: the most probable tokens, in order; empty for the first token.
        text: the text of the token, where texts were asked for.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[Likely, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Committed:
    """The target validated `token_ids`; they are final. `text` is what became printable with them.

    `logprobs` are those of each token where they were asked for, else it is empty.
    """

    kind: ClassVar[str] = "committed"
    t: float
    token_ids: tuple[int, ...]
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Decoding ended. `result` is the whole answer (`None` from the bare engine, which knows no text)."""

    kind: ClassVar[str] = "finished"
    t: float
    finish_reason: FinishReason
    result: Any = None


Event = Prefilled | Drafted | Verified | Committed | Finished


def to_record(event: Event) -> dict[str, Any]:
    """Return the JSON object of one event, as `--format jsonl` and `--trace` write it.

    A finished event is its result's object with `event` and `t` added, so a reader finds the same keys as in
    `--format json`.
    """
    if isinstance(event, Finished):
        result = event.result.to_record() if event.result is not None else {"finish_reason": event.finish_reason}
        return {"event": event.kind, "t": event.t, **result}
    record = {"event": event.kind, **asdict(event)}
    if isinstance(event, Committed) and not event.logprobs:
        del record["logprobs"]
    return record
