"""Counts in sentences, with the noun in the right number."""


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: `1 token`, `2 tokens`, `1,319 rows`.

    Args:
        count: the number of things.
        noun: the noun in the singular; ` of ` and further words may follow it, as in `share of text`.
    """
    return f"{count:,} {nouns(count, noun)}"


def nouns(count: int, noun: str) -> str:
    """Return a noun in the number that goes with a count."""
    if count == 1:
        return noun
    head, of, rest = noun.partition(" of ")
    return head + ("es" if head.endswith(("s", "ch", "sh", "x")) else "s") + of + rest
