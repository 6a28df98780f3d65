import os
import signal
import threading

import pytest

from isjax.preemption import asked_to_stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_a_second_one_acts(number):
    calls = []
    before = signal.signal(number, lambda *args: calls.append(args))
    try:
        with asked_to_stop() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop() and not calls
            os.kill(os.getpid(), number)
            assert len(calls) == 1 and stop()
        os.kill(os.getpid(), number)
        assert len(calls) == 2
    finally:
        signal.signal(number, before)


def test_handlers_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), asked_to_stop():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_it_never_asks():
    answers = []

    def work():
        with asked_to_stop() as stop:
            answers.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
