"""Processes that heed Ctrl-C, however the tests were started."""

import signal


def heed_interrupts() -> None:
    """A `preexec_fn`: a shell that starts the tests in the background has them and their children ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
