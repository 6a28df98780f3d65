"""Writes the metrics of a run as JSON lines, and the same numbers as TensorBoard events."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["NullWriter", "Writer"]

_FILES = {"training": "training.jsonl", "evaluation": "metrics.jsonl"}  # the order within a step


class Writer:
    """Appends lines to `metrics.jsonl` (evaluations) and `training.jsonl` (diagnostics).

    `tensorboard/` holds the same numbers. On resuming its event files are written anew from the
    lines, so that no number is there twice.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        sizes: Mapping[str, int] | None = None,
        also: Callable[[str, Mapping[str, Any]], None] | None = None,
    ):
        """Opens the files of a run.

        Args:
            workdir: folder of the run.
            sizes: bytes of each file that belong to the checkpoint, of `sizes()`; the rest is cut
                off. None = all of it.
            also: `(kind, line)`, called with every line in the order of steps, first with those
                that are in the files.

        Raises:
            ValueError: if a file is shorter than its size.
            ImportError: without tensorboardX.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "runs write TensorBoard events: pip install '.[run]' in a checkout of isjax"
            ) from error
        self._files = {
            kind: _open(workdir / name, (sizes or {}).get(kind, 0)) for kind, name in _FILES.items()
        }
        for path in (workdir / "tensorboard").glob("events.out.tfevents.*"):
            path.unlink()
        self._events, self._also = SummaryWriter(str(workdir / "tensorboard")), also
        lines = [
            (kind, json.loads(line))
            for kind, name in _FILES.items()
            for line in (workdir / name).read_text().splitlines()
        ]
        for kind, line in sorted(lines, key=lambda one: one[1]["step"]):
            self._show(kind, line)

    def write(self, kind: str, line: Mapping[str, Any]) -> None:
        """Appends a line.

        Args:
            kind: "evaluation" or "training".
            line: numbers by name, `step` among them.
        """
        self._files[kind].write((json.dumps(line) + "\n").encode())
        self._show(kind, line)

    def sizes(self) -> dict[str, int]:
        """Flushes the files to disk, and returns the bytes in each, by kind."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {kind: file.tell() for kind, file in self._files.items()}

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        self._events.close()

    def __enter__(self) -> "Writer":
        """The writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        self.close()

    def _show(self, kind: str, line: Mapping[str, Any]) -> None:
        if self._also:
            self._also(kind, line)
        for name, value in line.items():
            if name != "step" and math.isfinite(value):
                self._events.add_scalar(f"{kind}/{name}", value, line["step"])


class NullWriter:
    """Stands for the `Writer` in processes that do not write."""

    def write(self, kind: str, line: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def sizes(self) -> dict[str, int]:
        """No files."""
        return {}


def _open(path: pathlib.Path, size: int) -> Any:
    """The file open for appending, unbuffered, cut to `size` bytes."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by the writer)
    if file.tell() < size:
        raise ValueError(
            f"{path} has {file.tell()} bytes, but its checkpoint was saved at {size}; "
            "restore the file, or choose another folder"
        )
    file.truncate(size)
    file.seek(size)
    return file
