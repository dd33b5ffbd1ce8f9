"""The loop that everything hangs off: step by step, draft or judge, and commit what the target let through."""

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from time import perf_counter

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


def decode(state: DecodingState, policy: Policy, rule: Rule, ending: Ending) -> Generator[Event]:
    """Decode from the prompt in `state`, yielding events as they happen.

    The state is consistent between any two events, so a consumer may stop iterating at any of them. Events carry
    the seconds that the engine worked: time that the consumer spends between them is not counted.

    Args:
        state: fresh, holding the prompt, with room for `max_new_tokens` more.
        policy: chooses each step.
        rule: how levels draw and judge.
        ending: when to stop.
    """
    return _Round(state, policy, rule, ending).run()


class _Round:
    """One decoding from prompt to end: the four arguments of `decode` and the clock."""

    def __init__(self, state: DecodingState, policy: Policy, rule: Rule, ending: Ending) -> None:
        self.state, self.policy, self.rule, self.ending = state, policy, rule, ending
        self.names = [level.name for level in state.hierarchy.levels]
        self.limit = len(state.tokens) + ending.max_new_tokens
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

    def prefill(self) -> Event:
        """Run the prompt through every level; as the target has run it, the first token is already its own."""
        begin, length = perf_counter(), len(self.state.tokens)
        self.draw(len(self.names) - 1)
        return Prefilled(self.now(), prompt_tokens=length, seconds=perf_counter() - begin)

    def draft_or_judge(self) -> Event:
        """Do what the policy wants next."""
        begin = perf_counter()
        match self.policy.next_step(self.state.judged, self.may_draft()):
            case Draft():
                token = self.draw(0)
                return Drafted(self.now(), self.names[0], (token,), seconds=perf_counter() - begin)
            case Judge(level):
                proposed, accepted, correction = self.judge(level)
                return Judged(
                    self.now(), self.names[level], proposed, accepted, correction, seconds=perf_counter() - begin
                )

    def draw(self, level: int) -> int:
        """Let a level add its own next token."""
        length = len(self.state.tokens)
        token = self.rule.draw(self.state.logits(level, length - 1, length)[0])
        self.state.append(token, level)
        return token

    def judge(self, level: int) -> tuple[int, int, int | None]:
        """Let a level judge what it has not judged: (proposed, accepted, correction)."""
        state, since = self.state, self.state.judged[level]
        waiting = state.tokens[since:]
        verdict = self.rule.judge(waiting, state.logits(level, since - 1, len(state.tokens) - 1))
        state.accept(since + verdict.accepted, level)
        if verdict.correction is not None:
            state.rewind(since + verdict.accepted)
            state.append(verdict.correction, level)
        return len(waiting), verdict.accepted, verdict.correction

    def may_draft(self) -> bool:
        """A tentative end of text, or a full length, leaves nothing to draft: what waits is judged instead."""
        tokens = self.state.tokens
        ended = len(tokens) > self.state.committed and tokens[-1] in self.ending.eos_ids
        return not ended and len(tokens) < self.limit

    def finish_reason(self, new: list[int]) -> FinishReason | None:
        """Why the text ends with the tokens just committed, if it does. Nothing is ever drafted past either end."""
        if new[-1] in self.ending.eos_ids:
            return "eos"
        return "length" if self.state.committed >= self.limit else None

    def now(self) -> float:
        return perf_counter() - self.started
