"""Structured output: the grammar that an answer must match. `hispec.grammar_mask` applies it to a model's tokens.

The grammars are llguidance's: JSON schemas, regular expressions, and its variant of Lark.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hispec.errors import HispecError, UsageError
from hispec.extras import require
from hispec.utf8 import check_utf8

Kind = Literal["JSON schema", "grammar", "regular expression"]

MAX_CHARACTERS = 1 << 20
"""Characters of a grammar; larger ones are refused unread."""

WHITESPACE = " ?"
"""Between two tokens of JSON, where a schema's own `x-guidance` does not say otherwise. Small models that may write more
write little else."""


@dataclass(frozen=True)
class Grammar:
    """A schema, grammar or expression that a whole answer must match.

    Attributes:
        kind: the kind of the source.
        source: a JSON schema as JSON, a regular expression of Rust's syntax, or a grammar in llguidance's Lark.
    """

    kind: Kind
    source: str

    @classmethod
    def json_schema(cls, schema: str | bytes | bool | Mapping[str, Any]) -> "Grammar":
        """Return the grammar of a JSON schema.

        Args:
            schema: the schema, or its JSON text.

        Raises:
            UsageError: the text is not JSON, or its value is neither an object nor a boolean.
        """
        try:
            value = json.loads(schema) if isinstance(schema, str | bytes) else schema
            if not isinstance(value, bool | Mapping):
                raise UsageError(f"a JSON schema is an object, not {_short(value)}", "see https://json-schema.org")
            return cls("JSON schema", json.dumps(value, ensure_ascii=False))
        except (ValueError, TypeError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error}", "see https://json-schema.org") from None
        except RecursionError:
            raise UsageError("the JSON schema is nested too deeply", "make it flatter, or use $ref") from None

    @classmethod
    def json_object(cls) -> "Grammar":
        """Return the grammar of any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Return the grammar of a regular expression, which the whole answer must match."""
        return cls("regular expression", pattern)

    @classmethod
    def lark(cls, text: str) -> "Grammar":
        """Return the grammar of a text in llguidance's variant of Lark; its `start` rule is the whole answer."""
        return cls("grammar", text)

    @classmethod
    def of_response_format(cls, value: Any) -> "Grammar | None":
        """Return the grammar that a `response_format` of the OpenAI protocol asks for; None for text.

        Args:
            value: `{"type": "text"}`, `{"type": "json_object"}`, or
                `{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}`; None is text.

        Raises:
            UsageError: anything else.
        """
        match value:
            case None | {"type": "text"}:
                return None
            case {"type": "json_object"}:
                return cls.json_object()
            case {"type": "json_schema", "json_schema": {"schema": bool() | Mapping() as schema}}:
                return cls.json_schema(schema)
        raise UsageError(
            f"response_format is {_short(value)}",
            'give {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "json_schema": {"schema": {...}}}',
        )

    def check(self) -> None:
        """Refuse a grammar that is wrong for every model; other mistakes are found only when it is compiled.

        Raises:
            UsageError: the grammar is malformed, uses what is not supported, or is too large.
            UnavailableError: llguidance is not installed.
        """
        require("grammar", "structured output")
        check_utf8(self.source, f"the {self.kind}")
        if len(self.source) > MAX_CHARACTERS:
            raise self.refused(f"it has {len(self.source)} characters, and the most are {MAX_CHARACTERS}")
        from llguidance import LLMatcher

        failed, reasons = LLMatcher.validate_grammar_with_warnings(self.for_llguidance())
        if failed:
            raise self.refused(reasons[0])

    def for_llguidance(self) -> str:
        """Return the grammar as llguidance takes it."""
        from llguidance import LLMatcher

        match self.kind:
            case "JSON schema":
                if not self.source.startswith("{"):  # true or false, with which options cannot be given
                    return LLMatcher.grammar_from_json_schema(self.source)
                return LLMatcher.grammar_from_json_schema(self.source, defaults={"whitespace_pattern": WHITESPACE})
            case "regular expression":
                return LLMatcher.grammar_from_regex(self.source)
        return LLMatcher.grammar_from_lark(self.source)

    def refused(self, reason: str) -> HispecError:
        """Return the error of a grammar that cannot be used, with the telling line of a long reason."""
        lines = [line.strip() for line in reason.split("\n<state>")[0].splitlines() if line.strip(" ^|")]
        told = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "it is empty")
        return UsageError(
            f"the {self.kind} cannot be used: {told.removeprefix('error: ')[:300]}",
            "mend it, or see docs/structured.md",
        )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
