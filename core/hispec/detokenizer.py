"""Token ids to text as they come: never an error, and in the end exactly what decoding all of them at once gives."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A token of one byte. Consecutive ones are decoded together: one that fits nowhere turns all of them into U+FFFD."""
INNER = re.compile(r"(?<=[^\W_])[^\W_]")
"""A letter or digit after another. No rule that cleans up spaces reaches beyond the two."""


class Detokenizer:
    """Gives the text that each token adds, as `tokenizer.decode` with `skip_special_tokens` writes it.

    Only the latest tokens are decoded, since a decoder looks no further than to the neighbours: from the last token on
    that is whole characters by itself.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._specials = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._cleans = _cleans_up(tokenizer)
        self._window: list[int] = []
        """The latest tokens, the first of them settled but at the beginning of a text."""
        self._bytes = 0
        """How many of them are bytes at the end."""
        self._settled = 0
        """How many characters of the window's text have been returned."""
        self.unsettled = ""
        """The text after all that was returned, as it is if no more tokens come."""

    def special(self, token: int) -> str | None:
        """Return the text of a special token, None for any other."""
        return self._specials.get(token)

    def add(self, token: int) -> str:
        """Add a token; return what no later token changes."""
        written = self._tokenizer.convert_ids_to_tokens(token)
        if token in self._specials or written is None:  # the decoder does not see it
            return ""
        is_byte = BYTE.fullmatch(written) is not None
        self._window.append(token)
        self._bytes = self._bytes + 1 if is_byte else 0
        text = self._decode(self._window)
        settled = self._settled_length(text)
        piece, self.unsettled = text[self._settled : settled], text[settled:]
        self._settled = max(self._settled, settled)
        if not (is_byte or self.unsettled):
            self._begin_at(token)
        return piece

    def _settled_length(self, text: str) -> int:
        """Return how many characters of the window's text stay as they are."""
        if self._bytes:
            text = self._decode(self._window[: -self._bytes])
        text = text.rstrip("\ufffd")  # perhaps a character's first bytes
        if self._cleans:
            text = text[: max((inner.end() for inner in INNER.finditer(text)), default=0)]
        return max(self._settled, len(text))

    def _begin_at(self, token: int) -> None:
        """Begin the window at the last token, if what follows it does not depend on what is before it."""
        text = self._decode([token])
        if text.strip() and "\ufffd" not in text and (not self._cleans or INNER.fullmatch(text, len(text) - 1)):
            self._window, self._settled = [token], len(text)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _cleans_up(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether decoding takes spaces before punctuation away, which `transformers` does for no BPE by default."""
    bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(tokenizer.clean_up_tokenization_spaces and (forced or not bpe))
