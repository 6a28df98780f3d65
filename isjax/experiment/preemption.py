"""Ends a run in good order on SIGTERM (the machine is taken away) and Ctrl-C."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Generator

from jax.experimental import multihost_utils

__all__ = ["stop_on_signal", "stop_on_signal_to_any"]


@contextlib.contextmanager
def stop_on_signal() -> Generator[Callable[[], bool]]:
    """Yields `should_stop() -> bool`, which is True after SIGTERM or Ctrl-C.

    The process goes on until the context is left; then SIGTERM raises SystemExit with status 0,
    and Ctrl-C KeyboardInterrupt. A second signal acts at once, as if nothing had been caught.
    Python catches signals only in the main thread: elsewhere `should_stop` is always False.
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


@contextlib.contextmanager
def stop_on_signal_to_any() -> Generator[Callable[[], bool]]:
    """As `stop_on_signal`, for several processes: all stop when one of them gets SIGTERM.

    All processes must call `should_stop` equally often. JAX's coordinator makes it True at the
    same call in each of them. Ctrl-C ends a process at once.
    """
    calls, stopped = itertools.count(), threading.Event()

    def should_stop() -> bool:
        if not stopped.is_set() and multihost_utils.reached_preemption_sync_point(next(calls)):
            stopped.set()
        return stopped.is_set()

    yield should_stop
    if stopped.is_set():
        raise SystemExit(0)
