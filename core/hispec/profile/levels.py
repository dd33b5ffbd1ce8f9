"""The levels of a profile: which ones a mode reads, and profiles with other levels."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hispec.counts import counted
from hispec.errors import ProfileError, UsageError
from hispec.profile.explain import explain
from hispec.profile.schema import (
    DEFAULT_NGRAM,
    DecodingSection,
    DraftSection,
    IntermediateSection,
    NgramSection,
    Profile,
    SingleLayerSection,
    TargetSection,
    reaches,
)
from hispec.settings import Quantization

EARLY_EXIT = "layerskip"
"""Parts of the names of checkpoints that were trained for early exit."""


def levels_of(profile: Profile, mode: str) -> list[DraftSection | IntermediateSection]:
    """Return the levels below the target that a mode reads, the draft first."""
    draft: DraftSection | None = profile.draft
    if mode == "single-layer" and (tuned := profile.single_layer) is not None:
        draft = DraftSection(exit_layer=tuned.exit_layer, weights=tuned.weights)
    found = {"hispec": (draft, profile.intermediate), "single-layer": (draft,)}.get(mode, ())
    return [level for level in found if level is not None]


def ngram_of(profile: Profile, mode: str, lookup: bool | None) -> NgramSection | None:
    """Return the n-gram section for the levels of a mode; None where no n-grams are looked up.

    Args:
        profile: the profile whose levels are wanted.
        mode: the decoding mode.
        lookup: whether to look n-grams up; None: as the levels say.
    """
    if lookup is False or mode == "autoregressive":
        return None
    lowest = next(iter(levels_of(profile, mode)), None)
    said = lowest.ngram if isinstance(lowest, DraftSection) else None
    return said or (DEFAULT_NGRAM if lookup else None)


def copies_of(profile: Profile, mode: str, num_layers: int) -> dict[Quantization, int]:
    """Return the quantized copies of the target that a mode reads: for each format, how many layers it has.

    Args:
        profile: the profile whose levels are wanted.
        mode: the decoding mode.
        num_layers: the target's depth.
    """
    depths: dict[Quantization, int] = {}
    for level in levels_of(profile, mode):
        if level.weights is not None:
            depths[level.weights] = max(depths.get(level.weights, 0), level.exit_layer or num_layers)
    return depths


def models_of(profile: Profile, mode: str) -> dict[str, str | None]:
    """Return the models that a mode of a profile reads, each once with its revision, the target first."""
    own = profile.target.model
    others = {level.model: None for level in levels_of(profile, mode) if level.model is not None}
    return {own: profile.target.revision} | {model: None for model in others if model != own}


def calibrated_elsewhere(profile: Profile, environment: Mapping[str, Any]) -> list[str]:
    """Return the differences between calibration and run, such as `dtype float32 -> bfloat16`."""
    known = profile.calibrated or {}
    return [
        f"{key} {known[key]} -> {environment[key]}"
        for key in ("device", "dtype", "stack", "threads")
        if key in known and key in environment and str(known[key]) != str(environment[key])
    ]


def check_depths(profile: Profile, model: str, num_layers: int) -> None:
    """Refuse exits that a model of the profile is too shallow for.

    Raises:
        ProfileError: naming the exit and the depths that would do.
    """
    target = profile.target.model
    exits = {
        name: level.exit_layer
        for name, level in (("draft", profile.draft), ("intermediate", profile.intermediate))
        if level is not None and (level.model or target) == model
    }
    if profile.single_layer is not None and model == target:
        exits["single_layer"] = profile.single_layer.exit_layer
    deepest = num_layers - (model == target)
    for name, exit_layer in exits.items():
        if exit_layer is not None and exit_layer > deepest:
            raise ProfileError(
                f"profile {profile.name}: {name}.exit_layer is {exit_layer}, "
                f"and {model} has {counted(num_layers, 'layer')}",
                f"choose an exit from 1 to {deepest}",
            )


def exits_of_target(profile: Profile) -> list[int]:
    """Return the exits at which levels read the target, its own weights or copies of them, shallow to deep."""
    levels = [level for level in (profile.draft, profile.intermediate) if level is not None]
    own = {level.exit_layer for level in levels if level.model in (None, profile.target.model)}
    return sorted(exit_layer for exit_layer in own if exit_layer is not None)


def with_exits(profile: Profile, draft: int | None, intermediate: int | None, mode: str = "hispec") -> Profile:
    """Return a profile with other exits; None keeps the profile's own level.

    A mode that leaves the intermediate level out does not ask that the profile's own one be deeper than `draft`.

    Raises:
        ProfileError: exits out of order.
    """
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    if draft is not None or intermediate is not None:  # measured for the exits that were
        data.pop("adaptive", None)
        data.pop("calibrated", None)
    if draft is not None:
        data.pop("single_layer", None)  # tuned for the exits that were
        data["draft"] = {"exit_layer": draft} | _kept(data.get("draft"), "ngram", "head")
        if mode != "hispec" and intermediate is None and reaches(draft, None, profile):
            data.pop("intermediate")
    if intermediate is not None:
        data["intermediate"] = {"exit_layer": intermediate} | _kept(data.get("intermediate"), "head")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        message, _ = explain(error)
        raise ProfileError(
            message,
            "choose other exits, --draft-exit below --intermediate-exit, or leave the intermediate level out: "
            "--mode single-layer",
        ) from None


def _kept(section: dict[str, Any] | None, *keys: str) -> dict[str, Any]:
    return {key: section[key] for key in keys if section and section.get(key) is not None}


def profile_for_model(
    model: str, num_layers: int, draft: int | None, intermediate: int | None, weights: Quantization = "int4"
) -> Profile:
    """Return a profile for a checkpoint that has none.

    Any model drafts with n-grams and with a quantized copy of itself. Where it was trained for early exit, as its name tells
    or as `draft` says, an exit of the copy drafts, and the whole copy verifies. With `intermediate`, all levels read the
    model's own weights.

    Args:
        model: a folder or a hub id.
        num_layers: its depth, 0 where that is not known.
        draft: layers that draft.
        intermediate: layers that verify drafts.
        weights: format of the copy.

    Raises:
        ProfileError: exits out of order.
    """
    plain = Profile(name=model, target=TargetSection(model=model))
    if intermediate is not None:
        return with_exits(plain, draft, intermediate)
    if draft is None and EARLY_EXIT in model.lower() and num_layers > 2:
        draft = max(1, round(num_layers / 8))
    copy = IntermediateSection(weights=weights)
    own = SingleLayerSection(exit_layer=draft, weights=weights, draft_tokens=6)
    levels = DraftSection(exit_layer=draft, weights=weights, ngram=DEFAULT_NGRAM)
    profile = plain.model_copy(
        update={
            "draft": levels,
            "intermediate": None if draft is None else copy,
            "single_layer": own,
            "decoding": DecodingSection.model_validate(
                {"draft_tokens": 6, "validate_every": 6 if draft is None else 12}
            ),
        }
    )
    profile._assumed = True
    return profile


def without_copies(profile: Profile) -> Profile:
    """Return a profile without quantized copies, and without levels that have no exit or model besides their copy."""
    levels: dict[str, Any] = {}
    for name in ("draft", "intermediate", "single_layer"):
        level = getattr(profile, name)
        if level is None or level.weights is None:
            continue
        kept = level.model_copy(update={"weights": None})
        reads = kept.exit_layer is not None or getattr(kept, "ngram", None) is not None
        levels[name] = kept if reads else None
    return profile.model_copy(update=levels)


PAPERS = (8, 4)
"""The paper's exits, draft and intermediate: the whole depth over these."""
PAPERS_LENGTHS = {"hispec": (2, 4), "single-layer": (4, 4)}
"""The default numbers of draft tokens and of tokens that wait for the target, by mode."""


def published(profile: Profile, mode: str, num_layers: int) -> Profile:
    """Return a profile whose levels are as published: exits of the target's full weights, verified after fixed lengths.

    Exits, reduced heads and other models that the profile names stay, and where all levels do, its lengths. What reads
    a whole copy, or n-grams alone, becomes an exit of the paper with the paper's lengths.

    Args:
        profile: the profile to complete.
        mode: `hispec` or `single-layer`.
        num_layers: the target's depth.

    Raises:
        UsageError: the model has too few layers for these exits.
    """
    tuned = profile.single_layer if mode == "single-layer" else None
    given = [profile.draft, profile.intermediate] if mode == "hispec" else [tuned or profile.draft]
    levels: list[dict[str, Any]] = []
    deepest, kept = 0, True
    for section, part in zip(given, PAPERS, strict=False):
        named = (
            None if section is None else section.model_dump(exclude_none=True, include={"exit_layer", "model", "head"})
        )
        if not named or not named.keys() & {"exit_layer", "model"}:
            named, kept = {"exit_layer": max(deepest + 1, round(num_layers / part))}, False
        if named.get("model") in (None, profile.target.model):
            deepest = named["exit_layer"]
        levels.append(named)
    if deepest >= num_layers:
        raise UsageError(
            f"arm {mode}-published needs {counted(len(levels), 'exit')}, and {profile.target.model} has "
            f"{counted(num_layers, 'layer')}",
            "leave it out of --arms, or choose a deeper model",
        )
    lengths = dict(zip(("draft_tokens", "validate_every"), PAPERS_LENGTHS[mode], strict=True))
    if kept:
        lengths |= profile.decoding.model_dump(include=set(lengths), exclude_none=True)
        lengths |= {} if tuned is None else {"validate_every": tuned.draft_tokens}
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    for section_name in ("draft", "intermediate", "single_layer", "adaptive", "calibrated"):
        data.pop(section_name, None)
    data |= dict(zip(("draft", "intermediate"), levels, strict=False))
    data["decoding"] = data.get("decoding", {}) | lengths
    return Profile.model_validate(data)
