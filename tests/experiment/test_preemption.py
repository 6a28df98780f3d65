import os
import signal
import threading

import pytest

from isjax.experiment.preemption import stop_on_signal


@pytest.fixture(params=[(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def case(request):
    """A signal, the exception it ends in, and a list of the times a handler from before acted."""
    calls = []
    number, error = request.param
    before = signal.signal(number, lambda *args: calls.append(args))
    yield number, error, calls
    signal.signal(number, before)


def test_a_signal_asks_to_stop_and_ends_the_process_when_all_is_done(case):
    number, error, calls = case
    with pytest.raises(error) as raised, stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() and not calls
        saved = True
    assert saved and not getattr(raised.value, "code", 0)
    os.kill(os.getpid(), number)
    assert len(calls) == 1, "the handler from before is back"


def test_a_second_signal_acts_at_once(case):
    number, error, calls = case
    with pytest.raises(error), stop_on_signal() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert len(calls) == 1 and stop()


def test_without_a_signal_nothing_happens(case):
    with stop_on_signal() as stop:
        assert not stop()


def test_handlers_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_on_signal():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_it_never_asks():
    answers = []

    def work():
        with stop_on_signal() as stop:
            answers.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
