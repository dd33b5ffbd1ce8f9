"""A grammar as a mask over a model's tokens, which every level applies alike."""

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hispec.decoding.noise import POSITIONS_KEPT
from hispec.errors import UsageError
from hispec.grammar import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

MAX_COMPILED = 16
"""Grammars that a model keeps ready."""


class Grammars:
    """Makes grammars ready for a model's vocabulary.

    Args:
        tokenizer: the target's, a fast one.
        vocab_size: the target's vocabulary size.
        eos_ids: the token ids that end an answer.
        device: the device of the logits.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, eos_ids: Collection[int], device: torch.device
    ) -> None:
        self._tokenizer, self._vocab_size, self._device = tokenizer, vocab_size, device
        self._eos_ids = frozenset(token for token in eos_ids if token < vocab_size)
        self._vocabulary: LLTokenizer | None = None
        self._compiled: dict[Grammar, LLMatcher] = {}

    def mask(self, grammar: Grammar, prompt_tokens: int) -> "GrammarMask":
        """Return the mask of one answer.

        Args:
            grammar: the grammar that the answer must match.
            prompt_tokens: before it.

        Raises:
            UsageError: a grammar or a vocabulary that cannot be used.
            UnavailableError: llguidance is not installed.
        """
        return GrammarMask(
            self._matcher(grammar), grammar, prompt_tokens, self._vocab_size, self._eos_ids, self._device
        )

    def is_complete(self, grammar: Grammar, token_ids: Sequence[int]) -> bool:
        """Return whether an answer matches a grammar, an EOS aside."""
        ids = [token for token in token_ids if token not in self._eos_ids]
        matcher = self._matcher(grammar)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def _matcher(self, grammar: Grammar) -> "LLMatcher":
        """Return a matcher at the beginning of an answer."""
        if grammar not in self._compiled:
            grammar.check()
            from llguidance import LLMatcher

            matcher = LLMatcher(self._llguidance_tokenizer(), grammar.for_llguidance(), log_level=0)
            matcher.compute_bitmask()  # some errors appear here
            if matcher.is_error():
                raise grammar.refused(_impossible(matcher))
            while len(self._compiled) >= MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[grammar] = matcher
        return self._compiled[grammar].deep_copy()

    def _llguidance_tokenizer(self) -> "LLTokenizer":
        """Return the vocabulary as llguidance reads it, made once."""
        if self._vocabulary is None:
            from llguidance import LLTokenizer

            if not self._eos_ids:
                raise UsageError(
                    "structured output needs a token that ends an answer, and the model names none",
                    "choose a model with an EOS token",
                )
            backend: Any = self._tokenizer.backend_tokenizer
            try:
                self._vocabulary = LLTokenizer(
                    backend.to_str(), n_vocab=max(len(self._tokenizer), self._vocab_size), eos_token=[*self._eos_ids]
                )
            except (ValueError, TypeError) as error:
                raise UsageError(
                    f"structured output cannot read the tokenizer: {str(error).splitlines()[0]}",
                    "choose a model with byte-level or byte-fallback tokens",
                ) from None
        return self._vocabulary


class GrammarMask:
    """A `hispec.decoding.mask.Mask` that keeps a matcher at the text it was asked about last; see `Grammars.mask`.

    What it knows of rejected tokens is rolled back when it is asked about the text without them. The tokens that may
    follow a text are found once, whichever levels ask.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        grammar: Grammar,
        prompt_tokens: int,
        vocab_size: int,
        eos_ids: frozenset[int],
        device: torch.device,
    ) -> None:
        self._matcher, self._grammar, self._start = matcher, grammar, prompt_tokens
        self._vocab_size, self._eos_ids, self._device = vocab_size, eos_ids, device
        self._all = torch.ones(vocab_size, dtype=torch.bool, device=device)
        self._taken: list[int] = []
        """The answer's tokens that the matcher has taken."""
        self._found: dict[int, Tensor] = {}
        """The tokens that may follow, by the number of tokens before them."""

    def allowed(self, text: Sequence[int]) -> Tensor:
        """Return the tokens that may follow a text; arguments and result are those of `Mask.allowed`."""
        answer = text[self._start :]
        if (answer and answer[-1] in self._eos_ids) or not self._follow(answer):
            return self._all
        if len(answer) not in self._found:
            if len(self._found) >= POSITIONS_KEPT:
                del self._found[min(self._found)]
            self._found[len(answer)] = self._next()
        return self._found[len(answer)]

    def fitting(self, text: Sequence[int], tokens: Sequence[int]) -> int:
        """Return the number of leading tokens that fit, as `Mask.fitting`. An EOS is not counted: whoever verifies
        decides on it.
        """
        wanted = list(takewhile(lambda token: token not in self._eos_ids, tokens))
        return self._matcher.validate_tokens(wanted) if self._follow(text[self._start :], at_end=True) else 0

    def _follow(self, answer: Sequence[int], *, at_end: bool = False) -> bool:
        """Let the matcher take an answer; return whether it may be written.

        Args:
            answer: so far.
            at_end: whether the matcher has to stand at its end, even if what may follow is known.
        """
        if not at_end and len(answer) in self._found and self._taken[: len(answer)] == answer:
            return True
        both = zip(self._taken, answer, strict=False)
        shared = next((at for at, (old, new) in enumerate(both) if old != new), min(len(self._taken), len(answer)))
        if shared < len(self._taken):
            self._matcher.rollback(len(self._taken) - shared)
            self._found = {at: found for at, found in self._found.items() if at <= shared}
        taken = self._matcher.try_consume_tokens(list(answer[shared:]))
        self._taken[shared:] = answer[shared : shared + taken]
        self._check()
        return len(self._taken) == len(answer)

    def _next(self) -> Tensor:
        """Return the tokens that may follow those that the matcher has taken, bool [vocab]."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        bits = np.unpackbits(packed, count=min(self._vocab_size, 8 * len(packed)), bitorder="little")
        found = torch.from_numpy(bits).bool().to(self._device)
        return found if len(found) == self._vocab_size else pad(found, (0, self._vocab_size - len(found)))

    def _check(self) -> None:
        """Raise `UsageError` where the matcher has given up: an ambiguous grammar may be too much for it only now."""
        if self._matcher.is_error():
            raise self._grammar.refused(f"after {len(self._taken)} tokens, {_impossible(self._matcher)}")


def _impossible(matcher: "LLMatcher") -> str:
    """Return a message that says why a matcher cannot continue."""
    reason = matcher.get_error()
    if reason.startswith("NoExtension"):
        return "no text can match it"
    return f"it is too complex ({reason.splitlines()[0]})" if reason else "it cannot go on"
