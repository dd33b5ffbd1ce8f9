"""The schema of profiles: their sections, the keys of each, and the conditions between sections."""

import hashlib
import json
from itertools import pairwise
from math import inf
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    create_model,
    model_validator,
)

from hispec.errors import BadValueError
from hispec.settings import SETTINGS, Count, Quantization

Name = Annotated[str, Field(min_length=1)]
Milliseconds = Annotated[float, Field(gt=0)]
Features = Annotated[list[Literal["margin", "log_probability", "entropy"]], Field(min_length=1)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
MEASURED = ("draft", "intermediate", "single_layer", "decoding", "adaptive")
"""Sections that `hispec calibrate` writes."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _whole_head(head: Any) -> Any:
    return None if head == "full" else head


def _with_settings(section: type[_Section]) -> Any:
    """Add the settings that a profile has as keys of a section: those of `target` as they are, others without a value."""
    name = section.__name__.removesuffix("Section").lower()
    keys: Any = {
        key: (setting.type, setting.default) if name == "target" else (setting.type | None, None)
        for key, setting in SETTINGS.items()
        if setting.section == name
    }
    return create_model(section.__name__, __base__=section, __doc__=section.__doc__, __module__=__name__, **keys)


Head = Annotated[Count | None, BeforeValidator(_whole_head)]
"""The number of most frequent tokens that a level reads; None, `full` in a profile, stands for the whole vocabulary."""


@_with_settings
class TargetSection(_Section):
    """The model whose output is the answer."""

    model: Name
    revision: str | None = None


class NgramSection(_Section):
    """N-gram drafts: the longest n-gram that is looked up, the tokens of a draft, and the drafter by its name."""

    max: Count
    tokens: Count
    drafter: Name = "cache"


DEFAULT_NGRAM = NgramSection(max=4, tokens=8)
"""The defaults."""


class DraftSection(_Section):
    """The drafter: an exit of the target, another model, an n-gram look-up, or an n-gram look-up before one of the
    others.

    Attributes:
        exit_layer: an exit of the target, or of its quantized copy.
        weights: the target's, quantized; without an exit, the whole depth of that copy.
        model: another one.
        ngram: the n-gram look-up.
        head: the number of tokens that the level reads.
    """

    exit_layer: Count | None = None
    weights: Quantization | None = None
    model: Name | None = None
    ngram: NgramSection | None = None
    head: Head = None

    @property
    def reads_model(self) -> bool:
        """Return whether it reads a model, and not only n-grams."""
        return any(key is not None for key in (self.exit_layer, self.weights, self.model))

    @model_validator(mode="after")
    def _one_kind(self) -> "DraftSection":
        if self.exit_layer is not None and self.model is not None:
            raise ValueError("give exit_layer or model, not both: another model drafts with its whole depth")
        if not self.reads_model and self.ngram is None:
            raise ValueError("give an exit_layer, weights, a model, or an ngram section")
        if self.head is not None and not self.reads_model:
            raise BadValueError("an n-gram look-up has no head", "give an exit_layer or a model too, or leave head out")
        return self


class IntermediateSection(_Section):
    """The intermediate level, which verifies drafts before the target: an exit of the target, or another model or its
    exit.

    Attributes:
        exit_layer: an exit of the target, of its quantized copy, or of the other model.
        weights: the target's, quantized; without an exit, the whole depth of that copy.
        model: another one.
        head: the number of tokens that the level reads.
    """

    exit_layer: Count | None = None
    weights: Quantization | None = None
    model: Name | None = None
    head: Head = None

    @model_validator(mode="after")
    def _some_kind(self) -> "IntermediateSection":
        if self.exit_layer is None and self.weights is None and self.model is None:
            raise ValueError("give an exit_layer, weights, or a model")
        return self


class SingleLayerSection(_Section):
    """Mode single-layer where it is tuned apart from the hierarchy.

    Attributes:
        exit_layer: the exit that drafts, of the target or of its quantized copy.
        weights: the target's, quantized; without an exit, the whole depth of that copy.
        draft_tokens: the number of tokens of one draft.
    """

    exit_layer: Count | None = None
    weights: Quantization | None = None
    draft_tokens: Count

    @model_validator(mode="after")
    def _some_kind(self) -> "SingleLayerSection":
        if self.exit_layer is None and self.weights is None:
            raise ValueError("give an exit_layer, weights, or both")
        return self


@_with_settings
class DecodingSection(_Section):
    """The numbers of tokens that are drafted before each verification."""


@_with_settings
class SamplingSection(_Section):
    """The sampling settings; see `hispec.decoding.sampling.Sampling`. Temperature 0 is greedy decoding."""


class AcceptanceSection(_Section):
    """A predictor of whether a level's token is accepted by another: a table of one feature, or a logistic regression.

    Attributes:
        features: the features that it reads, from `hispec.policies.confidence.FEATURES`.
        mean: share of tokens accepted.
        table: pairs of the feature's value, ascending, and the probability of acceptance there.
        weights: the weights of the features' terms, see `hispec.policies.prediction.terms`.
    """

    features: Features
    mean: Annotated[float, Field(gt=0, lt=1)]
    table: Annotated[list[Point], Field(min_length=1)] | None = None
    weights: list[float] | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> "AcceptanceSection":
        if (self.table is None) == (self.weights is None):
            raise ValueError("give a table or weights, one of both")
        if self.table is not None:
            knots = [knot for knot, _ in self.table]
            if len(self.features) != 1 or any(b <= a for a, b in pairwise(knots)):
                raise ValueError("give a table of one feature, its values ascending")
            if not all(0 <= chance <= 1 for _, chance in self.table):
                raise ValueError("give probabilities from 0 to 1")
        elif len(self.weights or ()) != 1 + len(self.features) + ("margin" in self.features):
            raise ValueError("give a weight for the constant and for each feature, two for the margin")
        return self


class AdaptiveSection(_Section):
    """Measurements for the adaptive policy, written by `hispec calibrate`; the keys are those of `hispec.adaptation`.

    Attributes:
        draft_ms: the milliseconds of one drafted token, by level.
        verify_ms: the milliseconds of verifying 1, 2, 4, 8, 16 and 32 tokens, by pair of levels; `judge_ms` in older
            profiles.
        acceptance: the predictor, by pair of levels.
        tokens_per_ms: the expected throughput, by active levels.
    """

    draft_ms: dict[str, Milliseconds] = {}
    verify_ms: Annotated[
        dict[str, Annotated[list[Milliseconds], Field(min_length=6, max_length=6)]],
        Field(validation_alias=AliasChoices("verify_ms", "judge_ms")),
    ] = {}
    acceptance: dict[str, AcceptanceSection] = {}
    tokens_per_ms: dict[str, Milliseconds] = {}


class Profile(_Section):
    """Models, levels and defaults. `None` leaves a value to the next source in the order of precedence.

    `frequencies` is the file of token frequencies that reduced heads are taken from, the target's own by default.
    `translators` is the file of translators for exits of the target, written by `hispec fit-exits`; exits that it has
    none for are read as they are.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Name
    description: str = ""
    target: TargetSection
    draft: DraftSection | None = None
    intermediate: IntermediateSection | None = None
    single_layer: SingleLayerSection | None = None
    decoding: DecodingSection = DecodingSection()
    adaptive: AdaptiveSection | None = None
    sampling: SamplingSection = SamplingSection()
    frequencies: Name | None = None
    translators: Name | None = None
    chat_template: str | None = None
    calibrated: dict[str, Any] | None = None
    _assumed: bool = PrivateAttr(default=False)

    @property
    def assumed(self) -> bool:
        """Return whether its levels are defaults for a model without a profile, rather than chosen by a user."""
        return self._assumed

    @model_validator(mode="after")
    def _whole(self) -> "Profile":
        if self.calibrated is not None and self.calibrated.get("sha256") not in (None, calibration_digest(self)):
            raise BadValueError(
                "its levels or measurements differ from what hispec calibrate wrote, or are cut off",
                "give the file as it was, calibrate again, or remove calibrated.sha256 if this is meant",
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> "Profile":
        if self.intermediate is not None and self.draft is None:
            raise ValueError("an intermediate level needs a draft level below it")
        for level, name in ((self.draft, "draft"), (self.intermediate, "intermediate")):
            if level is None:
                continue
            if level.model == self.target.model and level.exit_layer is None and level.weights is None:
                raise BadValueError(f"{name}.model is the target itself", "give an exit_layer of it, or weights")
            if level.model not in (None, self.target.model) and level.weights is not None:
                raise ValueError(f"{name}.weights are the target's, quantized: leave {name}.model out")
        draft, deeper = self.draft, self.intermediate
        if draft is None or deeper is None or not draft.reads_model or draft.model not in (None, self.target.model):
            return self
        if reaches(draft.exit_layer, draft.weights, self):
            if draft.exit_layer is None and deeper.exit_layer is None:
                raise BadValueError(
                    "draft and intermediate read the same", "give them other weights, or the draft an exit"
                )
            raise ValueError(
                f"the intermediate exit ({deeper.exit_layer}) must be deeper than the draft exit "
                f"({draft.exit_layer or 'the whole depth'})"
            )
        return self


def calibration_digest(profile: Profile) -> str:
    """Return a digest of the sections that a calibration measured: levels, lengths, policy and adaptation."""
    measured = profile.model_dump(include=set(MEASURED), exclude_none=True, exclude_defaults=True)
    if decoding := measured.get("decoding"):
        measured["decoding"] = {key: value for key, value in decoding.items() if SETTINGS[key].calibration}
    if verify_ms := measured.get("adaptive", {}).pop("verify_ms", None):
        measured["adaptive"]["judge_ms"] = verify_ms  # its older name, so that digests of older profiles hold
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()


def reaches(exit_layer: int | None, weights: Quantization | None, profile: Profile) -> bool:
    """Return whether a draft reads the target too deeply for the profile's intermediate level to verify it.

    An exit of the same weights must be deeper. One of other weights may be as deep.
    """
    level = profile.intermediate
    if level is None or level.model not in (None, profile.target.model):
        return False
    own, other = (inf if depth is None else depth for depth in (exit_layer, level.exit_layer))
    return own > other or (own == other and weights == level.weights)
