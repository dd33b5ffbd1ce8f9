"""The output of a benchmark: one `Measurement` per answer while it runs, and one `Report` at the end.

Both are JSON with a fixed schema. A value that was not measured is absent, never 0.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Interval = Annotated[tuple[float, float], AfterValidator(lambda ends: _ordered(ends))]


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("an interval's lower end comes first")
    return ends


class _Record(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True, use_attribute_docstrings=True
    )


class LevelCounts(_Record):
    """The tokens that a level below the target proposed to the next level, and how many of them that level accepted."""

    name: str
    model: str
    exit_layer: int
    weights: str | None = None
    """Format of the quantized copy that it reads; None for the model's own weights."""
    proposed: Count
    accepted: Count
    accepted_lengths: list[Count]
    """Histogram: item k is the number of verifications that accepted exactly k tokens."""
    proposed_at: list[Count]
    """Item i is how often a verified run had a token at position i, counted from 0."""
    accepted_at: list[Count]
    """Item i is how often that token was accepted."""

    @model_validator(mode="after")
    def _same_positions(self) -> "LevelCounts":
        if len(self.proposed_at) != len(self.accepted_at):
            raise ValueError("proposed_at and accepted_at must have one item per position each")
        return self

    @property
    def verifications(self) -> int:
        """Return how often the next level verified."""
        return sum(self.accepted_lengths)


class TokenComparison(_Record):
    """The comparison of one answer's token ids with those of the reference arm."""

    identical: bool
    at: Count | None = None
    """Index of the first token that differs."""
    gap: float | None = None
    """Between the target's two best logits at that index."""
    kind: Literal["tie", "error"] | None = None
    """A tie is a gap that rounding decides; anything else that differs is an error."""

    @model_validator(mode="after")
    def _explained(self) -> "TokenComparison":
        if self.identical != (self.kind is None):
            raise ValueError("an answer is either identical, or its difference is a tie or an error")
        return self


class Measurement(_Record):
    """One answer: one arm, one row of the dataset, one repeat."""

    arm: str
    row: str
    repeat: Count
    prompt_tokens: Count
    token_ids: list[int]
    text: str
    finish_reason: str
    seconds: Seconds
    """The seconds of decoding, including the prompt's."""
    time_to_first_token_s: Seconds
    inter_token_s: list[Seconds]
    """Gaps between the moments at which tokens became final; a commit of k tokens gives one gap and k - 1 zeros."""
    phase_seconds: dict[str, Seconds]
    """Seconds by phase (prefill, draft, intermediate, target); empty for an arm that does not tell."""
    target_passes: Count | None
    """Passes through the target's last layers, the prefill among them; None for an arm that does not tell."""
    levels: list[LevelCounts]
    """The levels below the target, the cheapest first."""
    peak_memory_bytes: Count | None
    score: float | None
    """The score from 0 to 1, where the dataset has an answer to compare with."""
    lossless: TokenComparison | None
    """The comparison; None for the reference arm itself."""


class Estimate(_Record):
    """A figure with its 95 % bootstrap interval over prompts; a single prompt gives none."""

    value: float
    ci95: Interval | None


class Percentiles(_Record):
    """Seconds that 50, 90 and 99 of 100 observations do not exceed."""

    p50: Seconds
    p90: Seconds
    p99: Seconds


class LevelFigures(LevelCounts):
    """A level's counts over all answers."""

    acceptance_rate: float | None
    """Accepted over proposed; None where nothing was proposed."""


class Accuracy(_Record):
    """The quality of an arm's answers by the dataset's own metric."""

    metric: str
    value: float
    """Mean score."""
    correct: Count | None
    """Answers with the full score; None for a metric that gives partial scores."""
    of: Count
    """Answers that were scored."""


class Losslessness(_Record):
    """The number of answers with the reference arm's token ids, and the kinds of differences."""

    identical: Count
    of: Count
    ties: Count
    errors: Count


class ArmFigures(_Record):
    """The measurements of one arm."""

    name: str
    answers: Count
    """Measured: rows times repeats, less what an interruption left out."""
    prompts: Count | None = None
    """Distinct rows among them, which intervals are drawn from; None in reports of versions that did not tell."""
    tokens: Count
    """New tokens of all answers."""
    seconds: Seconds
    """Decoding time of all answers, prompts included."""
    tokens_per_second: float | None
    """Pooled: `tokens` over `seconds`."""
    ci95: Interval | None
    """The 95 % bootstrap percentile interval of `tokens_per_second` over prompts; None with fewer than two prompts."""
    speedup: dict[str, Estimate]
    """Ratio of pooled tokens per second to those of a baseline arm, over the answers that both arms gave."""
    tokens_per_target_pass: float | None
    """New tokens over passes of the target, its prefills included."""
    mean_acceptance_length: float | None
    """Tokens committed per verification by the target: new tokens, less one for each target pass that verifies nothing
    (a prefill, a token the target wrote itself), over the target's verifications. None where it verified nothing."""
    draft_acceptance_rate: float | None
    """Share of the cheapest level's tokens that the next level accepted."""
    levels: list[LevelFigures]
    phase_seconds: dict[str, Seconds]
    time_to_first_token_s: Percentiles | None
    """Over answers."""
    inter_token_s: Percentiles | None
    """Over all gaps between tokens; tokens of one commit are 0 s apart."""
    peak_memory_bytes: Count | None
    """The largest of all answers."""
    accuracy: Accuracy | None
    """The accuracy; None where the dataset has nothing to score with."""
    lossless: Losslessness | None
    """The comparison with the reference arm; None for the reference arm itself."""


class DatasetInfo(_Record):
    """The prompts that were answered."""

    name: str
    rows: Count
    """Chosen for the run; warm-up rows are not among them."""
    sha256: str
    """The digest of the rows' content, in order."""
    source: str
    """The source of the rows: package, file, or hub repository with its revision."""
    metric: str | None = None
    """The name of the metric."""


class Setup(_Record):
    """The conditions of a run."""

    status: Literal["complete", "interrupted"]
    profile: str
    dataset: DatasetInfo
    repeats: Count
    warmup: Count
    """Rows answered before measuring began."""
    synthetic_weights: bool
    """Whether the weights were drawn at random: the speed is then real, acceptance and accuracy mean nothing."""
    environment: dict[str, JsonValue]
    config: dict[str, JsonValue]
    config_hash: str


class Report(Setup):
    """The `hispec.bench/1` object. Its first arm is the one under test."""

    model_config = ConfigDict(
        title="hispec.bench/1", json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"}
    )

    schema_version: Annotated[Literal["hispec.bench/1"], Field(alias="schema")]
    arms: Annotated[list[ArmFigures], Field(min_length=1)]
    caveats: list[str] = []
    """The caveats of the figures, one sentence each."""

    @model_validator(mode="after")
    def _distinct(self) -> "Report":
        repeated = [name for name, times in Counter(arm.name for arm in self.arms).items() if times > 1]
        if repeated:
            raise ValueError(f"arm {repeated[0]} is there twice")
        return self

    def arm(self, name: str) -> ArmFigures | None:
        """Return the figures of an arm, or None where it was not measured."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def to_json(self) -> str:
        """Return indented JSON, ending in a line break."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def look_up(record: Any, path: Sequence[str]) -> Estimate | float | None:
    """Return the number at a path of a report or of an arm's figures; None where there is none.

    Args:
        record: a record of this module.
        path: field names, keys of dictionaries, and names (of arms and levels) or positions in lists.

    Returns:
        An `Estimate` where the number has an interval, pooled speed included.
    """
    for segment in path:
        if isinstance(record, ArmFigures) and segment == "tokens_per_second" and record.tokens_per_second is not None:
            record = Estimate(value=record.tokens_per_second, ci95=record.ci95)
        elif isinstance(record, BaseModel):
            record = getattr(record, segment, None)
        elif isinstance(record, dict):
            record = record.get(segment)
        elif isinstance(record, list):
            named = next((item for item in record if getattr(item, "name", None) == segment), None)
            at = int(segment) if segment.isdecimal() else len(record)
            record = named if named is not None else record[at] if at < len(record) else None
        else:
            return None
    return record if isinstance(record, Estimate | int | float) and not isinstance(record, bool) else None
