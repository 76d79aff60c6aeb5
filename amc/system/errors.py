"""What can go wrong that the user can fix. Every message names the rule, the value got and the fix, in one line."""

from __future__ import annotations

UNEXPECTED, INTERRUPTED = 1, 130
EXIT_CODES = {
    0: "done",
    UNEXPECTED: "unexpected, a fault of AMC",
    2: "bad usage, recipe or run folder",
    3: "budget cannot be met",
    4: "gate failed",
    5: "bad data or network",
    6: "storage failed",
    INTERRUPTED: "interrupted, the same command goes on",
}


class AmcError(Exception):
    """Root of all errors that AMC raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 2


class UsageError(AmcError):
    """A flag, a recipe, a budget or an argument is not of the form required."""


class RunError(AmcError):
    """A run folder is missing, busy, or belongs to another job."""


class BudgetUnreachable(AmcError):
    """No legal policy fits the caps; the message names the smallest reachable cost."""

    exit_code = 3


class GateFailed(AmcError):
    """A release was measured and does not hold what is required of it."""

    exit_code = 4


class DataError(AmcError):
    """A data set is missing, empty or malformed."""

    exit_code = 5


class ModelError(AmcError):
    """A network or its weights cannot be built, loaded, traced or cut."""

    exit_code = 5


class StorageError(AmcError):
    """A file or a study could not be written whole or read back: a full disk, no permission, damage."""

    exit_code = 6
