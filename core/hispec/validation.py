"""What would keep a profile from being decoded, as far as the files at hand say: no weights are read, no network is used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hispec.models.metadata import check_folder, find_file, looks_local, read_generation_config
from hispec.precedence import resolve_settings
from hispec.profile import Profile, Target, check_depths, models_of, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hispec.models.stack import LayerStack

MODES: tuple[Literal["hispec", "single-layer"], ...] = ("hispec", "single-layer")
UNKNOWN = 1 << 40
"""Layers and words of a model that is not here: nothing is too deep or too many for it."""


def check_at_hand(profile: Profile) -> list[str]:
    """Refuse what decoding a profile would refuse, as far as that can be known from files on this machine.

    The hub's client must have been told to stay offline (`HF_HUB_OFFLINE=1`) before it is imported.

    Args:
        profile: any.

    Returns:
        Models that are not on this machine and were therefore not looked at.

    Raises:
        UsageError: a model that cannot be one, or one that is not there; exits, heads, translators, a chat template or a
            vocabulary that do not fit the models.
        UnavailableError: weights that are incomplete or damaged.
    """
    settings, _ = resolve_settings({}, profile, generation_config=read_generation_config(profile.target))
    targets = [
        Target(model=model, revision=revision)
        for model, revision in {name: rev for mode in MODES for name, rev in models_of(profile, mode).items()}.items()
    ]
    here = [target for target in targets if _is_here(target)]
    stand_ins = {target.model: _StandIn(target.model, UNKNOWN, UNKNOWN) for target in targets}
    if here or profile.translators is not None or _has_head(profile):
        stand_ins |= _check_configs(profile, here, quantization=settings.quantization)
        _check_levels(profile, stand_ins)
    tokenizers = {target.model: _tokenizer(target) for target in here}
    _check_texts(profile, {model: one for model, one in tokenizers.items() if one is not None})
    for target in here:
        _check_weights(target)
    return [target.model for target in targets if target not in here]


@dataclass(frozen=True, eq=False)
class _StandIn:
    """What a hierarchy asks of a stack while it is built, known without weights."""

    name: str
    num_layers: int
    vocab_size: int
    cache: object = field(default_factory=object)

    @property
    def dtype(self) -> Any:
        import torch

        return torch.float32

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def reduce_head(self, ids: Any) -> None:
        """A head without weights."""


def _is_here(target: Target) -> bool:
    """Whether a model's configuration is on this machine; refuses names that no model can have."""
    model = resolve_model(target.model)
    check_folder(model)
    return looks_local(model) or find_file(target, "config.json") is not None


def _has_head(profile: Profile) -> bool:
    return any(level is not None and level.head is not None for level in (profile.draft, profile.intermediate))


def _check_configs(profile: Profile, here: list[Target], *, quantization: str) -> dict[str, _StandIn]:
    """Refuse configurations, depths and translators as loading does; returns what is known of each model."""
    from hispec.levels import open_translators  # takes seconds: torch
    from hispec.models.loading import load_config
    from hispec.models.placement import check_not_quantized
    from hispec.models.translator import digest_of_model

    translators = open_translators(profile)
    found = {}
    for target in here:
        model = resolve_model(target.model)
        config = load_config(model, target.revision)
        check_depths(profile, target.model, config.num_layers)
        if quantization != "none":
            check_not_quantized(target.model, config.quantized)
        if translators is not None and target.model == profile.target.model:
            translators.check_shape(target.model, config.hidden_size, config.num_layers)
            translators.check_model(target.model, digest_of_model(model, target.revision, config.num_layers))
        found[target.model] = _StandIn(target.model, config.num_layers, config.vocab_size)
    return found


def _check_levels(profile: Profile, stand_ins: dict[str, _StandIn]) -> None:
    """Refuse levels out of order, and heads that the token frequencies do not reach."""
    from hispec.levels import build_hierarchy

    for mode in MODES:
        build_hierarchy(profile, mode, cast("dict[str, LayerStack]", stand_ins))


def _tokenizer(target: Target) -> "PreTrainedTokenizerBase | None":
    """A model's tokenizer; None for a hub model whose tokenizer was not downloaded yet."""
    from hispec.models.checkpoint import VOCABULARIES
    from hispec.models.loading import load_tokenizer

    model = resolve_model(target.model)
    if not Path(model).is_dir() and not any(find_file(target, name) for name in ("tokenizer.json", *VOCABULARIES)):
        return None
    return load_tokenizer(model, target.revision)


def _check_texts(profile: Profile, tokenizers: "dict[str, PreTrainedTokenizerBase]") -> None:
    """Refuse vocabularies that differ, and a chat template that fails on a first message."""
    own = profile.target.model
    if own in tokenizers:
        from hispec.text import encode_prompt
        from hispec.vocabulary import check_vocabulary

        for model, tokenizer in tokenizers.items():
            check_vocabulary(tokenizers[own], tokenizer, own, model)
        encode_prompt(tokenizers[own], "Hello", template=profile.chat_template)
    elif profile.chat_template:
        from hispec.chat_template import check_syntax

        check_syntax(profile.chat_template)


def _check_weights(target: Target) -> None:
    """Refuse weights that are here and cannot be loaded; those of a hub model may be downloaded yet."""
    from hispec.models.loading import check_weights

    check_weights(resolve_model(target.model), target.revision)
