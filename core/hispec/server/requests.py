"""Requests in the format of the protocol."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from hispec.chat_template import Message
from hispec.decoding.noise import SEEDS
from hispec.errors import UsageError
from hispec.grammar import Grammar
from hispec.server.answering import Question
from hispec.server.errors import ProtocolError
from hispec.settings import Count

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Settings that a request may have values for; `hispec.settings` says which."""
MOST_PROMPTS, MOST_STOPS, MOST_LOGPROBS, MOST_CHOICES = 1024, 16, 20, 128

NOT_EMPTY = Field(min_length=1, fail_fast=True)
"""A list with an item, read up to its first mistake: the mistakes of millions of items would fill the memory."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    **dict.fromkeys(
        (
            "grammar",
            "json_schema",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structured_outputs",
        ),
        (),
    ),
}
"""Fields of the protocol that would change the answer and are not supported, with the values that change nothing. What
else is not known here is left out of account, as clients send fields of other servers, too."""
FORMAT = "ask for the form of the answer with response_format"
INSTEAD = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), f"no function is called here; {FORMAT}"),
    **dict.fromkeys(("json_schema", "guided_json", "structured_outputs"), FORMAT),
    "presence_penalty": "there is repetition_penalty",
    "frequency_penalty": "there is repetition_penalty",
    "best_of": "there is n",
}
"""What to do in the place of some of them; the others are to be left out."""


def _joined(content: Any) -> Any:
    """Return the text of a message that has several parts."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ValueError("only parts of the type text are supported")
    return "".join(str(part.get("text", "")) for part in content)


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, StringConstraints(min_length=1)]
Stop = Annotated[list[Text], Field(max_length=MOST_STOPS), BeforeValidator(_listed)]


class Said(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]

    def message(self) -> Message:
        """Return the message in the form of chat templates."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(BaseModel):
    """The options of a stream."""

    include_usage: bool = False


class Asked(BaseModel, ABC):
    """The fields that every request for an answer has."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | None = None
    user: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    response_format: dict[str, Any] | None = None
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, values: Any) -> Any:
        """Refuse fields that would change the answer and are not supported.

        Raises:
            ProtocolError: naming it.
        """
        for name, neutral in NEUTRAL.items():
            if name in cls.model_fields or not isinstance(values, Mapping):
                continue
            if values.get(name) is not None and values[name] not in neutral:
                told = f"{name} is not supported: {INSTEAD.get(name, 'leave it out')}"
                raise ProtocolError(400, told, "unsupported_parameter", name)
        return values

    @property
    def with_usage(self) -> bool:
        """Return whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def question(self, prompt: tuple[Message, ...] | str | tuple[int, ...]) -> Question:
        """Return the question with one of the prompts."""
        sampling = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        seed = None if self.seed is None else self.seed % SEEDS
        try:
            grammar = Grammar.of_response_format(self.response_format)
        except UsageError as error:
            raise ProtocolError(400, f"{error.message}: {error.hint}", "invalid_value", "response_format") from None
        if grammar is not None and self.ignore_eos:
            raise ProtocolError(
                400, "ignore_eos cannot be combined with response_format", "invalid_value", "ignore_eos"
            )
        stop = tuple(self.stop or ())
        return Question(prompt, sampling, self.limit(), stop, seed, grammar, self.most_probable(), self.ignore_eos)

    def limit(self) -> int | None:
        """Return the maximum number of tokens in an answer."""
        return self.max_tokens

    @abstractmethod
    def most_probable(self) -> int | None:
        """Return the number of most probable tokens to report with each token, None for no log-probabilities."""

    @abstractmethod
    def questions(self) -> list[Question]:
        """Return the question."""


class ChatRequest(Asked):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[Said], NOT_EMPTY]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message must not have the role assistant")
        return self

    def limit(self) -> int | None:
        """Return the maximum number of tokens in an answer."""
        return self.max_completion_tokens or self.max_tokens

    def most_probable(self) -> int | None:
        """Return the number of most probable tokens to report with each token, None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def questions(self) -> list[Question]:
        """Return the question."""
        return [self.question(tuple(said.message() for said in self.messages))]


def _explained(prompt: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Return the prompt in its own type; pydantic would report its mistakes once for each type.

    Raises:
        ValueError: no type fits, or there are too many prompts, which are counted before they are read.
    """
    if isinstance(prompt, list) and len(prompt) > MOST_PROMPTS and not isinstance(prompt[0], int):
        raise ValueError(f"more than {MOST_PROMPTS} prompts: send several requests")
    try:
        return read(prompt)
    except ValidationError:
        raise ValueError("it must be a text, its token ids, or a list of either, and no list may be empty") from None


Ids = Annotated[list[Annotated[int, Field(ge=0)]], NOT_EMPTY]


class CompletionRequest(Asked):
    """A request to `/v1/completions`."""

    prompt: Annotated[
        str | Ids | Annotated[list[str], NOT_EMPTY] | Annotated[list[Ids], NOT_EMPTY],
        WrapValidator(_explained),
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=MOST_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 needs echo")
        return self

    def most_probable(self) -> int | None:
        """Return the number of most probable tokens to report with each token, None for no log-probabilities."""
        return self.logprobs

    def questions(self) -> list[Question]:
        """Return the questions, one for each prompt."""
        several = (
            self.prompt if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else [self.prompt]
        )
        prompts = [one if isinstance(one, str) else tuple(one) for one in several]
        question = replace(self.question(prompts[0]), echo=bool(self.echo))  # the grammar of all is read once
        return [replace(question, prompt=prompt) for prompt in prompts]
