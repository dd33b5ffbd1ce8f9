"""What the arms of a benchmark are called, and what they need. Imports little, so that `--help` can name them at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hispec.errors import UsageError
from hispec.settings import SETTINGS

if TYPE_CHECKING:
    from hispec.profile import Profile

OWN_ARMS = SETTINGS["mode"].choices
TRANSFORMERS_ARMS = ("hf", "hf-early-exit", "hf-assisted", "prompt-lookup")
ARMS = (*OWN_ARMS, *TRANSFORMERS_ARMS)
REFERENCE = "autoregressive"
"""The arm whose token ids every other must write."""

BASELINES = ("autoregressive", "hf", "single-layer")
"""The arms that speed-ups are stated against, where the same run measured them."""


def check_arms(names: Sequence[str], profile: "Profile") -> None:
    """Refuse arms that a profile cannot give.

    Raises:
        UsageError: no such arm, or one that the profile has no levels or no model for.
    """
    draft, tuned = profile.draft, profile.single_layer
    for name in names:
        if name not in ARMS:
            raise UsageError(f"there is no arm {name!r}", f"known: {', '.join(ARMS)}")
        lacks = {
            "hispec": draft is None and "levels below the target",
            "single-layer": draft is None and tuned is None and "a draft level",
            "hf-early-exit": tuned is None
            and (draft is None or draft.exit_layer is None)
            and "a draft exit of the target",
            "hf-assisted": (draft is None or draft.model is None) and "a draft model",
        }.get(name)
        if lacks:
            raise UsageError(
                f"arm {name} needs {lacks}, and profile {profile.name} has none",
                "leave it out of --arms, or choose another profile",
            )
