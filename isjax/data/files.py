"""Files that are written whole or not at all, even if the process is killed."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Generator
from typing import BinaryIO

__all__ = ["write_whole"]


@contextlib.contextmanager
def write_whole(path: pathlib.Path) -> Generator[BinaryIO]:
    """Opens a temporary file for bytes that replaces `path` once it is complete.

    After an error the temporary file is removed and the old file at `path` is unchanged.

    Args:
        path: file to write; its folder is made if needed.

    Yields:
        The open temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own the file gets the usual permissions; one by mkstemp would not.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
        part = pathlib.Path(folder, "part")
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
