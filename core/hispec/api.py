"""The Python API: an `Engine` takes prompts and yields events, or returns a `Generation`."""

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from hispec.adaptation import levels_key, performance_model
from hispec.answer import Generation
from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.logprobs import scores_of_text
from hispec.decoding.ngram_cache import NgramCache
from hispec.decoding.noise import SEEDS
from hispec.decoding.sampling import Sampling
from hispec.decoding.state import DecodingState, PrefixCache
from hispec.errors import LosslessnessError, OutOfMemoryError, UsageError, is_out_of_memory
from hispec.events import Committed, Event, Finished, Scored, TokenLogprobs
from hispec.generation import Conditions
from hispec.grammar import Grammar
from hispec.levels import build_hierarchy
from hispec.loading import LoadedModels, load
from hispec.lossless import Difference, diagnose, first_difference
from hispec.machine import give_back_memory
from hispec.metrics import Stats
from hispec.models.checkpoint import Checkpoint
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.performance_model import PerformanceModel
from hispec.policies.static import StaticPolicy
from hispec.precedence import resolve_settings
from hispec.profile import Profile, check_depths, load_profile, models_of, profile_for_model
from hispec.progress import Watch, unwatched
from hispec.ranks import SharedPolicy
from hispec.room import check_room
from hispec.settings import Settings
from hispec.text import DraftText, TextStream, check_stop, encode_prompt, with_text, with_texts


class Engine:
    """Loaded models and a way to decode; answers one prompt at a time.

    Args:
        profile: the profile that names models and exits.
        settings: resolved decoding settings.
        models: the loaded models; their stacks, tokenizer and so on are also attributes of the engine.
    """

    def __init__(self, profile: Profile, settings: Settings, models: LoadedModels) -> None:
        self.profile = profile
        self.settings = settings
        self.models = models
        self.stacks, self.tokenizer, self.eos_ids = models.stacks, models.tokenizer, models.eos_ids
        self.environment, self.generation, self.ranks = models.environment, models.generation, models.ranks
        self.hierarchy = build_hierarchy(profile, settings.mode, models.stacks, settings.lookup)
        self.context = self.hierarchy.stack_of(-1).context
        self._ngram_cache = self.new_ngram_cache()
        """The n-grams of all answers. Engines on the same weights do not share it: where their answers to one prompt
        are compared, no engine may draft from the other's answer.
        """
        self._interrupted = False

    @property
    def device(self) -> torch.device:
        """Return the device of the target's logits."""
        return self.hierarchy.stack_of(-1).device

    @classmethod
    def from_profile(
        cls,
        profile: Profile | str,
        *,
        environ: Mapping[str, str] | None = None,
        force: bool = False,
        watch: Watch = unwatched,
        **options: Any,
    ) -> "Engine":
        """Load a profile's models.

        Args:
            profile: a profile, its name or its path.
            environ: the environment; its `HISPEC_*` variables apply. By default there are none.
            force: load models that do not seem to fit the memory that is free.
            watch: a callback that receives the progress of loading.
            options: any field of `hispec.settings.Settings`.

        Raises:
            UsageError: a setting, profile or architecture that cannot be decoded.
            UnavailableError: weights, device, memory or network are missing.
        """
        profile = load_profile(profile) if isinstance(profile, str) else profile
        resolved = resolve_settings(options, profile, environ=environ)
        return cls.load(profile, *resolved, force=force, watch=watch)

    @classmethod
    def load(cls, profile: Profile, settings: Settings, origins: Mapping[str, str], **options: Any) -> "Engine":
        """Load a profile's models with resolved settings; arguments and errors are those of `hispec.loading.load`."""
        models = load(profile, settings, origins, **options)
        engine = cls(models.profile, models.settings, models)
        engine.prepare()
        return engine

    def prepare(self) -> None:
        """Prepare the models for torch's present number of threads. Call it again after a change of that number.

        Only the target needs one width, because the output of other models is never the answer.
        """
        target = self.hierarchy.stack_of(-1)
        for stack in self.stacks.values():
            stack.prepare(self.settings.width if stack is target else "free")
        self.environment |= {"threads": torch.get_num_threads(), "width": target.rows.describe()}
        if self.settings.policy == "adaptive" and len(self.hierarchy) > 1:
            self._performance_model(self.hierarchy)  # measured before the first answer, not during it
        give_back_memory()  # packing and measuring held matrices and hidden states that are gone by now

    def with_settings(self, **changes: Any) -> "Engine":
        """Return an engine on the same weights with other settings; device and dtype cannot change.

        Args:
            changes: fields of `hispec.settings.Settings`, for example `mode="autoregressive"`.

        Raises:
            UsageError: a value that is not accepted.
        """
        agreement = self.settings.dummy_agreement  # the agreement that the weights were drawn for
        settings, _ = resolve_settings(asdict(replace(self.settings, dummy_agreement=None)) | changes, self.profile)
        return self._on_same_weights(self.profile, replace(settings, dummy_agreement=agreement))

    def with_sampling(self, **changes: Any) -> "Engine":
        """Return the same engine with other settings, usually of sampling; arguments and errors as `with_settings`.

        The n-gram cache is shared with this engine, since the answers of the two are not compared. An engine
        without n-grams passes the cache on.
        """
        if not changes:
            return self
        engine = self.with_settings(**changes)
        engine._ngram_cache = self._ngram_cache or engine._ngram_cache
        return engine

    def without_eos(self) -> "Engine":
        """Return the same engine, except that no EOS ends an answer, for measurements; see `with_sampling`."""
        engine = self._on_same_weights(self.profile, self.settings)
        engine._ngram_cache, engine.eos_ids = self._ngram_cache, frozenset()
        return engine

    def with_profile(self, profile: Profile) -> "Engine":
        """Return an engine on the same weights and settings with another profile's levels.

        Args:
            profile: a profile of the same target that names no other models than those that are loaded.

        Raises:
            UsageError: a model that is not loaded, or an exit that is too deep.
        """
        for model, stack in self.stacks.items():
            check_depths(profile, model, stack.num_layers)
        return self._on_same_weights(profile, self.settings)

    def _on_same_weights(self, profile: Profile, settings: Settings) -> "Engine":
        """Return another engine on the loaded models, or raise if a model is not loaded."""
        if missing := models_of(profile, settings.mode).keys() - self.stacks.keys():
            raise UsageError(
                f"profile {profile.name} in mode {settings.mode} reads {min(missing)}, which is not loaded",
                "load an engine with that profile and mode",
            )
        return Engine(profile, settings, self.models)

    def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        raw: bool = False,
        stop: Sequence[str] = (),
        draft_text: bool = False,
        history: Sequence[tuple[str, str]] = (),
        seed: int | None = None,
        prefix: PrefixCache | None = None,
        grammar: Grammar | None = None,
        logprobs: int | None = None,
    ) -> Generator[Event]:
        """Answer a prompt event by event. The last event is `Finished`, whose `result` is a `Generation`.

        Args:
            prompt: the user's message.
            system: a system message.
            raw: do not apply the chat template.
            stop: texts that end the answer and are not part of it; by default those of `generation_config.json`.
            draft_text: give drafts and corrections their text, as views show it; decoding it is not in any `seconds`.
            history: earlier turns, (prompt, answer) each.
            seed: the seed of this answer, in place of the one in the settings.
            prefix: a cache that keeps the tokens that have been run from one answer to the next.
            grammar: a grammar that the answer must match from its first character.
            logprobs: the number of most probable tokens, 0 or more, whose log-probabilities are added to each token's
                own, in `Committed` events and in the result; None adds no log-probabilities.

        Raises:
            UsageError: an empty prompt, an impossible stop text, a prompt that leaves no room in the context, a grammar
                that cannot be used, or that turns out too complex in the middle of the answer.
            UnavailableError: a grammar, and llguidance is not installed.
            OutOfMemoryError: the memory ran out; it is raised after a `Finished` event with the validated part. The
                engine can then answer a shorter prompt.
        """
        ids = encode_prompt(
            self.tokenizer,
            prompt,
            system=system,
            raw=raw,
            template=self.profile.chat_template,
            history=history,
            context=self.context,
        )
        return self.stream_ids(
            ids,
            prompt=prompt,
            stop=stop,
            draft_text=draft_text,
            seed=seed,
            prefix=prefix,
            conversation=bool(history),
            grammar=grammar,
            logprobs=logprobs,
        )

    def stream_ids(
        self,
        ids: list[int],
        *,
        prompt: str = "",
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        draft_text: bool = False,
        seed: int | None = None,
        prefix: PrefixCache | None = None,
        conversation: bool = False,
        grammar: Grammar | None = None,
        logprobs: int | None = None,
    ) -> Generator[Event]:
        """Answer a prompt given as token ids, event by event, like `stream`.

        Args:
            ids: the token ids that the target reads, at least one.
            prompt: the text that the ids were made from, which is copied into the `Generation`.
            max_new_tokens: the limit of this answer, in place of the one in the settings.
            stop, draft_text, seed, prefix, grammar, logprobs: the arguments of `stream`.
            conversation: whether the ids include earlier turns; the error message depends on it.

        Raises:
            UsageError: an impossible stop text or grammar, ids that leave no room in the context or, with the first
                event, one that is not in the vocabulary.
            OutOfMemoryError: the memory ran out, as for `stream`.
        """
        stop = [stop] if isinstance(stop, str) else (stop or self.generation.stop)
        check_stop(stop)
        room = check_room(ids, self.context, self.profile.name, conversation=conversation)
        self._interrupted = False
        drafts = DraftText(self.tokenizer) if draft_text else None
        seed = self.settings.seed if seed is None else seed
        limit = min(room, max_new_tokens or self.settings.max_new_tokens)
        if logprobs is not None and logprobs < 0:
            raise UsageError(f"--logprobs is {logprobs}", "give a whole number from 0 on")
        if grammar is not None:
            self.check_grammar(grammar)  # raises now rather than at the first event
        return self._stream(prompt, ids, limit, stop, drafts, seed, prefix, grammar, logprobs)

    def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        raw: bool = False,
        stop: Sequence[str] = (),
        seed: int | None = None,
        grammar: Grammar | None = None,
        logprobs: int | None = None,
    ) -> Generation:
        """Answer a prompt in one call.

        Args:
            prompt: the user's message.
            system: a system message.
            raw: do not apply the chat template.
            stop: texts that end the answer and are not part of it; by default those of `generation_config.json`.
            seed: the seed of this answer, in place of the one in the settings.
            grammar: a grammar that the answer must match from its first character.
            logprobs: the number of most probable tokens, 0 or more, whose log-probabilities are added to each token's
                own in the result; None adds no log-probabilities.

        Returns:
            The answer with its token ids and statistics.

        Raises:
            UsageError: an empty prompt, an impossible stop text or grammar, a prompt that leaves no room in the context.
            OutOfMemoryError: the memory ran out; its `generation` is the answer so far.
        """
        *_, last = self.stream(prompt, system=system, raw=raw, stop=stop, seed=seed, grammar=grammar, logprobs=logprobs)
        assert isinstance(last, Finished) and isinstance(last.result, Generation)
        return last.result

    def check_grammar(self, grammar: Grammar) -> None:
        """Refuse a grammar that answers of this model cannot be made to match.

        Raises:
            UsageError: it cannot be used, or not with the model's tokenizer.
            UnavailableError: llguidance is not installed.
        """
        self.models.grammars.mask(grammar, 0)

    def score_ids(
        self, ids: list[int], top: int = 0, prefix: PrefixCache | None = None
    ) -> Generator[tuple[Scored, ...]]:
        """Yield the target's log-probabilities of the tokens of a text, some at a time, in order.

        They are those that its answers have with `logprobs`: passes have the same rows.

        Args:
            ids: the token ids of the text, at least one.
            top: the number of most probable tokens to return beside each token.
            prefix: keeps what was run, so that an answer to the text does not run it again.

        Raises:
            UsageError: more ids than the context holds, or one that is not in the vocabulary.
        """
        check_room(ids, self.context, self.profile.name)
        state = (prefix or PrefixCache()).begin(Hierarchy([self.hierarchy.target]), ids, len(ids), again=True)
        return (with_texts(scored, self.tokenizer) for scored in scores_of_text(state, top))

    def new_stats(self) -> Stats:
        """Return empty statistics of the hierarchy, for a caller that counts events itself."""
        return Stats.of(self.hierarchy)

    def new_ngram_cache(self) -> NgramCache | None:
        """Return an empty n-gram cache; None where the hierarchy drafts no n-grams."""
        ngrams = self.hierarchy.ngrams
        return None if ngrams is None else NgramCache(ngrams.longest)

    def interrupt(self) -> None:
        """Ask the answer under way to end before its next step. Safe to call from a signal handler."""
        self._interrupted = True

    def decoder(self, hierarchy: Hierarchy | None = None, grammar: Grammar | None = None) -> Decoder:
        """Return a decoder of token ids, without text, with the engine's settings.

        Args:
            hierarchy: a hierarchy on the engine's models; by default the engine's own.
            grammar: a grammar that answers must match.
        """
        hierarchy = hierarchy or self.hierarchy
        return Decoder(
            hierarchy,
            lambda: self._policy(hierarchy),
            partial(self._sampling, grammar=grammar),
            self.settings.intermediate_top_k,
            self.eos_ids,
            self._is_interrupted,
        )

    def _sampling(self, prompt_ids: Sequence[int], max_new_tokens: int, grammar: Grammar | None = None) -> Sampling:
        """Return the sampling options for one prompt."""
        vocab_size = self.hierarchy.stack_of(-1).vocab_size
        conditions = Conditions.of(prompt_ids, max_new_tokens, self.eos_ids, vocab_size, self.device)
        sampling = self.generation.sampling(self.settings, conditions)
        mask = None if grammar is None else self.models.grammars.mask(grammar, len(prompt_ids))
        return replace(sampling, mask=mask)

    def _policy(self, hierarchy: Hierarchy) -> Policy:
        """Return a new policy, of the kind that the settings choose."""
        if self.settings.policy == "static" or len(hierarchy) == 1:
            return StaticPolicy.of(hierarchy, self.settings.draft_tokens, self.settings.validate_every)
        policy = AdaptivePolicy(self._performance_model(hierarchy))
        return policy if self.ranks is None else SharedPolicy(policy, self.ranks)

    def _performance_model(self, hierarchy: Hierarchy) -> PerformanceModel:
        """Return the performance model of a hierarchy, which earlier answers with the same models have refined."""
        known, adaptation = self.models.performance_model, self.profile.adaptive
        held = "" if adaptation is None else adaptation.model_dump_json()
        key = levels_key(hierarchy, range(len(hierarchy))), held, self.profile.translators, torch.get_num_threads()
        if key not in known:
            # Ranks would measure different costs, and stop measuring at different times.
            known[key] = performance_model(hierarchy, adaptation, measured=self.ranks is None)
        return known[key]

    def _is_interrupted(self) -> bool:
        """Return whether to stop. Ranks follow rank 0, so that all stop at the same step."""
        if self.ranks is None:
            return self._interrupted
        # Only what was shared counts: a signal that comes meanwhile is for the next step.
        (asked,) = self.ranks.share_numbers(self._interrupted)
        self._interrupted = self._interrupted or bool(asked)
        return bool(asked)

    def check_lossless(self, generation: Generation) -> None:
        """Decode the same prompt with the target alone, compare the token ids, and set `generation.lossless`.

        A sampled answer is decoded with its own seed.

        Raises:
            LosslessnessError: a token id differs; the error names the first and the gap between the target's two best
                scores.
        """
        self._interrupted = False
        prompt_ids, count = generation.prompt_ids, len(generation.token_ids)
        own_end = generation.finish_reason in ("eos", "length")  # the target must end there too
        limit = min(self.context - len(prompt_ids), self.settings.max_new_tokens)  # for processors that depend on it
        decoder = self.decoder(Hierarchy([self.hierarchy.target]), generation.grammar)
        alone = decoder.decode(prompt_ids, limit, generation.seed or 0)
        written = (token for event in alone if isinstance(event, Committed) for token in event.token_ids)
        expected = list(islice(written, None if own_end else count))
        if self._interrupted:
            raise KeyboardInterrupt
        difference = self.examine(
            prompt_ids, generation.token_ids, expected, seed=generation.seed or 0, grammar=generation.grammar
        )
        generation.lossless = difference is None
        if difference is not None:
            raise LosslessnessError(
                f"token {difference.at} differs from the target's own; "
                f"there, the target's two best scores are {difference.gap:.2g} apart",
                "a gap near 0 is a tie that rounding decides: try --dtype float32; else please report it",
            )

    def examine(
        self,
        prompt_ids: list[int],
        ids: list[int],
        reference: list[int],
        max_new_tokens: int | None = None,
        seed: int = 0,
        grammar: Grammar | None = None,
    ) -> Difference | None:
        """Compare an output with the target's own for the same prompt and seed; return None if they are equal.

        Args:
            prompt_ids: the prompt of both outputs.
            ids: new tokens.
            reference: the target's own.
            max_new_tokens: the limit that both were decoded with, since some processors depend on it; by default the
                settings'.
            seed: the seed of the sampling noise.
            grammar: the grammar that both had to match.
        """
        at = first_difference(ids, reference)
        if at is None:
            return None
        text = prompt_ids + reference[:at]
        limit = max_new_tokens or min(self.context - len(prompt_ids), self.settings.max_new_tokens)
        decoder = self.decoder(Hierarchy([self.hierarchy.target]), grammar)
        state = DecodingState(decoder.hierarchy, text, len(text))
        sampler = decoder.sampler(seed, prompt_ids, limit)
        best, second = sampler.scores(state.logits(0, len(text) - 1, len(text)), text).top_two()
        return diagnose(at, best, second, self.environment["dtype"])

    def _stream(
        self,
        prompt: str,
        ids: list[int],
        max_new_tokens: int,
        stop: Sequence[str],
        drafts: DraftText | None,
        seed: int | None,
        prefix: PrefixCache | None,
        grammar: Grammar | None,
        logprobs: int | None,
    ) -> Generator[Event]:
        """Yield the engine's events with text added, cut at a stop text."""
        seed = secrets.randbits(32) if seed is None else seed % SEEDS
        seed = seed if self.ranks is None else self.ranks.share(seed)
        text, stats = TextStream(self.tokenizer, stop), self.new_stats()

        likely: list[TokenLogprobs] = []
        end, memory_ended = Finished(0.0, "interrupted"), False
        try:
            decoder = self.decoder(grammar=grammar)
            with closing(decoder.decode(ids, max_new_tokens, seed, prefix, self._ngram_cache, logprobs)) as events:
                for event in events:
                    if isinstance(event, Finished):
                        end = event
                        break
                    end = Finished(event.t, "interrupted")  # unless another event comes
                    if drafts is not None:
                        event = drafts.see(event)
                    if isinstance(event, Committed):
                        event = with_text(event, text, self.tokenizer)
                        likely += event.logprobs
                    stats.see(event)
                    yield event
                    if text.stopped:
                        end = Finished(event.t, "stop")
                        break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            memory_ended = True
        if memory_ended and self.device.type == "cuda":
            torch.cuda.empty_cache()  # outside of the handler, whose error keeps the tensors of the step alive
        if rest := text.finish():
            yield Committed(end.t, (), rest)
        generation = Generation(
            self.profile.name,
            prompt,
            ids,
            text.text,
            text.token_ids,
            end.finish_reason,
            stats,
            self.environment,
            seed if self.settings.temperature > 0 else None,
            logprobs=None if logprobs is None else tuple(likely),
            grammar=grammar,
            complete=None if grammar is None else self.models.grammars.is_complete(grammar, text.token_ids),
        )
        yield replace(end, result=generation)
        if memory_ended:
            raise OutOfMemoryError(generation, len(generation.token_ids))


def unprofiled(model: str, draft_exit: int | None, intermediate_exit: int | None, *, dummy: bool = False) -> Profile:
    """Return a profile for a checkpoint that has none, as `profile_for_model`; errors as `Engine.from_profile`.

    Args:
        model: a folder or a hub id.
        draft_exit: layers that draft.
        intermediate_exit: layers that verify drafts.
        dummy: whether its weights will be drawn at random.
    """
    depth = Checkpoint(model, dummy=dummy).config.num_layers
    return profile_for_model(model, depth, draft_exit, intermediate_exit)
