"""The errors that users meet: what is wrong, how to mend it, and the exit code that scripts see.

Every mistake of a user derives from `HispecError`; any other exception is a bug.
"""

from typing import Any

from hispec.counts import counted


class HispecError(Exception):
    """A failure with a message and a hint, each one line of plain text.

    Args:
        message: the line that says what is wrong and names the offending value.
        hint: the line that says how to mend it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HispecError):
    """Wrong option, prompt or input file."""

    exit_code = 2


class ProfileError(UsageError):
    """A profile that is missing, malformed or impossible for its model."""


class BadValueError(ValueError):
    """A value that a validator refuses, for pydantic, which takes no error but a `ValueError`; see `HispecError`."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}: {hint}")
        self.message = message
        self.hint = hint


class LosslessnessError(HispecError):
    """The output differs from that of the target alone."""

    exit_code = 4


class UnavailableError(HispecError):
    """The environment cannot do it: no weights, no memory, no network, no permission."""

    exit_code = 5


class OutOfMemoryError(UnavailableError):
    """The memory ran out while decoding; the validated part of the answer is kept.

    Args:
        generation: the answer so far.
        tokens: the number of its tokens.
    """

    def __init__(self, generation: Any, tokens: int) -> None:
        super().__init__(
            f"out of memory after {counted(tokens, 'token')} of the answer, kept",
            "shorten the prompt or --max-new-tokens, choose a smaller model or dtype, or see: hispec doctor",
        )
        self.generation = generation


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: Python's, a GPU's, or torch's on a CPU, which is a plain `RuntimeError`."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"  # torch need not be imported to know its errors
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "out of memory" in str(error)
    )


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an exchange with another process failed, as it does where that process has ended."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")  # of torch.distributed
        or "gloo/transport" in str(error)  # a plain `RuntimeError`
    )
