"""The names of a benchmark's arms, and what they need. Importing it is fast, so that `--help` can list them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hispec.errors import UsageError
from hispec.settings import SETTINGS

if TYPE_CHECKING:
    from hispec.profile import Profile
    from hispec.settings import Settings

OWN_ARMS = SETTINGS["mode"].choices
RECYCLING = "recycling"
"""The arm that has n-gram and recycled drafts alone below the target."""
TRANSFORMERS_ARMS = ("hf", "hf-early-exit", "hf-assisted", "prompt-lookup")
PUBLISHED_ARMS = ("hispec-published", "single-layer-published")
"""Modes of our engine with levels as published: exits of the full weights."""
ARMS = (*OWN_ARMS, *PUBLISHED_ARMS, RECYCLING, *TRANSFORMERS_ARMS)
REFERENCE = "autoregressive"
"""The arm whose token ids all others are compared with."""

BASELINES = ("autoregressive", "hf", "single-layer", "single-layer-published", RECYCLING)
"""The arms that speed-ups are stated against, where the same run measured them."""


def default_arms(profile: "Profile") -> list[str]:
    """Return the default arms; `single-layer-published` is among them if `single-layer` reads other weights."""
    from hispec.profile import levels_of

    quantized = any(level.weights for mode in ("hispec", "single-layer") for level in levels_of(profile, mode))
    return ["hispec", "single-layer", *(["single-layer-published"] if quantized else []), REFERENCE]


def exit_of(profile: "Profile") -> int | None:
    """Return the exit of the target that drafts where a draft is verified by the target alone; None where none does."""
    levels = (profile.single_layer, profile.draft)
    return next((level.exit_layer for level in levels if level is not None and level.exit_layer is not None), None)


def check_arms(names: Sequence[str], profile: "Profile", settings: "Settings") -> None:
    """Raise if an arm is not possible with these settings.

    Args:
        names: the names of the arms.
        profile: the profile whose levels the arms have.
        settings: the settings of loading.

    Raises:
        UsageError: no such arm, one that the profile has no levels or no model for, or one of `transformers` that
            cannot compute with the weights.
    """
    draft, tuned = profile.draft, profile.single_layer
    for name in names:
        if name not in ARMS:
            raise UsageError(f"there is no arm {name!r}", f"known: {', '.join(ARMS)}")
        lacks = {
            "hispec": draft is None and not settings.lookup and "levels below the target",
            "single-layer": draft is None and tuned is None and "a draft level",
            "hf-early-exit": exit_of(profile) is None and "a draft exit of the target",
            "hf-assisted": (draft is None or draft.model is None) and "a draft model",
        }.get(name)
        if lacks:
            raise UsageError(
                f"arm {name} needs {lacks}, and profile {profile.name} has none",
                "leave it out of --arms, or choose another profile",
            )
        if name in TRANSFORMERS_ARMS and settings.quantizes_fused:
            raise UsageError(
                f"arm {name} is of transformers, which cannot compute with the {settings.quantization} weights",
                "leave it out of --arms, or choose --quantization 4bit or 8bit",
            )
