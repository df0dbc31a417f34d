"""SIGTERM and Ctrl-C, heard by a thread."""

import os
import select
import signal

import pytest

from grove_megatron.failure.termination import Termination


@pytest.fixture(autouse=True)
def _as_a_process_begins(_signals: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_heard(termination: Termination, number: signal.Signals = signal.SIGTERM) -> bool:
    os.kill(os.getpid(), number)
    readable, _, _ = select.select([termination.reader], [], [], 0.2)
    return bool(readable) and termination.asked() == number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_heard_and_ends_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    termination = Termination()
    assert is_heard(termination, number)
    termination.undo()
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_signal_is_not_it() -> None:
    termination = Termination()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    assert not is_heard(termination, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    termination.undo()


def test_a_handler_of_somebody_else_is_respected() -> None:
    """As --exit-signal-handler installs one, to save and leave in good order."""

    def theirs(*_: object) -> None:
        pass

    termination = Termination()
    signal.signal(signal.SIGTERM, theirs)
    assert not is_heard(termination)
    termination.undo()
    assert signal.getsignal(signal.SIGTERM) is theirs
    # And one that was there before.
    termination = Termination()
    assert not is_heard(termination)
    assert is_heard(termination, signal.SIGINT)
    termination.undo()
    assert signal.getsignal(signal.SIGTERM) is theirs
