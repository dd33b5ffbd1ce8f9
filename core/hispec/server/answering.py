"""The engine of a server: one thread that answers prompts one at a time, and what carries its text to each client."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from threading import Thread
from time import monotonic
from typing import Any

import torch

from hispec.answer import Generation
from hispec.api import Engine
from hispec.chat_template import Message
from hispec.decoding.noise import SEEDS
from hispec.decoding.state import PrefixCache
from hispec.events import Committed, Event, Finished, Prefilled, Scored
from hispec.grammar import Grammar
from hispec.room import check_room
from hispec.server.errors import ProtocolError, shutting_down, told
from hispec.server.metrics import Metrics
from hispec.server.turns import FullError, Turns
from hispec.text import encode_messages, encode_prompt


@dataclass(frozen=True)
class Question:
    """A prompt with the options of its answer.

    Attributes:
        prompt: messages of a conversation, a text to continue, or its token ids.
        sampling: settings for it alone, by the names of `hispec.settings.Settings`.
        max_new_tokens, stop, seed, grammar, logprobs: the arguments of `Engine.stream_ids`.
        ignore_eos: whether no EOS ends the answer.
        echo: whether the prompt is told before the answer, with its log-probabilities where those are asked for; the
            answer may then have 0 tokens.
    """

    prompt: tuple[Message, ...] | str | tuple[int, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    echo: bool = False

    def another(self, number: int) -> "Question":
        """Return the same question for one more answer."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % SEEDS)

    def encode(self, engine: Engine) -> list[int]:
        """Return the ids that the target reads.

        Raises:
            UsageError: the prompt cannot be encoded, as for `encode_prompt` and `encode_messages`, or the context does
                not hold it.
        """
        if isinstance(self.prompt, str):
            ids = encode_prompt(engine.tokenizer, self.prompt, raw=True, context=engine.context)
        elif self.prompt and isinstance(self.prompt[0], int):
            ids = [int(token) for token in self.prompt]
        else:
            messages: Sequence[Message] = self.prompt  # type: ignore[assignment]
            ids = encode_messages(engine.tokenizer, messages, engine.profile.chat_template, engine.context)
        check_room(ids, engine.context, engine.profile.name)
        return ids


@dataclass(frozen=True)
class Echo:
    """The text of a prompt, and the log-probabilities of its tokens where they were asked for."""

    text: str
    logprobs: tuple[Scored, ...] = ()


Piece = Committed | Echo


class Answer:
    """The result of a question, for the coroutine that waits for it.

    Args:
        question: the question to be answered.
    """

    def __init__(self, question: Question) -> None:
        self.question, self.asked_at = question, monotonic()
        self.left = False
        """Whether the client has gone."""
        self.generation: Generation | None = None
        """The whole answer, once `pieces` is exhausted."""
        self.echo: Echo | None = None
        """What comes before it, if anything."""
        self._loop = asyncio.get_running_loop()
        # Without a bound: a client that reads slowly must not hold up the others, and an answer has an end.
        self._news: asyncio.Queue[Piece | Generation | ProtocolError] = asyncio.Queue()
        self._first: list[Piece | Generation] = []

    async def begin(self) -> None:
        """Wait until there is something to show; errors as `pieces`."""
        if not self._first:
            self._first.append(await self._next())

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Yield text, and log-probabilities if they were asked for, as they are validated.

        Raises:
            ProtocolError: the question cannot be answered, or its answer cannot be finished.
        """
        while True:
            news = self._first.pop() if self._first else await self._next()
            if isinstance(news, Generation):
                self.generation = news
                return
            if isinstance(news, Echo):
                self.echo = news
            yield news

    async def whole(self) -> None:
        """Wait for the end; errors as `pieces`."""
        async for _ in self.pieces():
            pass

    async def _next(self) -> Piece | Generation:
        news = await self._news.get()
        if isinstance(news, ProtocolError):
            raise news
        return news

    def tell(self, news: Piece | Generation | ProtocolError) -> None:
        """Pass on what has come; called by any thread."""
        with suppress(RuntimeError):  # the loop is closed: no client waits
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)


class Answering:
    """Answers questions with one engine, one at a time, in a thread of its own.

    The KV cache of one answer is used for the next, even for another client.

    Args:
        engine: an engine that nothing else uses.
        most_waiting: the largest number of waiting prompts.
    """

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        self.engine = engine
        self._turns: Turns[Answer] = Turns(most_waiting)
        self._prefix = PrefixCache()
        self._closing = self._cut = False
        self._thread = Thread(target=self._work, name="answering", daemon=True)
        self.metrics = Metrics(lambda: len(self._turns))

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def able(self) -> bool:
        """Return whether questions are accepted."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Return the number of prompts that wait."""
        return len(self._turns)

    def ask(self, questions: Sequence[Question], client: str, each: int = 1) -> list[Answer]:
        """Let questions wait for their turn; call it in the event loop.

        Args:
            questions: of one request.
            client: who asks; clients take turns.
            each: how many answers to each question, with one seed after the other.

        Raises:
            ProtocolError: too many wait, or the server is shutting down.
        """
        if not self.able:
            raise shutting_down()
        if len(questions) * each > self._turns.most:
            message = f"more than {self._turns.most} answers: send several requests"
            raise ProtocolError(400, message, "invalid_value", "n" if each > 1 else "prompt")
        answers = [Answer(question.another(number)) for question in questions for number in range(each)]
        try:
            self._turns.put(client, answers)
        except FullError:
            raise ProtocolError(429, f"{self.waiting} prompts wait already: try again later", "queue_full") from None
        return answers

    def leave(self, answer: Answer) -> None:
        """Take a question back: it is not answered, or not any further than the step under way."""
        answer.left = True
        self._turns.remove(answer)

    def close(self) -> None:
        """Accept no more questions; the current answer goes on."""
        self._closing = True
        for answer in self._turns.close():
            answer.tell(shutting_down())

    def cut(self) -> None:
        """Interrupt the current answer after its step."""
        self._cut = True

    def join(self) -> None:
        """Wait for the end of the current answer."""
        self._thread.join()

    def _work(self) -> None:
        # The number of threads is each thread's own where torch computes with OpenMP.
        torch.set_num_threads(int(self.engine.environment["threads"]))
        try:
            while (answer := self._turns.take()) is not None:
                self.metrics.waited.observe(monotonic() - answer.asked_at)
                with self.metrics.answering.track_inprogress():
                    self.metrics.ended.labels(self._attend(answer)).inc()
        finally:
            self.close()  # if this thread fails, no client must wait for it

    def _attend(self, answer: Answer) -> str:
        """Send a client the whole answer, or its error, and return how it ended."""
        try:
            generation = self._answer(answer)
        except Exception as error:
            answer.tell(told(error))
            return "error"
        if generation is None:
            return "left"
        answer.tell(shutting_down() if generation.finish_reason == "interrupted" else generation)
        return generation.finish_reason

    def _answer(self, answer: Answer) -> Generation | None:
        """Answer a question and return the whole answer; None if the client has gone."""
        question, generation = answer.question, None
        engine = self.engine.with_sampling(**question.sampling)
        engine = engine.without_eos() if question.ignore_eos else engine
        ids = question.encode(engine)
        stats, began = engine.new_stats(), monotonic()
        try:
            if question.echo and not self._echo(answer, ids):
                return None
            before = monotonic() - began
            if question.max_new_tokens == 0:
                stats.see(Prefilled(before, len(ids), 0, before))
                environment = engine.environment
                return Generation(engine.profile.name, "", ids, "", [], "length", stats, environment, logprobs=())
            events = engine.stream_ids(
                ids,
                max_new_tokens=question.max_new_tokens,
                stop=question.stop,
                seed=question.seed,
                prefix=self._prefix,
                grammar=question.grammar,
                logprobs=question.logprobs,
            )
            with closing(events):
                for event in events:
                    if question.echo:
                        event = _after_echo(event, before)
                    stats.see(event)
                    match event:
                        case Committed() if event.text or event.logprobs:
                            answer.tell(event)
                        case Finished():
                            generation = replace(event.result, stats=stats)
                    if answer.left:
                        return None
                    if self._cut:
                        engine.interrupt()
        finally:
            self.metrics.see(stats)
        return generation

    def _echo(self, answer: Answer, ids: list[int]) -> bool:
        """Send the prompt to the client; return whether the client still waits.

        Raises:
            ProtocolError: the server ends.
        """
        question, scored = answer.question, list[Scored]()
        if question.logprobs is not None:
            for some in self.engine.score_ids(ids, question.logprobs, self._prefix):
                scored += some
                if answer.left:
                    return False
                if self._cut:
                    raise shutting_down()
        text = question.prompt if isinstance(question.prompt, str) else self.engine.tokenizer.decode(ids)
        answer.tell(Echo(text, tuple(scored)))
        return True


def _after_echo(event: Event, seconds: float) -> Event:
    """Return an event with the seconds added that its prompt was run for its log-probabilities before."""
    event = replace(event, t=event.t + seconds)
    return replace(event, cached_tokens=0, seconds=event.seconds + seconds) if isinstance(event, Prefilled) else event
