"""Converts token ids to text as they arrive, without errors; the result equals decoding all of them together."""

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A token of one byte. Consecutive ones are decoded together: one that fits nowhere turns all of them into U+FFFD."""
INNER = re.compile(r"(?<=[^\W_])[^\W_]")
"""A letter or digit after another. No rule that cleans up spaces reaches beyond the two."""


class _Kind(NamedTuple):
    """The properties of a token that decoding depends on.

    Attributes:
        seen: whether the decoder sees it: not a special token, nor an id without a token.
        byte: whether it is one byte of a run.
        alone: characters of its text by itself, None where no window may begin with it.
    """

    seen: bool
    byte: bool
    alone: int | None


class Detokenizer:
    """Gives the text that each token adds, as `tokenizer.decode` with `skip_special_tokens` writes it.

    Only the latest tokens are decoded, from the last token before which all text was final, since a decoder looks no
    further than the neighbours of a token.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._specials = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._cleans = _cleans_up(tokenizer)
        self._kinds: dict[int, _Kind] = {}
        self._window: list[int] = []
        """The latest tokens, the first of them settled but at the beginning of a text."""
        self._settled = 0
        """The number of characters of the window's text that have been returned."""

    def special(self, token: int) -> str | None:
        """Return the text of a special token, None for any other."""
        return self._specials.get(token)

    def add(self, token: int) -> str:
        """Add a token, and return the text that later tokens cannot change."""
        kind = self._kinds.get(token)
        if kind is None:
            kind = self._kinds[token] = self._kind_of(token)
        if not kind.seen:
            return ""
        self._window.append(token)
        if kind.byte:  # the text of a run of bytes is known only after its end
            return ""
        text = self._decode(self._window)
        settled = self._settled_length(text)
        piece = text[self._settled : settled]
        self._settled = settled
        if settled == len(text) and kind.alone is not None:
            self._window, self._settled = [token], kind.alone
        return piece

    def unsettled(self) -> str:
        """Return the text after the returned part, as it is if no more tokens come."""
        return self._decode(self._window)[self._settled :]

    def finish(self) -> str:
        """Return that text once no more tokens come."""
        rest = self.unsettled()
        self._settled += len(rest)
        return rest

    def _settled_length(self, text: str) -> int:
        """Return how many characters of the window's text are final."""
        text = text.rstrip("\ufffd")  # perhaps a character's first bytes
        if self._cleans:
            text = text[: max((inner.end() for inner in INNER.finditer(text)), default=0)]
        return max(self._settled, len(text))

    def _kind_of(self, token: int) -> _Kind:
        written = self._tokenizer.convert_ids_to_tokens(token)
        if token in self._specials or written is None:
            return _Kind(seen=False, byte=False, alone=None)
        text = self._decode([token])
        # The decoder may strip what follows a space at the beginning of a text, together with the space.
        begins = text.strip() and (not self._cleans or INNER.fullmatch(text, len(text) - 1))
        return _Kind(seen=True, byte=BYTE.fullmatch(written) is not None, alone=len(text) if begins else None)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _cleans_up(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether decoding takes spaces before punctuation away, which `transformers` does for no BPE by default."""
    bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(tokenizer.clean_up_tokenization_spaces and (forced or not bpe))
