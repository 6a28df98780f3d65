"""Files that are written whole or not at all, even if the process is killed."""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Generator
from typing import BinaryIO, TypeVar

__all__ = ["cannot_write", "read_or_none", "write_whole"]

T = TypeVar("T")


@contextlib.contextmanager
def write_whole(path: pathlib.Path) -> Generator[BinaryIO]:
    """Opens a temporary file for bytes that replaces `path` once it is complete.

    After an error the temporary file is removed and the old file at `path` is unchanged.

    Args:
        path: file to write; its folder is made if needed.

    Yields:
        The open temporary file.

    Raises:
        OSError: if it cannot be written, as on a full disk; the message names `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own the file gets the usual permissions; one by mkstemp would not.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            part = pathlib.Path(folder, "part")
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: pathlib.Path, error: OSError) -> OSError:
    """Makes an error that names the file; the system's own names none when a write fails.

    Args:
        path: file that was to be written.
        error: of the system.

    Returns:
        An error of the same number.
    """
    named = OSError(f"{path} cannot be written: {error.strerror or error}")
    named.errno = error.errno
    return named


def read_or_none(path: pathlib.Path, read: Callable[[pathlib.Path], T]) -> T | None:
    """Reads a file that can be made anew.

    Args:
        path: file to read.
        read: function of the path; raises any exception if the file is damaged.

    Returns:
        The result of `read`; None if there is no such file, or, with a note, if it is damaged.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy, zipfile and json raise many kinds of them
        # Not their message: that of NumPy advises to unpickle what it cannot read.
        print(
            f"note: {path} is damaged ({type(error).__name__}); it is made anew",
            file=sys.stderr,
            flush=True,
        )
        return None
