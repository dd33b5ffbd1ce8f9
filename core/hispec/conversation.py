"""A conversation: its turns share the KV cache, so that earlier turns are not run again."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from hispec.answer import Generation
from hispec.api import Engine
from hispec.decoding.state import PrefixCache
from hispec.errors import UsageError
from hispec.events import Committed, Event, Finished
from hispec.grammar import Grammar
from hispec.limits import MAX_SEED
from hispec.profile import Profile
from hispec.session import Turn
from hispec.text import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATTEMPTS = 1_000_000
"""Seeds that a turn has to itself."""
SEEDS = MAX_SEED + 1


def turn_seed(seed: int, turn: int, attempt: int = 0) -> int:
    """Return the seed of a turn, which differs between turns and between attempts at the same turn.

    Args:
        seed: the seed of the conversation, which is also the seed of the first attempt at the first turn.
        turn: the number of earlier turns.
        attempt: the number of earlier attempts at this turn.
    """
    further = turn * ATTEMPTS + attempt
    return (seed + further) % SEEDS


def check_template(profile: Profile, tokenizer: "PreTrainedTokenizerBase", system: str | None = None) -> None:
    """Refuse a conversation if the model has no chat template, or one that ignores `system`.

    Raises:
        UsageError: neither the profile nor the tokenizer has a chat template; one that fails, or that has no place for
            a system message.
    """
    if not (profile.chat_template or tokenizer.chat_template):
        raise UsageError(
            f"{profile.target.model} has no chat template: it is a base model, which continues text",
            "write one to a file, \"{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n"
            '{% endfor %}assistant:", pass it with --chat-template FILE and end answers with --stop "\\nuser:"; '
            "or use hispec generate",
        )
    encode_prompt(tokenizer, "Hello", system=system, template=profile.chat_template)


class Conversation:
    """A conversation with an engine, turn by turn. The committed part of an answer is kept, however the answer ends.

    Args:
        engine: answers; it may be replaced between turns by another on the same weights.
        system: a system message.
        turns: earlier ones.
        grammar: the grammar that every answer must match, from its first character on; None for any text.

    Raises:
        UsageError: the conditions of `check_template` or `Engine.check_grammar` are not met.
        UnavailableError: llguidance is needed and is not installed.
    """

    def __init__(
        self, engine: Engine, system: str | None = None, turns: Iterable[Turn] = (), grammar: Grammar | None = None
    ) -> None:
        check_template(engine.profile, engine.tokenizer, system)
        if grammar is not None:
            engine.check_grammar(grammar)
        self.engine = engine
        self.system = system
        self.turns = list(turns)
        self.grammar = grammar
        self._prefix = PrefixCache()

    def ask(self, prompt: str, *, stop: Sequence[str] = (), draft_text: bool = False) -> Generator[Event]:
        """Answer a prompt, event by event; arguments and errors as `Engine.stream`, the seed that of `turn_seed`.

        The turn is kept when the generator is exhausted or closed, if any token was committed.

        Raises:
            UsageError: the conversation leaves no room in the context; it stays as it is.
            OutOfMemoryError: the memory ran out, as for `Engine.stream`; the next turn can still be asked.
        """
        return self._answer(prompt, self.turns, self._seed(len(self.turns), 0), stop, draft_text)

    def retry(self, *, stop: Sequence[str] = (), draft_text: bool = False) -> Generator[Event]:
        """Answer the last prompt again; the earlier answer is kept until a token is committed. Raises the errors of
        `ask`.

        It counts as one attempt more than the earlier answer, whose seed would draw the same again.

        Raises:
            UsageError: there is no turn.
        """
        last = self._last()
        number = len(self.turns) - 1
        first = self._seed(number, 0)
        before = 0 if first is None or last.seed is None else (last.seed - first) % SEEDS
        attempt = before + 1 if before < ATTEMPTS else 1  # another seed applied then
        return self._answer(last.prompt, self.turns[:-1], self._seed(number, attempt), stop, draft_text)

    def undo(self) -> Turn:
        """Take back the last turn, and return it.

        Raises:
            UsageError: there is no turn.
        """
        turn = self._last()
        self.turns = self.turns[:-1]
        return turn

    def restart(self, system: str | None, turns: Iterable[Turn]) -> None:
        """Continue from other turns; the beginning that they share with the current ones is not run again."""
        self.system, self.turns = system, list(turns)

    def length(self) -> int:
        """Return the number of tokens of all turns, the template's included."""
        if not self.turns:
            return 0
        history = [(turn.prompt, turn.answer) for turn in self.turns[:-1]]
        template = self.engine.profile.chat_template
        last = self.turns[-1]
        read = encode_prompt(self.engine.tokenizer, last.prompt, system=self.system, template=template, history=history)
        return len(read) + len(last.token_ids)

    def _last(self) -> Turn:
        if not self.turns:
            raise UsageError("there is no turn yet", "write something first")
        return self.turns[-1]

    def _seed(self, turn: int, attempt: int) -> int | None:
        seed = self.engine.settings.seed
        return None if seed is None else turn_seed(seed, turn, attempt)

    def _answer(
        self, prompt: str, before: list[Turn], seed: int | None, stop: Sequence[str], draft_text: bool
    ) -> Generator[Event]:
        events = self.engine.stream(
            prompt,
            system=self.system,
            stop=stop,
            draft_text=draft_text,
            history=[(turn.prompt, turn.answer) for turn in before],
            seed=seed,
            prefix=self._prefix,
            grammar=self.grammar,
        )
        sampled = self.engine.settings.temperature > 0
        return self._keep(Turn(prompt, "", (), "interrupted", seed if sampled else None), before, events)

    def _keep(self, turn: Turn, before: list[Turn], events: Generator[Event]) -> Generator[Event]:
        """Pass events on, and keep the turn that they add up to, however they end."""
        try:
            with closing(events):
                for event in events:
                    match event:
                        case Committed():
                            turn = replace(
                                turn, answer=turn.answer + event.text, token_ids=turn.token_ids + event.token_ids
                            )
                        case Finished(result=Generation() as answer):
                            turn = replace(turn, finish_reason=event.finish_reason, seed=answer.seed)
                    yield event
        finally:
            if turn.token_ids:
                self.turns = [*before, turn]
