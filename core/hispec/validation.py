"""Checks of a profile that need only files on this machine: neither weights nor the network."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from hispec.models.checkpoint import Checkpoint, checkpoints_of
from hispec.precedence import resolve_settings
from hispec.profile import Profile, check_depths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hispec.models.stack import LayerStack

MODES: tuple[Literal["hispec", "single-layer"], ...] = ("hispec", "single-layer")
UNKNOWN = 1 << 40
"""The assumed layers and vocabulary of a model that is not on this machine, so that no level exceeds them."""


def check_at_hand(profile: Profile) -> list[str]:
    """Refuse what decoding a profile would refuse, as far as that can be known from files on this machine.

    The hub's client must be set offline (`HF_HUB_OFFLINE=1`) before it is imported.

    Args:
        profile: any.

    Returns:
        Models that are not on this machine and were therefore not looked at.

    Raises:
        UsageError: a model that cannot be one, or one that is not there; exits, heads, translators, a chat template or a
            vocabulary that do not fit the models.
        UnavailableError: weights that are incomplete or damaged.
    """
    checkpoints = checkpoints_of(profile, *MODES)
    generation_config = checkpoints[profile.target.model].generation_config_here()
    settings, _ = resolve_settings({}, profile, generation_config=generation_config)
    here = [checkpoint for checkpoint in checkpoints.values() if _is_here(checkpoint)]
    stand_ins = {name: _StandIn(name, UNKNOWN, UNKNOWN) for name in checkpoints}
    if here or profile.translators is not None or _has_head(profile):
        stand_ins |= _check_configs(profile, here, quantization=settings.quantization)
        _check_levels(profile, stand_ins)
    tokenizers = {checkpoint.name: _tokenizer(checkpoint) for checkpoint in here}
    _check_texts(profile, {model: one for model, one in tokenizers.items() if one is not None})
    for checkpoint in here:
        _check_weights(checkpoint)
    return [name for name, checkpoint in checkpoints.items() if checkpoint not in here]


@dataclass(frozen=True, eq=False)
class _StandIn:
    """The properties of a stack that building a hierarchy needs, known without weights."""

    name: str
    num_layers: int
    vocab_size: int
    cache: object = field(default_factory=object)

    def quantized(self, weights: str, layers: int) -> "_StandIn":
        return replace(self)

    @property
    def dtype(self) -> Any:
        import torch

        return torch.float32

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def reduce_head(self, ids: Any) -> None:
        """Return a head without weights."""


def _is_here(checkpoint: Checkpoint) -> bool:
    """Return whether a model's configuration is on this machine; refuses names that no model can have."""
    checkpoint.check_name()
    return checkpoint.here(checkpoint.config_file) is not None


def _has_head(profile: Profile) -> bool:
    return any(level is not None and level.head is not None for level in (profile.draft, profile.intermediate))


def _check_configs(profile: Profile, here: list[Checkpoint], *, quantization: str) -> dict[str, _StandIn]:
    """Raise for configurations, depths and translators that loading would refuse; return the known properties of each
    model.
    """
    from hispec.levels import check_copies, check_drafter, open_translators  # takes seconds: torch
    from hispec.models.placement import Placement
    from hispec.models.translator import digest_of_model

    translators = open_translators(profile)
    found = {}
    for checkpoint in here:
        name, config = checkpoint.name, checkpoint.config
        check_depths(profile, name, config.num_layers)
        reason = Placement(quantization=quantization).check(config, name)
        for mode in MODES if name == profile.target.model else ():
            check_copies(profile, mode, reason)
            check_drafter(profile, mode, None)
        if translators is not None and name == profile.target.model:
            translators.check_shape(name, config.hidden_size, config.num_layers)
            translators.check_model(name, digest_of_model(checkpoint, config.num_layers))
        found[name] = _StandIn(name, config.num_layers, config.vocab_size)
    return found


def _check_levels(profile: Profile, stand_ins: dict[str, _StandIn]) -> None:
    """Refuse levels out of order, and heads that the token frequencies do not reach."""
    from hispec.levels import build_hierarchy

    for mode in MODES:
        build_hierarchy(profile, mode, cast("dict[str, LayerStack]", stand_ins))


def _tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase | None":
    """Return a model's tokenizer; None for a hub model whose tokenizer was not downloaded yet."""
    from hispec.models.tokenizer import load_tokenizer

    if not checkpoint.is_local and not checkpoint.has_tokenizer:
        return None
    return load_tokenizer(checkpoint)


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


def _check_weights(checkpoint: Checkpoint) -> None:
    """Refuse weights that are here and cannot be loaded; those of a hub model may be downloaded yet."""
    from hispec.models.loading import check_weights

    check_weights(checkpoint)
