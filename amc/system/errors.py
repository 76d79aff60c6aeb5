"""What can go wrong that the user can mend. Every message names the rule, the value got and the mend, in one line."""

from __future__ import annotations


class AmcError(Exception):
    """Root of all errors that AMC raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 2


class UsageError(AmcError):
    """A flag, a recipe, a budget or an argument is not of the form asked for."""


class DataError(AmcError):
    """A data set is missing, empty or malformed."""


class ModelError(AmcError):
    """A network or its weights cannot be built, loaded, traced or cut."""


class RunError(AmcError):
    """A run folder is missing, busy, or belongs to another job."""


class StorageError(AmcError):
    """A file could not be written whole: a full disk, no permission."""


class BudgetUnreachable(AmcError):
    """No legal policy fits the caps; the message names the smallest reachable cost."""

    exit_code = 3


class GateFailed(AmcError):
    """A release was measured and does not hold what was asked of it."""

    exit_code = 4
