"""Hides the tracebacks that Orbax logs besides raising an error, one for each array."""

import logging
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["hide"]

_LOGGERS = (logging.getLogger("absl"), logging.getLogger("asyncio"))


def hide() -> Callable[[], None]:
    """Hides errors that Orbax logs, and those of its event loop.

    Returns:
        A function that shows them again. After an error of Orbax do not call it: more of them are
        logged until the process ends.
    """
    hook = sys.unraisablehook

    def hook_without(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    def show() -> None:
        for logger in _LOGGERS:
            logger.removeFilter(_not_an_error_of_orbax)
        if sys.unraisablehook is hook_without:
            sys.unraisablehook = hook

    for logger in _LOGGERS:
        logger.addFilter(_not_an_error_of_orbax)
    sys.unraisablehook = hook_without
    return show


def _not_an_error_of_orbax(record: logging.LogRecord) -> bool:
    own = "orbax" in record.pathname or "orbax" in record.getMessage()
    return record.levelno < logging.ERROR or not own
