"""From a profile to the levels that decode it, and the models that these read."""

from collections.abc import Mapping

from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.errors import ProfileError
from hispec.models.stack import LayerStack
from hispec.profile import Draft, Profile


def build_hierarchy(profile: Profile, mode: str, stacks: Mapping[str, LayerStack]) -> Hierarchy:
    """The levels of a mode: `hispec` all that the profile names, `single-layer` draft and target, else the target."""
    levels = []
    draft, intermediate, target = profile.draft, profile.intermediate, stacks[profile.target.model]
    if mode == "single-layer" and profile.single_layer is not None:
        draft = Draft(exit_layer=profile.single_layer.exit_layer)
    if draft is not None and mode != "autoregressive":
        if draft.ngram is not None:
            levels.append(Level("guesses", None, 0))
        if draft.exit_layer is not None or draft.model is not None:
            stack = stacks[draft.model or profile.target.model]
            levels.append(Level("draft", stack, draft.exit_layer or stack.num_layers))
    if intermediate is not None and mode == "hispec":
        stack = stacks[intermediate.model or profile.target.model]
        levels.append(Level("intermediate", stack, intermediate.exit_layer or stack.num_layers))
    try:
        return Hierarchy([*levels, Level("target", target, target.num_layers)])
    except ValueError as error:
        raise ProfileError(f"profile {profile.name}: {error}", "order the levels from shallow to deep") from None


def models_of(profile: Profile, mode: str) -> dict[str, str | None]:
    """The models that a mode of a profile reads, each once with its revision, the target first."""
    lower = []
    if mode != "autoregressive" and profile.draft is not None:
        lower.append(profile.draft.model)
    if mode == "hispec" and profile.intermediate is not None:
        lower.append(profile.intermediate.model)
    own = profile.target.model
    return {own: profile.target.revision} | {model: None for model in lower if model not in (None, own)}
