"""The options of a checkpoint's `generation_config.json` beyond the settings: each is applied, or reported as ignored.

Its author wrote it for `transformers`, whose processors are applied here in its order. It is not the user's, so nothing
in it is fatal.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampling
from hispec.precedence import usable_settings
from hispec.settings import SETTINGS, Settings


@dataclass(frozen=True)
class Conditions:
    """The values that processors depend on besides their own options.

    Attributes:
        prompt: token ids, [1, prompt].
        max_length: the limit of the whole text, prompt included, in tokens.
        eos: ids that end a text, [ends]; None where there are none.
        vocab_size: the target's vocabulary size.
    """

    prompt: Tensor
    max_length: int
    eos: Tensor | None
    vocab_size: int

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        eos_ids: Collection[int],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> "Conditions":
        """Put ids on a device."""
        prompt = torch.tensor([[*prompt_ids]], dtype=torch.long, device=device)
        ends = sorted(token for token in eos_ids if token < vocab_size)
        eos = torch.tensor(ends, dtype=torch.long, device=device) if ends else None
        return cls(prompt, len(prompt_ids) + max_new_tokens, eos, vocab_size)

    @property
    def length(self) -> int:
        """Return the number of the prompt's tokens."""
        return self.prompt.shape[1]

    @property
    def device(self) -> torch.device:
        """Return where the logits are."""
        return self.prompt.device


Maker = Callable[[Any, Conditions], hf.LogitsProcessor | None]
"""Makes the processor of an option's value; None where it would do nothing. Raises anything at nonsense."""

PROCESSORS: dict[str, Maker] = {
    "sequence_bias": lambda value, _: hf.SequenceBiasLogitsProcessor(value),
    "encoder_repetition_penalty": lambda value, at: (
        hf.EncoderRepetitionPenaltyLogitsProcessor(value, at.prompt) if value != 1 else None
    ),
    "repetition_penalty": lambda value, _: hf.RepetitionPenaltyLogitsProcessor(value) if value != 1 else None,
    "no_repeat_ngram_size": lambda value, _: hf.NoRepeatNGramLogitsProcessor(value) if value > 0 else None,
    "encoder_no_repeat_ngram_size": lambda value, at: (
        hf.EncoderNoRepeatNGramLogitsProcessor(value, at.prompt) if value > 0 else None
    ),
    "bad_words_ids": lambda value, at: hf.NoBadWordsLogitsProcessor(value, at.eos),
    "min_length": lambda value, at: (
        hf.MinLengthLogitsProcessor(value, at.eos, at.device) if value > 0 and at.eos is not None else None
    ),
    "min_new_tokens": lambda value, at: (
        hf.MinNewTokensLengthLogitsProcessor(at.length, value, at.eos, at.device)
        if value > 0 and at.eos is not None
        else None
    ),
    "forced_bos_token_id": lambda value, _: hf.ForcedBOSTokenLogitsProcessor(value),
    "forced_eos_token_id": lambda value, at: hf.ForcedEOSTokenLogitsProcessor(at.max_length, value, at.device),
    "remove_invalid_values": lambda value, _: hf.InfNanRemoveLogitsProcessor() if value is True else None,
    "exponential_decay_length_penalty": lambda value, at: (
        hf.ExponentialDecayLengthPenalty(tuple(map(float, value)), at.eos, at.length) if at.eos is not None else None
    ),
    "suppress_tokens": lambda value, at: hf.SuppressTokensLogitsProcessor(value, at.device),
    "begin_suppress_tokens": lambda value, at: hf.SuppressTokensAtBeginLogitsProcessor(value, at.length, at.device),
}
"""In the order of `transformers`; before sampling's."""

WARPERS: dict[str, Maker] = {
    "temperature": lambda value, _: hf.TemperatureLogitsWarper(value) if value != 1 else None,
    "top_h": lambda value, _: hf.TopHLogitsWarper(value),
    "top_k": lambda value, _: hf.TopKLogitsWarper(value) if value else None,
    "top_p": lambda value, _: hf.TopPLogitsWarper(value) if value < 1 else None,
    "min_p": lambda value, _: hf.MinPLogitsWarper(value) if value else None,
    "typical_p": lambda value, _: hf.TypicalLogitsWarper(value) if value < 1 else None,
    "epsilon_cutoff": lambda value, _: hf.EpsilonLogitsWarper(value) if 0 < value < 1 else None,
    "eta_cutoff": lambda value, at: hf.EtaLogitsWarper(value, device=at.device) if 0 < value < 1 else None,
}
"""In the order of `transformers`; in sampling only."""

LAST: dict[str, Maker] = {
    "watermarking_config": lambda value, at: hf.WatermarkingConfig(**value).construct_processor(
        at.vocab_size, at.device
    ),
    "renormalize_logits": lambda value, _: hf.LogitNormalization() if value is True else None,
}
"""In the order of `transformers`; after sampling's."""

MAKERS = PROCESSORS | WARPERS | LAST

OF_SETTINGS = MAKERS.keys() & SETTINGS.keys()
"""Options that are settings, too: their values come from there."""

ELSEWHERE = (
    "do_sample", "eos_token_id", "stop_strings", "max_new_tokens", "max_length", "bos_token_id", "pad_token_id",
    "decoder_start_token_id", "transformers_version", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config",
    "low_memory", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "early_stopping", "length_penalty", "use_mtp", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
)  # fmt: skip
"""Options that are read elsewhere, or say how fast and in what form `generate` answers, not what."""

ONE_IS_NONE = ("num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale")
"""Options for which 1 is the same as nothing."""


@dataclass(frozen=True)
class GenerationOptions:
    """The options of a generation config that are applied.

    Attributes:
        values: the options by name, all of them keys of `MAKERS`; those of warpers only if the config samples.
        stop: texts that end an answer.
        eos_ids: ids that end an answer; empty where the config names none.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()

    def in_force(self, settings: Settings) -> dict[str, Any]:
        """Return all options that shape the logits under some settings, as arguments of a `GenerationConfig`."""
        own = OF_SETTINGS if settings.temperature > 0 else {"repetition_penalty"}
        options = dict(self.values) | {name: getattr(settings, name) for name in own}
        return options if settings.temperature > 0 else {key: options[key] for key in options.keys() - WARPERS.keys()}

    def to_record(self) -> dict[str, Any]:
        """Return the options as a generation config has them, empty where none is applied."""
        return {**self.values, **({"stop_strings": list(self.stop)} if self.stop else {})}

    def sampling(self, settings: Settings, conditions: Conditions) -> Sampling:
        """Return how tokens are chosen for one prompt.

        Our own temperature, top-k, top-p and min-p come after all processors; where options ask for something between
        or after these, those of `transformers` are applied instead, and `Sampling`'s are neutral.
        """
        options = self.in_force(settings)
        if settings.temperature == 0:
            return Sampling(0.0, processors=make_processors(options, conditions))
        if options.keys() & (WARPERS.keys() | LAST.keys()) - OF_SETTINGS:
            return Sampling(1.0, processors=make_processors(options, conditions))
        before = {key: value for key, value in options.items() if key in PROCESSORS}
        processors = make_processors(before, conditions)
        return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.min_p, processors)


def make_processors(options: Mapping[str, Any], conditions: Conditions) -> Processors:
    """Make the processors of options in the order of `transformers`."""
    made = (make(options[key], conditions) for key, make in MAKERS.items() if key in options)
    return Processors([processor for processor in made if processor is not None])


def read_generation_options(config: Mapping[str, Any], vocab_size: int, eos_ids: Collection[int]) -> GenerationOptions:
    """Return the options of a generation config that are applied, and warn, on one line, of the others.

    Args:
        config: the object in `generation_config.json`.
        vocab_size: the target's vocabulary size.
        eos_ids: ids that end a text where the config names none.
    """
    ends, stop = _ids(config.get("eos_token_id")), _texts(config.get("stop_strings"))
    conditions = Conditions.of([0], 1, ends or eos_ids, vocab_size)
    values: dict[str, Any] = {}
    unusable = usable_settings(config)[1]
    for key in MAKERS.keys() - OF_SETTINGS:
        value = config.get(key)
        if value is None or value == [] or (key in WARPERS and config.get("do_sample") is not True):
            continue
        if key == "min_length" and config.get("min_new_tokens") is not None:  # `generate` ignores it then
            continue
        try:
            acts = _try(MAKERS[key], value, conditions)
        except Exception:  # the library's own checks, or its arithmetic, may raise anything
            unusable.append(key)
        else:
            values |= {key: value} if acts else {}
    unusable += ["eos_token_id"] if ends is None else []
    unusable += ["stop_strings"] if stop is None else []
    _warn(config, sorted(key for key, value in config.items() if _is_left_out(key, value)), sorted(unusable))
    return GenerationOptions(values, stop or (), ends or frozenset())


def _try(make: Maker, value: Any, conditions: Conditions) -> bool:
    """Run a processor on texts of one and two tokens, which raises where it cannot; return whether there is one."""
    processor = make(value, conditions)
    if processor is None:
        return False
    for text in ([[0]], [[0, 0]]):
        processor(torch.tensor(text), torch.zeros(1, conditions.vocab_size))
    return True


def _is_left_out(key: str, value: Any) -> bool:
    """Return whether `generate` would write something else for the sake of an option that has no place here."""
    if key in MAKERS or key in ELSEWHERE or key.startswith("_") or key not in vars(hf.GenerationConfig()):
        return False
    return value not in (None, False, 0, [], {}) and not (key in ONE_IS_NONE and value == 1)


def _warn(config: Mapping[str, Any], left_out: Sequence[str], unusable: Sequence[str]) -> None:
    """Name options on one line."""
    parts = []
    for words, keys in (("not applied here", left_out), ("not usable, so left out", unusable)):
        if keys:
            parts.append(f"{words}: " + ", ".join(f"{key} {_short(config[key])}" for key in keys))
    if parts:
        warnings.warn(f"generation_config.json: {'; '.join(parts)}", stacklevel=3)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _ids(value: Any) -> frozenset[int] | None:
    """Return token ids, one or several; None where they are nonsense."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    good = frozenset(token for token in ids if isinstance(token, int) and token >= 0)
    return good if good or not ids else None


def _texts(value: Any) -> tuple[str, ...] | None:
    """Return texts, one or several; None where they are nonsense."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(texts) if all(isinstance(text, str) and text for text in texts) else None
