"""Ending a run in good order when the machine is taken away, or its user presses Ctrl-C."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Generator

from jax.experimental import multihost_utils

__all__ = ["asked_to_stop", "asked_together"]


@contextlib.contextmanager
def asked_together() -> Generator[Callable[[], bool]]:
    """The same for several processes, which all stop where any of them gets SIGTERM.

    The function it yields is to be called by all, equally often; JAX's coordinator sees to it that
    it turns True for all at the same call. Ctrl-C ends a process at once.
    """
    calls, stopped = itertools.count(), threading.Event()

    def stop() -> bool:
        if not stopped.is_set() and multihost_utils.reached_preemption_sync_point(next(calls)):
            stopped.set()
        return stopped.is_set()

    yield stop
    if stopped.is_set():
        raise SystemExit(0)


@contextlib.contextmanager
def asked_to_stop() -> Generator[Callable[[], bool]]:
    """Within it SIGTERM and Ctrl-C do not end the process: the function it yields returns True.

    When all is saved and the context is left, the process is to end: SIGTERM raises SystemExit
    with status 0, Ctrl-C KeyboardInterrupt. A second signal acts at once, as if nothing had been
    caught. Outside of the main thread, where Python can catch no signal, the function returns
    False for ever.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    caught: list[int] = []

    def handle(number: int, frame: object) -> None:
        caught.append(number)
        stop.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop.is_set
    finally:
        restore()
    if caught:
        raise KeyboardInterrupt if signal.SIGINT in caught else SystemExit(0)
