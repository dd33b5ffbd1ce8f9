"""Hierarchical decoding inside `transformers`: `model.generate(**inputs, custom_generate=hispec.custom_generate)`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput

from hispec.adaptation import performance_model
from hispec.counts import counted
from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampling
from hispec.errors import UsageError
from hispec.events import Committed
from hispec.levels import build_hierarchy
from hispec.models.checkpoint import Checkpoint
from hispec.models.transformers_stack import TransformersStack
from hispec.models.translator import TranslatorFile, digest_of_model
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.static import StaticPolicy
from hispec.profile import check_depths, profile_for_model, without_copies
from hispec.settings import Settings

REMEMBERING = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
}
"""Processors of `transformers` whose output depends on their earlier calls, and the options that enable them."""

OTHER_MODES = (
    "penalty_alpha",
    "dola_layers",
    "force_words_ids",
    "constraints",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)
"""Options of `generate` that ask for another way of decoding."""

PREPARED = (
    "attention_mask",
    "position_ids",
    "cache",
    "past_key_values",
    "cache_position",
    "use_cache",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
)
"""Arguments that `generate` passes by itself, or that are checked before."""


def custom_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    draft_exit: int | None = None,
    intermediate_exit: int | None = None,
    draft_tokens: int | None = None,
    validate_every: int | None = None,
    translators: str | Path | None = None,
    spec_streamer: BaseStreamer | None = None,
    seed: int | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode a model hierarchically; `generate` calls it, and the keyword arguments are passed to that.

    Greedy output is that of `generate` itself, sampled output has its distribution (`seed` or `torch.manual_seed`
    repeats it).
    Logits processors are applied to every level; as drafts that are refused are seen by them too, they must depend on
    nothing but their arguments, and they run in inference mode. Stopping criteria see every validated token, one by
    one, and no other (no scores). `generate` does not hand `tokenizer=` on, so instead of `stop_strings=` pass
    `stopping_criteria=[StopStringCriteria(tokenizer, [...])]`.

    Args:
        model: a decoder-only model of a supported family, with `sdpa` attention.
        input_ids: [1, prompt].
        logits_processor: the processors that `generate` prepared, warpers included.
        stopping_criteria: the criteria that `generate` prepared: lengths, EOS, time, the caller's own.
        generation_config: the config that `generate` prepared.
        draft_exit: layers that draft.
        intermediate_exit: layers that verify drafts. With neither exit given, a model that was trained for early exit, as
            its name tells, drafts with an eighth of its depth, and any other with n-grams of the text alone.
        draft_tokens: tokens drafted before the next level verifies, N_d. With neither length given, confidence and measured
            costs decide.
        validate_every: tentatively accepted tokens before the target verifies, N_i.
        translators: a file that `hispec fit-exits` wrote for this model; its first two exits are then the default.
        spec_streamer: receives the prompt, then each validated token (`generate` keeps `streamer` for itself).
        seed: the seed of sampled output, which depends on prompt and seed only, not on exits and lengths; if None, it
            is drawn from torch's own generator.
        model_kwargs: the arguments that `generate` prepared for `forward`; an attention mask is accepted if it masks
            nothing.

    Returns:
        The prompt and the new tokens, [1, prompt + new], in an output object if `return_dict_in_generate`.

    Raises:
        UsageError: a model that cannot be run in spans, exits that are too deep, translators of another model, a
            length beyond its context (for a sliding window: the window).
        UnavailableError: translators that are damaged.
        ValueError: anything asked for that is not done here: several sequences, padding, beams, scores, a cache...
    """
    _refuse_what_is_not_decoded_here(input_ids, generation_config, logits_processor, model_kwargs)
    for option, count in (("draft_tokens", draft_tokens), ("validate_every", validate_every)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise UsageError(f"{option} is {count!r}", "give a whole number of at least 1")
    training = {module: module.training for module in model.modules()}
    try:
        return _generate(
            model, input_ids, logits_processor, stopping_criteria, generation_config,
            (draft_exit, intermediate_exit), (draft_tokens, validate_every), translators, spec_streamer, seed,
        )  # fmt: skip
    finally:
        for module, before in training.items():
            module.training = before


def _generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    exits: tuple[int | None, int | None],
    lengths: tuple[int | None, int | None],
    translators: str | Path | None,
    spec_streamer: BaseStreamer | None,
    seed: int | None,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Return the result of `custom_generate`, whose arguments have been checked."""
    name = model.config.name_or_path or model.config.model_type
    stack = TransformersStack(model, name)
    if translators is not None:
        fitted = TranslatorFile(Path(translators))
        fitted.check_shape(name, model.config.hidden_size, stack.num_layers)
        commit = getattr(model.config, "_commit_hash", None)
        if commit is not None or Path(name).is_dir():  # else its files are not at hand
            fitted.check_model(name, digest_of_model(Checkpoint(name, commit), stack.num_layers))
        if exits == (None, None):
            first, *others = fitted.provenance.exits
            exits = first, others[0] if others else None
    profile = without_copies(profile_for_model(name, stack.num_layers, *exits))
    if translators is not None:
        profile = profile.model_copy(update={"translators": str(translators)})
    check_depths(profile, name, stack.num_layers)
    hierarchy = build_hierarchy(profile, "hispec", {name: stack})
    prompt: list[int] = input_ids[0].tolist()
    room = generation_config.max_length - len(prompt)
    if generation_config.max_length > stack.context:
        raise UsageError(
            f"the most tokens asked for are {generation_config.max_length}, and the context of {name} holds {stack.context}",
            f"ask for at most {counted(max(0, stack.context - len(prompt)), 'new token')}",
        )
    eos = generation_config._eos_token_tensor
    decoder = Decoder(
        hierarchy,
        _policy(hierarchy, *lengths),
        lambda *_: _sampling(generation_config, logits_processor),
        eos_ids=() if eos is None else eos.tolist(),
    )
    events = decoder.decode(prompt, room, int(torch.randint(1 << 62, ())) if seed is None else seed)
    if spec_streamer is not None:
        spec_streamer.put(input_ids.cpu())
    text = torch.cat((input_ids, input_ids.new_empty(1, room)), dim=-1)
    length = len(prompt)
    for token in (token for event in events if isinstance(event, Committed) for token in event.token_ids):
        text[0, length] = token
        length += 1
        if spec_streamer is not None:
            spec_streamer.put(text[0, length - 1 : length].cpu())
        if bool(stopping_criteria(text[:, :length], None).all()):
            break
    if spec_streamer is not None:
        spec_streamer.end()
    sequences = text[:, :length].clone()
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences


def _policy(hierarchy: Hierarchy, draft_tokens: int | None, validate_every: int | None) -> Callable[[], Policy]:
    """Return a function that makes policies: static ones if lengths are given."""
    if draft_tokens is None and validate_every is None:
        known = performance_model(hierarchy, None, measured=True)
        return lambda: AdaptivePolicy(known)
    return lambda: StaticPolicy.of(
        hierarchy, draft_tokens or Settings.draft_tokens, validate_every or Settings.validate_every
    )


def _sampling(config: GenerationConfig, processors: LogitsProcessorList) -> Sampling:
    """Return how tokens are chosen; the processors of `generate` hold its warpers, too."""
    return Sampling(1.0 if config.do_sample else 0.0, processors=Processors(processors))


def _refuse_what_is_not_decoded_here(
    input_ids: Tensor, config: GenerationConfig, processors: LogitsProcessorList, kwargs: Mapping[str, Any]
) -> None:
    """Refuse what this function does not decode, by the name that `generate` gives it: nothing is left out in silence."""
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError("hierarchical decoding starts from token ids: pass input_ids, not inputs_embeds")
    if input_ids.shape[0] != 1 or config.num_beams > 1:
        raise ValueError("hierarchical decoding writes one sequence at a time: pass one prompt, without beams")
    if (mask := kwargs.get("attention_mask")) is not None and not bool((mask == 1).all()):
        raise ValueError("hierarchical decoding takes no padding: pass the prompt without it")
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if asked := [name for name in wanted if config.return_dict_in_generate and getattr(config, name)]:
        raise ValueError(f"hierarchical decoding does not keep what {asked[0]} asks for: leave it out")
    for processor in processors:
        if (name := REMEMBERING.get(type(processor).__name__)) is not None:
            raise ValueError(
                f"{name} remembers earlier calls ({type(processor).__name__}), and drafts would mislead it: leave it out"
            )
    for name in OTHER_MODES:
        if getattr(config, name, None):
            raise ValueError(f"hierarchical decoding cannot be combined with this way of decoding: leave out {name}")
    for name in ("cache", "past_key_values"):
        if (cache := kwargs.get(name)) is not None and cache.get_seq_length():
            raise ValueError(f"hierarchical decoding keeps a cache of its own: leave out {name}")
    positions = kwargs.get("position_ids")
    if positions is not None and positions.flatten().tolist() != list(range(input_ids.shape[1])):
        raise ValueError("hierarchical decoding counts positions from 0: leave out position_ids")
    if other := [name for name, value in kwargs.items() if value is not None and name not in PREPARED]:
        raise ValueError(f"hierarchical decoding has no use for {other[0]}: leave it out")
