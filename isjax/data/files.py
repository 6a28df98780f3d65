"""Files that are there whole or not at all, whatever kills the process that writes them."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Generator
from typing import BinaryIO

__all__ = ["write_whole"]


@contextlib.contextmanager
def write_whole(path: pathlib.Path) -> Generator[BinaryIO]:
    """A file to write bytes to, which takes the place of `path` once all is written.

    After an error nothing of it is left, and what was at `path` still is. Its folder is made if
    need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Below a folder of its own the file has the usual permissions, which that of mkstemp has not.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
        part = pathlib.Path(folder, "part")
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
