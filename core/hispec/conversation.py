"""A conversation: turns that build on each other, and what was run for the earlier ones is not run again."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing

from hispec.api import Engine, Generation
from hispec.decoding.state import PrefixCache
from hispec.errors import UsageError
from hispec.events import Committed, Event, Finished
from hispec.session import Turn
from hispec.text import encode_prompt


class Conversation:
    """Asks an engine turn by turn. Whatever ends an answer, what was validated of it is kept.

    Args:
        engine: answers; it may be replaced between turns by another on the same weights.
        system: a system message.
        turns: earlier ones.

    Raises:
        UsageError: a model without a chat template, whose turns could not be told apart.
    """

    def __init__(self, engine: Engine, system: str | None = None, turns: Iterable[Turn] = ()) -> None:
        if not (engine.profile.chat_template or engine.tokenizer.chat_template):
            raise UsageError(
                f"{engine.profile.target.model} has no chat template: it is a base model, which continues text",
                "give its profile one, chat_template: \"{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n"
                '{% endfor %}assistant:", and end answers with --stop "\\nuser:"; or use hispec generate',
            )
        self.engine = engine
        self.system = system
        self.turns = list(turns)
        self._prefix = PrefixCache()
        self._attempt = 0
        """How often the last turn was answered anew."""

    def ask(self, prompt: str, *, stop: Sequence[str] = (), draft_text: bool = False) -> Generator[Event]:
        """Answer a prompt, event by event; arguments and errors as `Engine.stream`.

        The turn is kept once the generator is exhausted or closed, if anything was validated.

        Raises:
            UsageError: the conversation leaves no room in the context; it stays as it is.
            OutOfMemoryError: as `Engine.stream`; the next turn may be asked.
        """
        return self._answer(prompt, self.turns, 0, stop, draft_text)

    def retry(self, *, stop: Sequence[str] = (), draft_text: bool = False) -> Generator[Event]:
        """Answer the last prompt anew; the earlier answer is kept until something is validated. Errors as `ask`.

        A seed counts up with every retry: the same would draw the same answer.

        Raises:
            UsageError: there is no turn.
        """
        last = self._last()
        return self._answer(last.prompt, self.turns[:-1], self._attempt + 1, stop, draft_text)

    def undo(self) -> Turn:
        """Take the last turn back; returns it.

        Raises:
            UsageError: there is no turn.
        """
        turn = self._last()
        self.turns, self._attempt = self.turns[:-1], 0
        return turn

    def restart(self, system: str | None, turns: Iterable[Turn]) -> None:
        """Go on from other turns; what they share with those until now is still not run again."""
        self.system, self.turns, self._attempt = system, list(turns), 0

    def length(self) -> int:
        """Tokens of all turns, the template's included."""
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

    def _answer(
        self, prompt: str, before: list[Turn], attempt: int, stop: Sequence[str], draft_text: bool
    ) -> Generator[Event]:
        seed = self.engine.settings.seed
        events = self.engine.stream(
            prompt,
            system=self.system,
            stop=stop,
            draft_text=draft_text,
            history=[(turn.prompt, turn.answer) for turn in before],
            seed=None if seed is None else seed + attempt,
            prefix=self._prefix,
        )
        return self._keep(prompt, before, attempt, events)

    def _keep(self, prompt: str, before: list[Turn], attempt: int, events: Generator[Event]) -> Generator[Event]:
        """Pass events on, and keep the turn, however they end."""
        turn = Turn(prompt, "", (), "interrupted")
        try:
            with closing(events):
                for event in events:
                    match event:
                        case Committed():
                            turn = Turn(
                                prompt, turn.answer + event.text, turn.token_ids + event.token_ids, "interrupted"
                            )
                        case Finished(result=Generation() as answer):
                            turn = Turn(prompt, turn.answer, turn.token_ids, event.finish_reason, answer.seed)
                    yield event
        finally:
            if turn.token_ids:
                self.turns, self._attempt = [*before, turn], attempt
