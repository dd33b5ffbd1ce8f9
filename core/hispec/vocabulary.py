"""A check that two models have the same tokens for the same ids."""

from typing import TYPE_CHECKING

from hispec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_vocabulary(
    own: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase", own_name: str, other_name: str
) -> None:
    """Raise if a model's ids mean other tokens than the target's; ids that only one of them has are tolerated.

    Raises:
        UsageError: the vocabularies differ; the message names the first id that does.
    """
    tokens, others = ({id_: token for token, id_ in t.get_vocab().items()} for t in (own, other))
    for id_ in sorted(tokens.keys() & others.keys()):
        if tokens[id_] != others[id_]:
            raise UsageError(
                f"{other_name} and {own_name} do not share a vocabulary: "
                f"id {id_} is {others[id_]!r} in one and {tokens[id_]!r} in the other",
                "choose models of one family",
            )
