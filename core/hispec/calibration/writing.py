"""Writes the profile that a calibration found: complete, commented, and with a mark that shows that it is not cut
off.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hispec.adaptation import adaptation_of
from hispec.calibration.recording import LevelSpec
from hispec.calibration.result import CalibrationResult
from hispec.calibration.search import PLAIN, Configuration
from hispec.calibration.timing import Speed
from hispec.files import write_whole
from hispec.profile import MEASURED, Profile, calibration_digest, read_profile
from hispec.settings import SETTINGS

HEADER = """\
# Written by `hispec calibrate` on {date}, for {device}, {dtype}, the {stack} stack.
# Chosen: {winner}.
# {verdict}
{advice}"""
COMMENTS = {
    "draft": "The level that drafts, and the n-grams that are looked up before.",
    "intermediate": "The level that verifies drafts before the target does.",
    "single_layer": "Mode single-layer: the best exit and the best fixed length that were found for it.",
    "decoding": "The policy, and the fixed lengths that the static one takes.",
    "adaptive": "What the adaptive policy knows: milliseconds, acceptance by confidence, and what to expect of levels.",
    "calibrated": "Where this comes from. A profile that moves to another machine works, and warns.",
}


def calibrated_profile(profile: Profile, result: CalibrationResult, environment: Mapping[str, Any], name: str) -> str:
    """Return the profile of a calibration's winner, as YAML.

    Args:
        profile: the profile that was calibrated; everything but its levels is kept.
        result: the result of the calibration.
        environment: the conditions of the figures: date, device, dtype, stack, threads, versions, revision, dataset,
            prompts.
        name: the name of the new profile.
    """
    levels = profile_of(profile, result, result.winner, name)
    data = levels.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
    calibrated = {
        **environment,
        "sha256": calibration_digest(levels),
        "tokens_per_second": _figures(result.speed(result.winner)),
        "over": {
            kind: {
                "what": baseline.describe(result.scorer.builder.target),
                **_figures(result.ratio(result.winner, baseline)),
            }
            for kind, baseline in result.baselines().items()
            if baseline != result.winner
        },
        "prompts_checked": result.prompts_checked,
        **({"caveat": result.caveat} if result.caveat else {}),
        "ties": [tie.describe(result.scorer.builder.target) for tie in result.ties],
    }
    # First what says that something was measured, last what was: a file that is cut off anywhere is found out.
    measured = {key: data.pop(key) for key in MEASURED if key in data}
    data = {"schema": 1, "calibrated": calibrated} | data | measured
    said = advice(result)
    header = HEADER.format(
        **environment,
        winner=result.winner.describe(result.scorer.builder.target),
        verdict=verdict(result),
        advice="" if said is None else f"# {said}\n",
    )
    return header + _commented(data)


def profile_of(profile: Profile, result: CalibrationResult, configuration: Configuration, name: str) -> Profile:
    """Return a profile that decodes as a configuration does."""
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    for section in ("draft", "intermediate", "single_layer", "decoding", "adaptive", "calibrated"):
        data.pop(section, None)
    data["name"] = name
    target = result.scorer.builder.target
    keep = {
        key: value
        for key, value in profile.decoding.model_dump(exclude_none=True).items()
        if SETTINGS[key].calibration != "found"
    }
    if configuration != PLAIN:
        whole = LevelSpec(target, result.scorer.builder.stacks[target].num_layers)
        data["draft"] = _level(configuration.specs[0], whole) if configuration.specs else {}
        if configuration.ngram:
            data["draft"]["ngram"] = {"max": configuration.ngram[0], "tokens": configuration.ngram[1]}
        if len(configuration.specs) == 2:
            data["intermediate"] = _level(configuration.specs[1], whole)
        periods = configuration.periods or _best_lengths(result, configuration)
        keep["draft_tokens"], keep["validate_every"] = periods[0], periods[-1]
        keep["policy"] = "adaptive" if configuration.adaptive else "static"
        single = result.baselines().get("single-layer")
        if single is not None and single.specs[0].head_size == 0:
            data["single_layer"] = _level(single.specs[0], whole) | {"draft_tokens": single.periods[0]}
    data["decoding"] = keep
    if configuration.adaptive:
        known = adaptation_of(
            result.scorer.builder.hierarchy(configuration), result.scorer.performance_model(configuration)
        )
        data["adaptive"] = known.model_dump(exclude_none=True, exclude_unset=True)
    return Profile.model_validate(data)


def _best_lengths(result: CalibrationResult, configuration: Configuration) -> tuple[int, ...]:
    """Return the best fixed lengths for an adaptive configuration's levels, for users of the static policy."""
    same = [
        score.configuration.periods
        for score in result.found.scores
        if score.configuration.specs == configuration.specs and score.configuration.periods
    ]
    return same[0] if same else (2, 4)[-max(1, len(configuration.specs)) :]


def _level(spec: LevelSpec, target: LevelSpec) -> dict[str, Any]:
    level: dict[str, Any] = {"weights": spec.weights} if spec.weights else {}
    if spec.model != target.model:
        level = {"model": spec.model}
    elif spec.exit_layer != target.exit_layer:
        level = {"exit_layer": spec.exit_layer} | level
    return level | ({"head": spec.head_size} if spec.head_size else {})


def verdict(result: CalibrationResult) -> str:
    """Return the caveat of the check on unseen prompts, and its reliability."""
    few = f" {result.caveat}" if result.caveat else ""
    if result.winner == PLAIN:
        fastest = "Speculation does not pay here: plain decoding is the fastest of all"
        return f"{fastest} that {'was timed' if advice(result) is None else 'could be chosen'}.{few}"
    plain = result.ratio(result.winner, PLAIN)
    said = (
        f"On prompts that it was not calibrated on {plain.value:.2f} times as fast as the target alone{_within(plain)}"
    )
    baselines = result.baselines()
    single = baselines.get("single-layer")
    for kind, known_as in (
        ("single-layer", ""),
        ("single-layer-published", ", the best exit of the full weights"),
        ("hispec-published", ", the best two of them"),
    ):
        one = baselines.get(kind)
        if one is not None and one != result.winner:
            over = result.ratio(result.winner, one)
            what = one.describe(result.scorer.builder.target) + known_as
            said += f", {over.value:.2f} times as fast as {what}{_within(over)}"
    if (over_defaults := result.over_defaults) is not None and result.beats_defaults:
        said += f", {over_defaults.value:.2f} times as fast as hispec without a profile{_within(over_defaults)}"
    if single == result.winner:
        said += "; no hierarchy and no adaptive policy was faster"
    return f"{said}.{few}"


def advice(result: CalibrationResult) -> str | None:
    """Return what to do where the winner is not faster than decoding without a profile, by more than its noise."""
    over = result.over_defaults
    if over is None or result.beats_defaults:
        return None
    slower = over.ci95 is not None and over.ci95[1] < 1
    target = result.scorer.builder.target
    model = shlex.quote(target) if target.isprintable() else "MODEL"  # this is a line of the profile, too
    return (
        f"The winner is {'slower' if slower else 'not measurably faster'} than hispec without a profile, "
        f"{over.value:.2f} times as fast{_within(over)}: use the model without this profile, --model {model}."
    )


def _within(speed: Speed) -> str:
    return f" ({speed.ci95[0]:.2f} to {speed.ci95[1]:.2f})" if speed.ci95 else ""


def _figures(speed: Speed) -> dict[str, Any]:
    interval = [round(end, 3) for end in speed.ci95] if speed.ci95 else None
    return {"value": round(speed.value, 3), "ci95": interval}


def _commented(data: Mapping[str, Any]) -> str:
    """Return YAML with a comment above each section that has one; small lists and mappings on one line."""
    parts = []
    for key, value in data.items():
        leaves = None if isinstance(value, dict | list) else False
        text = yaml.safe_dump({key: value}, sort_keys=False, width=110, default_flow_style=leaves, allow_unicode=True)
        parts.append((f"# {COMMENTS[key]}\n" if key in COMMENTS else "") + text)
    return "".join(parts)


def write_profile(path: Path, text: str) -> Profile:
    """Write it, all or nothing, and read it back.

    Raises:
        UnavailableError: the file cannot be written.
    """
    write_whole(path, text.encode(), "choose another place with --write")
    return read_profile(path)
