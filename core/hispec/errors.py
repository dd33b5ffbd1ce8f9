"""The errors that users meet: what is wrong, how to mend it, and the exit code that scripts see.

Everything a user can cause derives from `HispecError`; any other exception is a bug.
"""


class HispecError(Exception):
    """A failure with a cause and a cure, each one line of plain text.

    Args:
        cause: what is wrong, naming the offender.
        cure: how to mend it.
    """

    exit_code = 1

    def __init__(self, cause: str, cure: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.cure = cure


class UsageError(HispecError):
    """Wrong option, prompt or input file."""

    exit_code = 2


class ProfileError(UsageError):
    """A profile that is missing, malformed or impossible for its model."""


class LosslessnessError(HispecError):
    """The output differs from what the target alone writes."""

    exit_code = 4


class UnavailableError(HispecError):
    """The environment cannot do it: no weights, no memory, no network, no permission."""

    exit_code = 5
