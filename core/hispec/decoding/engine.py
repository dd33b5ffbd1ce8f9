"""The loop that everything hangs off: step by step, draft or judge, and commit what the target let through."""

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from time import perf_counter

import torch

from hispec.decoding.guesses import Guesser
from hispec.decoding.logits import Logits
from hispec.decoding.policies import Draft, Judge, Policy
from hispec.decoding.rules import Rule
from hispec.decoding.state import DecodingState
from hispec.events import Committed, Drafted, Event, Finished, FinishReason, Judged, Prefilled


@dataclass(frozen=True)
class Ending:
    """When decoding ends.

    Attributes:
        max_new_tokens: at least 1.
        eos_ids: committed, any of them ends the text.
        interrupted: asked before every step.
    """

    max_new_tokens: int
    eos_ids: Collection[int] = ()
    interrupted: Callable[[], bool] = field(default=lambda: False)


def decode(
    state: DecodingState, policy: Policy, rule: Rule, ending: Ending, guesser: Guesser | None = None
) -> Generator[Event]:
    """Decode from the prompt in `state`, yielding events as they happen.

    The state is consistent between any two events, so a consumer may stop iterating at any of them. Events carry
    the seconds that the engine worked: time that the consumer spends between them is not counted.

    Args:
        state: holding the prompt and nothing else, with room for `max_new_tokens` more.
        policy: chooses each step.
        rule: how levels draw and judge.
        ending: when to stop.
        guesser: for a hierarchy whose lowest level only guesses.
    """
    return _Round(state, policy, rule, ending, guesser).run()


class _Round:
    """One decoding from prompt to end: the arguments of `decode` and the clock."""

    def __init__(
        self, state: DecodingState, policy: Policy, rule: Rule, ending: Ending, guesser: Guesser | None
    ) -> None:
        self.state, self.policy, self.rule, self.ending, self.guesser = state, policy, rule, ending, guesser
        assert (guesser is not None) == state.hierarchy.guesses, "a level of guesses needs a guesser, no other does"
        self.names = [level.name for level in state.hierarchy.levels]
        self.limit = len(state.tokens) + ending.max_new_tokens
        target = state.hierarchy.stack_of(-1)
        self.reach = min((s.context for s in state.hierarchy.stacks if s is not target), default=self.limit)
        """Beyond the context of another model than the target, the target writes alone."""
        self.started = perf_counter()

    def run(self) -> Generator[Event]:
        """Prefill, then step until the end; every step may commit."""
        reason: FinishReason | None = "interrupted" if self.ending.interrupted() else None
        step = self.prefill
        while reason is None:
            known = self.state.committed
            yield step()
            if new := self.state.tokens[known : self.state.committed]:
                yield Committed(self.now(), tuple(new))
                reason = self.finish_reason(new)
            if reason is None and self.ending.interrupted():
                reason = "interrupted"
            step = self.draft_or_judge
        yield Finished(self.now(), reason)

    @torch.inference_mode()
    def prefill(self) -> Event:
        """Run the prompt through every level; as the target has run it, the first token is already its own."""
        begin, length, cached = perf_counter(), len(self.state.tokens), self.state.frontier[-1]
        self.draw(len(self.names) - 1)
        return Prefilled(self.now(), prompt_tokens=length, cached_tokens=cached, seconds=perf_counter() - begin)

    @torch.inference_mode()
    def draft_or_judge(self) -> Event:
        """Do what the policy wants next."""
        begin = perf_counter()
        match self.policy.next_step(self.state.judged, self.may_draft()):
            case Draft(wanted, lowest):
                level, tokens = self.draft(wanted, lowest)
                return Drafted(self.now(), self.names[level], tokens, seconds=perf_counter() - begin)
            case Judge(level):
                proposed, accepted, correction = self.judge(level)
                return Judged(
                    self.now(), self.names[level], proposed, accepted, correction, seconds=perf_counter() - begin
                )

    def draft(self, wanted: int, level: int) -> tuple[int, tuple[int, ...]]:
        """Guess, or where there is nothing to guess let a model write up to `wanted`: (level, tokens)."""
        before, target = len(self.state.tokens), len(self.names) - 1
        if before >= self.reach:
            level = target
        if self.guesser is None or level > 0:
            room = (self.limit if level == target else min(self.reach, self.limit)) - before
            return level, self.write(level, 1 if level == target else min(wanted, room))
        guess = self.guesser.guess(self.state.tokens, self.limit - before)
        if not guess:
            return 1, self.write(1, 1)
        for token in guess:
            self.state.append(token, 0)
            if token in self.ending.eos_ids:
                break
        return 0, tuple(self.state.tokens[before:])

    def write(self, level: int, count: int) -> tuple[int, ...]:
        """Let a level add up to `count` tokens, the last of them the only one that may end the text."""
        before = len(self.state.tokens)
        goes_on = self.goes_on(level)
        if self.rule.takes_best:
            self.state.write(level, count, self.ending.eos_ids, goes_on)
        else:
            for _ in range(count):
                token, logits = self.draw(level)
                another = goes_on is None or goes_on(logits)
                if token in self.ending.eos_ids or not another:
                    break
        return tuple(self.state.tokens[before:])

    def goes_on(self, level: int) -> Callable[[Logits], bool] | None:
        """What tells the policy how sure a level is of a token; None where it does not want to know."""
        drafted, features = self.policy.drafted, self.policy.features
        if not features or level == len(self.names) - 1:
            return None
        return lambda logits: drafted(level, logits.confidence(features)[0])

    def draw(self, level: int) -> tuple[int, Logits]:
        """Let a level add its own next token: (token, the logits that it was drawn from)."""
        tokens = self.state.tokens
        logits = self.state.logits(level, len(tokens) - 1, len(tokens))
        token, drawn_from = self.rule.draw(logits, tokens, level)
        self.state.append(token, level, drawn_from)
        return token, logits

    def judge(self, level: int) -> tuple[int, int, int | None]:
        """Let a level judge what it has not judged: (proposed, accepted, correction)."""
        state, since = self.state, self.state.judged[level]
        waiting = state.tokens[since:]
        logits = state.logits(level, since - 1, len(state.tokens) - 1)
        verdict = self.rule.judge(waiting, state.drawn_from[since:], logits, state.tokens[:since], level)
        kept = since + verdict.accepted
        state.accept(kept, level, verdict.drawn_from[: verdict.accepted])
        if verdict.correction is not None:
            state.rewind(kept)
            state.append(verdict.correction, level, next(iter(verdict.drawn_from[verdict.accepted :]), None))
            if self.guesser is not None:
                self.guesser.offer(waiting[verdict.accepted + 1 :])
        if self.policy.features:
            sure = logits.confidence(self.policy.features) if level < len(self.names) - 1 else []
            self.policy.judged(level, len(waiting), verdict.accepted, sure[: verdict.accepted + 1])
        return len(waiting), verdict.accepted, verdict.correction

    def may_draft(self) -> bool:
        """A tentative end of text, or a full length, leaves nothing to draft: what waits is judged instead."""
        tokens = self.state.tokens
        waiting = len(tokens) > self.state.committed
        if waiting and (tokens[-1] in self.ending.eos_ids or len(tokens) >= self.reach):
            return False
        return len(tokens) < self.limit

    def finish_reason(self, new: list[int]) -> FinishReason | None:
        """Why the text ends with the tokens just committed, if it does. Nothing is ever drafted past either end."""
        if new[-1] in self.ending.eos_ids:
            return "eos"
        return "length" if self.state.committed >= self.limit else None

    def now(self) -> float:
        return perf_counter() - self.started
