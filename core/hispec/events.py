"""What the engine tells the world while it decodes: plain values, in order, with the time they happened.

The engine yields these and knows nothing of who listens; views, metrics, traces and benchmarks read them.
`t` is seconds since decoding started; `seconds` is how long the step itself took, the time that a listener spends
between two events left out.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

FinishReason = Literal["eos", "length", "stop", "interrupted"]
PHASES = ("prefill", "draft", "intermediate", "target")
"""What decoding spends its time on."""


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
class Judged:
    """Level `level` judged the last `proposed` tokens: the first `accepted` stay, and its own token `correction` follows.

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
class Committed:
    """The target validated `token_ids`; they are final. `text` is what became printable with them."""

    kind: ClassVar[str] = "committed"
    t: float
    token_ids: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """Decoding ended. `result` is the whole answer (`None` from the bare engine, which knows no text)."""

    kind: ClassVar[str] = "finished"
    t: float
    finish_reason: FinishReason
    result: Any = None


Event = Prefilled | Drafted | Judged | Committed | Finished


def to_record(event: Event) -> dict[str, Any]:
    """The JSON object of one event, as `--format jsonl` and `--trace` write it.

    A finished event is its result's object with `event` and `t` added, so a reader finds the same keys as in
    `--format json`.
    """
    if isinstance(event, Finished):
        result = event.result.to_record() if event.result is not None else {"finish_reason": event.finish_reason}
        return {"event": event.kind, "t": event.t, **result}
    return {"event": event.kind, **asdict(event)}
