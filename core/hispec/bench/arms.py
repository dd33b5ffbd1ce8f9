"""The arms of a benchmark: modes of the engine and ways of decoding of `transformers`, all on the same weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria
from transformers.generation import BaseStreamer

from hispec.api import Engine
from hispec.bench.names import OWN_ARMS, PUBLISHED_ARMS, RECYCLING, check_arms, exit_of
from hispec.events import Committed, Finished
from hispec.memory import check_profile
from hispec.metrics import Stats
from hispec.models.checkpoint import Checkpoint
from hispec.models.fused_stack import FusedStack
from hispec.models.loading import draw_modules, load_stack
from hispec.models.placement import Placement
from hispec.models.stack import LayerStack
from hispec.models.transformers_stack import TransformersStack
from hispec.profile import DEFAULT_NGRAM, DraftSection, Profile, TargetSection, models_of, published
from hispec.text import TextStream

LOOKUP_TOKENS = 10
"""`prompt_lookup_num_tokens` as `transformers`' documentation has it."""


@dataclass
class Answer:
    """One answer with its times.

    Attributes:
        prompt_ids: the token ids of the prompt.
        token_ids: the token ids of the answer, an EOS included, up to the token that completes a stop text.
        text: without the stop text.
        finish_reason: the reason why the answer ended.
        seconds: wall-clock from ids to the last id, prompt included.
        moments: for each time at which tokens became final, the seconds since the start and the number of tokens.
        stats: figures by level, of our own arms.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: Literal["eos", "length", "stop"]
    seconds: float
    moments: list[tuple[float, int]]
    stats: Stats | None = None


class Arm(Protocol):
    """One way of decoding."""

    name: str

    def answer(self, prompt_ids: list[int], max_new_tokens: int, stop: Sequence[str], seed: int) -> Answer:
        """Decode a prompt; `seed` matters only if tokens are sampled."""
        ...


class OwnArm:
    """An arm that decodes with a mode of the engine."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine = name, engine
        self._ngram_cache = engine.new_ngram_cache()
        self._asked: set[tuple[int, ...]] = set()

    def answer(self, prompt_ids: list[int], max_new_tokens: int, stop: Sequence[str], seed: int) -> Answer:
        """Decode; see `Arm.answer`. N-gram drafts come from earlier answers to other prompts only."""
        engine, moments, reason = self.engine, [], "length"
        if tuple(prompt_ids) in self._asked:  # otherwise it would copy its earlier answer to this prompt
            self._ngram_cache = engine.new_ngram_cache()
            self._asked.clear()
        self._asked.add(tuple(prompt_ids))
        stats, ended = Stats.of(engine.hierarchy), _StopText(engine.tokenizer, stop)
        ids: list[int] = []
        began = perf_counter()
        for event in engine.decoder().decode(prompt_ids, max_new_tokens, seed, ngram_cache=self._ngram_cache):
            stats.see(event)
            if isinstance(event, Committed):
                new = ended.take(event.token_ids)
                ids += new
                moments.append((perf_counter() - began, len(new)))
                if ended.stopped:
                    break
            elif isinstance(event, Finished):
                reason = event.finish_reason
        seconds = perf_counter() - began
        return _answer(engine, prompt_ids, ids, stop, "stop" if ended.stopped else reason, seconds, moments, stats)


class TransformersArm:
    """The `generate` of `transformers`, called as its documentation says, with the options that the engine applies."""

    def __init__(
        self, name: str, engine: Engine, model: Any, options: Mapping[str, Any], assistant: Any | None = None
    ) -> None:
        self.name, self.engine, self.model = name, engine, model
        self._assistant = {} if assistant is None else {"assistant_model": assistant}
        settings = engine.settings
        self._options: dict[str, Any] = {
            **engine.generation.in_force(settings),
            "do_sample": settings.temperature > 0,
            "eos_token_id": sorted(engine.eos_ids) or None,
            "pad_token_id": 0,
            **options,
        }

    def answer(self, prompt_ids: list[int], max_new_tokens: int, stop: Sequence[str], seed: int) -> Answer:
        """Decode; see `Arm.answer`."""
        torch.manual_seed(seed)
        prompt = torch.tensor([prompt_ids], device=self.model.device)
        ended = _StopText(self.engine.tokenizer, stop)
        watch = _Watch()
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(max_new_tokens=max_new_tokens, **self._options),
            streamer=watch,
            stopping_criteria=[_StopsAtText(ended, len(prompt_ids))] if stop else None,
            **self._assistant,
        )
        seconds = perf_counter() - watch.began
        # Assisted decoding hands over several tokens at once, so some may stand after the end.
        ids = _StopText(self.engine.tokenizer, stop).take(out[0, len(prompt_ids) :].tolist())
        ended_by = "stop" if ended.stopped else "eos" if ids and ids[-1] in self.engine.eos_ids else "length"
        return _answer(self.engine, prompt_ids, ids, stop, ended_by, seconds, watch.moments_of(len(ids)), None)


def make_arms(names: Sequence[str], engine: Engine, *, force: bool = False) -> list[Arm]:
    """Return the named arms on an engine's weights.

    Args:
        names: some of `hispec.bench.names.ARMS`.
        engine: loaded, in mode `hispec`.
        force: load modules for the arms of `transformers` even where they do not seem to fit the memory.

    Raises:
        UsageError: an arm that the profile has no levels or no model for.
        UnavailableError: loading fails, as for `load_stack`, or the memory does not hold its modules next to the
            engine's weights.
    """
    check_arms(names, engine.profile, engine.settings)
    modules = _Modules(engine, force)
    return [_make(name, engine, modules) for name in names]


def _make(name: str, engine: Engine, modules: "_Modules") -> Arm:
    tuned = engine.profile.single_layer
    if name in OWN_ARMS:
        own: dict[str, Any] = {}
        if name == "single-layer":  # the usual method of that name drafts a fixed length
            without = (
                None if engine.settings.lookup is None else False
            )  # n-gram drafts that were asked for are not of it
            own = {"policy": "static", "lookup": without} | ({"validate_every": tuned.draft_tokens} if tuned else {})
        return OwnArm(name, engine.with_settings(mode=name, **own))
    if name in PUBLISHED_ARMS:
        return OwnArm(name, _as_published(engine, name.removesuffix("-published")))
    if name == RECYCLING:
        levels = {
            "draft": DraftSection(ngram=DEFAULT_NGRAM),
            "intermediate": None,
            "single_layer": None,
            "adaptive": None,
        }
        alone = engine.with_profile(engine.profile.model_copy(update=levels))
        return OwnArm(name, alone.with_settings(mode="hispec", policy="static", lookup=True))
    draft, assistant = engine.profile.draft, None
    options: dict[str, Any] = {}
    if name == "hf-early-exit":
        options = {"assistant_early_exit": exit_of(engine.profile)}
    elif name == "hf-assisted" and draft is not None and draft.model is not None:
        assistant = modules.of(draft.model)
    elif name == "prompt-lookup":
        options = {"prompt_lookup_num_tokens": LOOKUP_TOKENS}
    return TransformersArm(name, engine, modules.of(engine.profile.target.model), options, assistant)


def _as_published(engine: Engine, mode: str) -> Engine:
    """Return an engine on the same weights whose levels are exits of the full ones, and whose lengths are fixed.

    Raises:
        UsageError: too few layers for them.
    """
    profile = published(engine.profile, mode, engine.hierarchy.target.exit_layer)
    lengths = profile.decoding.model_dump(include={"draft_tokens", "validate_every"})
    return Engine(
        profile, engine.with_settings(mode=mode, policy="static", lookup=False, **lengths).settings, engine.models
    )


class _Modules:
    """`transformers` models: those behind the engine's stacks, or where these have none, loaded once for all arms."""

    def __init__(self, engine: Engine, force: bool) -> None:
        self._engine, self._force = engine, force
        self._loaded: dict[str, Any] = {}

    def of(self, model: str) -> Any:
        """Return the model of that name in the profile; errors as `load_stack`."""
        stack = self._engine.stacks[model]
        if isinstance(stack, TransformersStack):
            return stack.model
        if model not in self._loaded:
            self._loaded[model] = self._load(model, stack)
        return self._loaded[model]

    def _load(self, model: str, stack: LayerStack) -> Any:
        settings, revision = self._engine.settings, models_of(self._engine.profile, "hispec")[model]
        if settings.load_format == "dummy":  # there is no other place that holds these weights
            assert isinstance(stack, FusedStack)
            return draw_modules(Checkpoint(model, revision, dummy=True), stack)
        dtype = str(stack.dtype).removeprefix("torch.")
        if not self._force:
            alone = Profile(
                name=f"{model} for the arms of transformers", target=TargetSection(model=model, revision=revision)
            )
            changes: dict[str, Any] = {"mode": "autoregressive", "dtype": dtype, "stack": "transformers"}
            check_profile(alone, replace(settings, **changes, device=str(stack.device)))
        loaded = load_stack(Checkpoint(model, revision), Placement(stack.device, dtype, "transformers"))
        assert isinstance(loaded, TransformersStack)
        return loaded.model


class _StopText:
    """Takes tokens until one completes a stop text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._text = TextStream(tokenizer, stop) if stop else None
        self.stopped = False

    def take(self, token_ids: Sequence[int]) -> list[int]:
        """Return the tokens up to the one that completes a stop text."""
        if self._text is None:
            return list(token_ids)
        taken = []
        for token in token_ids:
            if self.stopped:
                break
            self._text.feed(token)
            taken.append(token)
            self.stopped = self._text.stopped
        return taken


class _StopsAtText(StoppingCriteria):  # type: ignore[misc]
    """Ends generation of `transformers` at a stop text."""

    def __init__(self, ended: _StopText, prompt: int) -> None:
        self._ended, self._seen = ended, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._ended.take(input_ids[0, self._seen :].tolist())
        self._seen = input_ids.shape[1]
        return torch.tensor([self._ended.stopped], device=input_ids.device)


@dataclass
class _Watch(BaseStreamer):  # type: ignore[misc]
    """A streamer that records only times."""

    began: float = field(default_factory=perf_counter)
    _moments: list[tuple[float, int]] = field(default_factory=list)
    _prompt_seen: bool = False

    def put(self, value: Tensor) -> None:
        """Note when tokens arrive; the first to arrive are the prompt's."""
        if self._prompt_seen:
            self._moments.append((perf_counter() - self.began, value.numel()))
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: no text is held back."""

    def moments_of(self, tokens: int) -> list[tuple[float, int]]:
        """Return the moments of the first tokens, without tokens after the end of the text."""
        moments = []
        for at, count in self._moments:
            if tokens > 0:
                moments.append((at, min(count, tokens)))
            tokens -= count
        return moments


def _answer(
    engine: Engine,
    prompt_ids: list[int],
    ids: list[int],
    stop: Sequence[str],
    reason: Any,
    seconds: float,
    moments: list[tuple[float, int]],
    stats: Stats | None,
) -> Answer:
    """Add the text, outside of the measured time."""
    text = TextStream(engine.tokenizer, stop)
    for token in ids:
        text.feed(token)
    text.finish()
    return Answer(prompt_ids, ids, text.text, reason, seconds, moments, stats)
