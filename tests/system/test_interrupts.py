from __future__ import annotations

import signal
from collections.abc import Iterator
from threading import Thread

import pytest

from amc.system.interrupts import uninterrupted


@pytest.fixture(autouse=True)
def heeding() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    """Ctrl-C inside the block is raised after it."""
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


def test_a_second_interrupt_does_not_wait() -> None:
    """Ctrl-C twice leaves at once."""
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done = True
    assert not done


def test_afterwards_interrupts_are_handled_as_before_whatever_the_block_raised() -> None:
    """Nested blocks and exceptions restore the handler."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError), uninterrupted():
        raise ValueError
    with uninterrupted(), uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_and_other_handlers_are_left_alone() -> None:
    """Only the main thread's default handler is replaced."""
    seen = []

    def look() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        look()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]
