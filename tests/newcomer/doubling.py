"""A new n-gram drafter: the last token again. Lives in core/hispec/decoding/ngram_drafters."""

from collections.abc import Sequence

from hispec.decoding.drafters import NgramDrafter


class Doubling(NgramDrafter):
    """Drafts the last token of the text once more."""

    def propose(self, tokens: Sequence[int], room: int, *args: object, **options: object) -> list[int]:
        """Return tokens that may follow a text; arguments and result are those of `NgramDrafter.propose`."""
        return [tokens[-1]][:room]
