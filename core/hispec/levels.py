"""Builds the hierarchy of a profile from loaded models."""

from collections.abc import Mapping
from pathlib import Path

import torch

from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.ngram_drafters import drafter_names
from hispec.errors import ProfileError, UnavailableError
from hispec.frequencies import frequent_ids
from hispec.models.stack import LayerStack, ReducedHead
from hispec.models.translator import Translator, TranslatorFile
from hispec.profile import DraftSection, IntermediateSection, Profile, copies_of, levels_of, ngram_of


def build_hierarchy(
    profile: Profile, mode: str, stacks: Mapping[str, LayerStack], lookup: bool | None = None
) -> Hierarchy:
    """Return the levels of a mode: `hispec` all that the profile names, `single-layer` draft and target, else the
    target.

    Args:
        profile: the profile whose levels are built.
        mode: the decoding mode.
        stacks: the loaded stacks, by the names that the profile has for the models.
        lookup: whether n-gram drafts are below them; None: as the profile says. Plain decoding never has them.

    Raises:
        ProfileError: levels out of order, or a reduced head without the token frequencies for it.
        HispecError: translators that cannot be read, see `TranslatorFile`; or weights that a stack cannot quantize.
    """
    levels: list[Level] = []
    heads = _Heads(profile, target_vocab=stacks[profile.target.model].vocab_size)
    target = stacks[profile.target.model]
    copies = copies_of(profile, mode, target.num_layers)
    translators = open_translators(profile)

    def translator(exit_layer: int) -> Translator | None:
        found = None if translators is None else translators.read(exit_layer)
        return None if found is None else found.on(target)

    def reading(name: str, section: DraftSection | IntermediateSection) -> Level:
        stack = stacks[section.model or profile.target.model]
        own = stack is target
        exit_layer = section.exit_layer or stack.num_layers
        if section.weights is not None:  # levels of equal weights share one copy, and so its hidden states
            stack = stack.quantized(section.weights, copies[section.weights])
        head = heads.of(stack, section.head)
        # Exits of a copy are read through those of the full weights, which serve them as well: docs/exits.md.
        return Level(name, stack, exit_layer, head, translator(exit_layer) if own else None, weights=section.weights)

    if (ngrams := ngram_of(profile, mode, lookup)) is not None:
        levels.append(Level.of_ngrams(ngrams.max, ngrams.tokens, ngrams.drafter))
    for section in levels_of(profile, mode):
        if isinstance(section, IntermediateSection):
            levels.append(reading("intermediate", section))
        elif section.reads_model:
            levels.append(reading("draft", section))
    try:
        return Hierarchy([*levels, Level("target", target, target.num_layers)])
    except ValueError as error:
        raise ProfileError(f"profile {profile.name}: {error}", "order the levels from shallow to deep") from None


def check_copies(profile: Profile, mode: str, reason: str | None) -> None:
    """Refuse levels of quantized weights of a target that does not run on the fused stack.

    Args:
        profile: the profile whose levels are checked.
        mode: the decoding mode.
        reason: the reason why the target does not run on the fused stack, as `Placement.check` returns it.

    Raises:
        UnavailableError: naming the reason.
    """
    formats = [level.weights for level in levels_of(profile, mode) if level.weights is not None]
    if formats and reason is not None:
        raise UnavailableError(
            f"levels of {formats[0]} weights need the fused stack, on which {profile.target.model} does not run: {reason}",
            "leave out what keeps it from there, or the weights of the draft and intermediate levels",
        )


def check_drafter(profile: Profile, mode: str, lookup: bool | None) -> None:
    """Refuse an n-gram drafter that does not exist; arguments as `build_hierarchy`.

    Raises:
        ProfileError: naming those that do.
    """
    ngram = ngram_of(profile, mode, lookup)
    if ngram is not None and ngram.drafter not in drafter_names():
        raise ProfileError(
            f"profile {profile.name}: draft.ngram.drafter: there is no n-gram drafter {ngram.drafter!r}",
            f"give one of these: {', '.join(drafter_names())}",
        )


class _Heads:
    """Reduced heads, each made once: levels with heads of the same size on the same model share one."""

    def __init__(self, profile: Profile, target_vocab: int) -> None:
        self._profile, self._target_vocab = profile, target_vocab
        self._known: dict[tuple[str, int], ReducedHead] = {}

    def of(self, stack: LayerStack, head_size: int | None) -> ReducedHead | None:
        """Return the head for a model's most frequent tokens, None for the whole head."""
        if head_size is None:
            return None
        if (stack.name, head_size) not in self._known:
            ids = frequent_ids(self._profile, head_size)
            both = min(stack.vocab_size, self._target_vocab)
            own = sorted(id_ for id_ in ids if id_ < both)
            if not own:
                raise ProfileError(
                    f"profile {self._profile.name}: none of the {head_size} most frequent tokens is one of {stack.name}",
                    "count them again with: python -m hispec.frequencies; then name the file as the profile's frequencies",
                )
            self._known[stack.name, head_size] = stack.reduce_head(torch.tensor(own))
        return self._known[stack.name, head_size]


def deepest_exit(profile: Profile, model: str) -> int:
    """Return the most layers of a model that a level below the target reads and leaves; 0 where all read its whole
    depth.
    """
    levels = (profile.draft, profile.intermediate, profile.single_layer)
    own = profile.target.model
    exits = [
        level.exit_layer for level in levels if level is not None and (getattr(level, "model", None) or own) == model
    ]
    return max((exit_layer for exit_layer in exits if exit_layer is not None), default=0)


def open_translators(profile: Profile) -> TranslatorFile | None:
    """Return the translators that a profile names, None where it names none; errors as `TranslatorFile`."""
    return None if profile.translators is None else TranslatorFile(Path(profile.translators))
