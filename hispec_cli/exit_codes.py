"""The exit codes that scripts see. Errors of users carry theirs: see `hispec.errors`."""

from hispec.errors import LosslessnessError, UsageError

BUG = 1
USAGE = UsageError.exit_code
GATE_FAILED = 3
DIFFERS = LosslessnessError.exit_code
INTERRUPTED = 130
