"""A check that text can be encoded as UTF-8."""

from hispec.errors import UsageError


def check_utf8(text: str, name: str) -> None:
    """Refuse text with half a surrogate pair, which is how bytes that are no UTF-8 arrive from a command line.

    Raises:
        UsageError: calling the text by `name`.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{name} is not UTF-8 text", "pass it as UTF-8")
