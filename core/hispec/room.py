"""The room of a model's context, and prompts that it does not hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hispec.counts import counted
from hispec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = 8
"""For each position of the context, the characters of a text's beginning to look at first: more than a token has in
prose."""


class TooLongError(UsageError):
    """A prompt that the context does not hold."""


def check_beginning(tokenizer: "PreTrainedTokenizerBase", text: str, context: int) -> None:
    """Refuse a text that is far too long by the tokens of its beginning, before all of it is tokenized.

    A longer beginning is looked at only while the shorter one has few tokens, so the time depends on the context rather
    than on the text. As a beginning may be cut in the middle of a word, it must have twice the tokens of the context.

    Args:
        tokenizer: the target's.
        text: what is to be tokenized.
        context: the number of positions of the model.

    Raises:
        TooLongError: the context does not hold the text.
    """
    count = CHARACTERS * context
    while count < len(text):
        tokens = len(tokenizer(text[:count], add_special_tokens=False)["input_ids"])
        if tokens > 2 * context:
            raise TooLongError(
                f"the first {count:,} of {len(text):,} characters have {tokens:,} tokens, and the context holds {context}",
                "shorten the prompt",
            )
        count *= 2


def check_room(ids: Sequence[int], context: int, name: str, *, conversation: bool = False) -> int:
    """Return how many tokens an answer may have.

    Args:
        ids: the token ids that the model reads.
        context: positions of the model.
        name: the name of the model or profile, for the error.
        conversation: whether earlier turns are among the ids.

    Raises:
        TooLongError: there is no room for any.
    """
    room = context - len(ids)
    if room < 1:
        raise TooLongError(
            f"the {'conversation' if conversation else 'prompt'} has {counted(len(ids), 'token')}, "
            f"and the context of {name} holds {context}",
            f"{'leave out earlier turns, or ' if conversation else ''}shorten the prompt by at least "
            f"{counted(1 - room, 'token')}",
        )
    return room
