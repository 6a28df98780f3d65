"""Ending a run in good order when the machine is taken away, or its user presses Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator

__all__ = ["asked_to_stop"]


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
