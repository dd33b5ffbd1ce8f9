"""Errors as clients of the protocol know them."""

import traceback
from typing import Any

from hispec.errors import HispecError, OutOfMemoryError, UsageError, is_out_of_memory
from hispec.precedence import SettingError
from hispec.room import TooLongError


class ProtocolError(Exception):
    """An error that is sent to a client.

    Args:
        status: the HTTP status.
        message: a sentence that says what is wrong, and how to mend it.
        code: the same for a program.
        param: the field of the request that it is about.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def to_record(self) -> dict[str, Any]:
        """Return the object that the protocol wraps errors in."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shutting_down() -> ProtocolError:
    """Return the error for clients whose answer is cut off by the end of the server."""
    return ProtocolError(503, "the server is shutting down", "shutting_down")


def told(error: Exception) -> ProtocolError:
    """Return the error that is sent to a client for an exception; a bug is also printed on stderr."""
    match error:
        case ProtocolError():
            return error
        case SettingError():
            named = error.named(error.setting)
            return ProtocolError(400, f"{named.message}: {named.hint}", "invalid_value", error.setting)
        case TooLongError():
            return ProtocolError(400, f"{error.message}: {error.hint}", "context_length_exceeded")
        case UsageError():
            return ProtocolError(400, f"{error.message}: {error.hint}", "invalid_value")
        case OutOfMemoryError():
            return ProtocolError(503, f"{error.message}: shorten the prompt or max_tokens", "out_of_memory")
        case HispecError():
            return ProtocolError(503, f"{error.message}: {error.hint}", "unavailable")
    if is_out_of_memory(error):
        return ProtocolError(503, "the memory ran out: shorten the prompt or max_tokens", "out_of_memory")
    traceback.print_exception(error)
    return ProtocolError(500, f"this is a bug in hispec: {type(error).__name__}", "internal_error")
