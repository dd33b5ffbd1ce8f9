"""The decode loop: draft or verify, step by step, and commit the tokens that the target accepts."""

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from time import perf_counter

import torch

from hispec.decoding.drafters import Drafter, LevelDrafter, NgramDrafter
from hispec.decoding.logits import Logits
from hispec.decoding.logprobs import RecordingSampler
from hispec.decoding.ngram_cache import NgramCache
from hispec.decoding.ngram_drafters import drafter_of
from hispec.decoding.sampling import Sampler
from hispec.decoding.state import DecodingState
from hispec.events import Committed, Drafted, Event, Finished, FinishReason, Prefilled, Verified
from hispec.policies.base import Draft, Policy, Verify


@dataclass(frozen=True)
class StopCriteria:
    """The conditions under which decoding ends.

    Attributes:
        max_new_tokens: the maximum number of new tokens, at least 1.
        eos_ids: committed, any of them ends the text.
        interrupted: called before every step; decoding ends if it returns True.
    """

    max_new_tokens: int
    eos_ids: Collection[int] = ()
    interrupted: Callable[[], bool] = field(default=lambda: False)


def decode(
    state: DecodingState,
    policy: Policy,
    sampler: Sampler,
    stop: StopCriteria,
    cache: NgramCache | None = None,
    logprobs: int | None = None,
) -> Generator[Event]:
    """Decode from the prompt in `state`, yielding events as they happen.

    The state is consistent between any two events, so a consumer may stop iterating at any of them. Events carry
    the seconds that the engine worked: time that the consumer spends between them is not counted.

    Args:
        state: a state that holds only the prompt, with room for `max_new_tokens` more tokens.
        policy: the policy that chooses each step.
        sampler: the sampler that chooses the tokens of every level.
        stop: the conditions under which decoding ends.
        cache: the n-gram cache of earlier texts, to which this text is added.
        logprobs: the number of most probable tokens to report with each committed one; None reports no
            log-probabilities.
    """
    return DecodeLoop(state, policy, sampler, stop, cache, logprobs).run()


class DecodeLoop:
    """One decoding from prompt to end; arguments as `decode`."""

    def __init__(
        self,
        state: DecodingState,
        policy: Policy,
        sampler: Sampler,
        stop: StopCriteria,
        cache: NgramCache | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.state, self.policy, self.sampler, self.stop = state, policy, sampler, stop
        hierarchy = state.hierarchy
        self.names = [level.name for level in hierarchy.levels]
        self.target = len(hierarchy) - 1
        self.limit = len(state.tokens) + stop.max_new_tokens
        others = [stack.context for stack in hierarchy.stacks if stack is not hierarchy.target.stack]
        self.reach = min(others, default=self.limit)
        """Beyond the context of any other model, the target decodes alone."""
        self.recorder = None if logprobs is None else RecordingSampler(sampler, logprobs)
        self.samplers = [*[sampler] * self.target, self.recorder or sampler]
        self.drafters: list[Drafter] = [
            LevelDrafter(level, own, stop.eos_ids, self.keep_drafting(level)) for level, own in enumerate(self.samplers)
        ]
        self.ngram_drafter: NgramDrafter | None = None
        if hierarchy.ngrams is not None:
            ngrams, mask = hierarchy.ngrams, sampler.sampling.mask
            drafter = drafter_of(ngrams.drafter)
            self.ngram_drafter = drafter(ngrams.longest, ngrams.tokens, stop.eos_ids, cache, mask)
            self.drafters[0] = self.ngram_drafter
        self.started = perf_counter()

    def run(self) -> Generator[Event]:
        """Decode until the end, or until the consumer stops iterating."""
        try:
            yield from self.steps()
        finally:
            if self.ngram_drafter is not None:
                self.ngram_drafter.remember(self.state.tokens, self.state.committed)

    def steps(self) -> Generator[Event]:
        """Prefill, then take steps until the end; every step may commit tokens."""
        reason: FinishReason | None = "interrupted" if self.stop.interrupted() else None
        step = self.prefill
        while reason is None:
            known = self.state.committed
            try:
                event = step()
            except Exception:
                self.state.discard()
                raise
            yield event
            if new := self.state.tokens[known : self.state.committed]:
                logprobs = () if self.recorder is None else self.recorder.logprobs(known, new)
                yield Committed(self.now(), tuple(new), logprobs=logprobs)
                reason = self.finish_reason(new)
            if reason is None and self.stop.interrupted():
                reason = "interrupted"
            step = self.draft_or_verify
        yield Finished(self.now(), reason)

    @torch.inference_mode()
    def prefill(self) -> Event:
        """Run the prompt through every level. The target has then run it, so its logits give the first token."""
        begin, length, cached = perf_counter(), len(self.state.tokens), self.state.frontier[-1]
        self.drafters[self.target].draft(self.state, Draft(), 1)
        return Prefilled(self.now(), prompt_tokens=length, cached_tokens=cached, seconds=perf_counter() - begin)

    @torch.inference_mode()
    def draft_or_verify(self) -> Event:
        """Take the step that the policy chooses."""
        begin = perf_counter()
        match self.policy.next_step(self.state.verified, self.may_draft()):
            case Draft() as step:
                level, tokens = self.draft(step)
                seconds = perf_counter() - begin
                self.policy.on_timing(Draft(len(tokens), level), seconds)
                return Drafted(self.now(), self.names[level], tokens, seconds)
            case Verify(level) as step:
                proposed, accepted, own = self.verify(level)
                seconds = perf_counter() - begin
                self.policy.on_timing(step, seconds)
                return Verified(self.now(), self.names[level], proposed, accepted, own, seconds)

    def draft(self, step: Draft) -> tuple[int, tuple[int, ...]]:
        """Let a level draft, or its fallback if it proposes nothing, and return (level, tokens)."""
        length, level = len(self.state.tokens), step.level
        if length >= self.reach:
            level = self.target
        if level == self.target:
            return level, self.drafters[level].draft(self.state, Draft(), 1)
        room = min(self.reach, self.limit) - length
        tokens = self.drafters[level].draft(self.state, step, room)
        return (level, tokens) if tokens else self.draft(Draft(1, step.fallback or level + 1))

    def verify(self, level: int) -> tuple[int, int, int | None]:
        """Let a level verify the waiting tokens, and return (proposed, accepted, its own token after them).

        That token is its correction or, if it accepted all, a bonus token; it may be None.
        """
        state, since = self.state, self.state.verified[level]
        waiting = state.tokens[since:]
        logits = state.logits(level, since - 1, len(state.tokens) - 1 + self.takes_bonus(level))
        scores = self.samplers[level].scores(logits, state.tokens[:since], waiting)
        # Confidence first: its two best logits give the argmax too, so that a device is waited for once.
        sure = scores.confidence(self.policy.features) if self.policy.features and level < self.target else []
        own = scores.argmax()
        if self.ngram_drafter is not None:
            self.ngram_drafter.cache.record_argmax(state.tokens[since - 1 :], own)
        accepted = self.accepted(level, waiting, own, scores)
        state.accept(since + accepted, level)
        if accepted < len(waiting):
            state.rewind(since + accepted)
            self.drafters[0].rejected(own[accepted + 1 :])
        token = own[accepted] if accepted < len(own) else None
        if token is not None:
            state.append(token, level)
        if self.policy.features:
            self.policy.on_verification(
                level, len(waiting), accepted, accepted + (token is not None), sure[: accepted + 1]
            )
        return len(waiting), accepted, token

    def takes_bonus(self, level: int) -> bool:
        """Return whether a level also runs the newest token, for a bonus token if it accepts all.

        That costs a row. A level that resumes from a lower one would have to run the lower one first.
        """
        return self.state.hierarchy.below[level] is None and self.may_draft()

    def accepted(self, level: int, waiting: list[int], own: list[int], scores: Logits) -> int:
        """Count the leading tokens that a level accepts: the target accepts its own, lower levels also those of their top k."""
        allowed = [[token] for token in own]
        if level < self.target and self.sampler.lower_top_k > 1:
            allowed = scores.top(self.sampler.lower_top_k)
        return next((at for at, token in enumerate(waiting) if token not in allowed[at]), len(waiting))

    def keep_drafting(self, level: int) -> Callable[[Logits], bool] | None:
        """Return a callback that shows the policy a level's confidence in each token; None if the policy needs none."""
        drafted, features = self.policy.on_draft, self.policy.features
        if not features or level == self.target:
            return None
        return lambda scores: drafted(level, scores.confidence(features)[0])

    def may_draft(self) -> bool:
        """Return whether drafting makes sense: not after an EOS that waits for verification, nor at the full length."""
        tokens = self.state.tokens
        waiting = len(tokens) > self.state.committed
        if waiting and (tokens[-1] in self.stop.eos_ids or len(tokens) >= self.reach):
            return False
        return len(tokens) < self.limit

    def finish_reason(self, new: list[int]) -> FinishReason | None:
        """Return the reason why the text ends with the tokens just committed, or None. Nothing is drafted past an end."""
        if new[-1] in self.stop.eos_ids:
            return "eos"
        return "length" if self.state.committed >= self.limit else None

    def now(self) -> float:
        """Return the seconds since decoding began."""
        return perf_counter() - self.started
