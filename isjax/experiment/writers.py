"""Writes the metrics of a run as JSON lines, and the same numbers as TensorBoard events."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from isjax.data.files import cannot_write

__all__ = ["NullWriter", "Writer"]

_FILES = {"training": "training.jsonl", "evaluation": "metrics.jsonl"}  # the order within a step


class Writer:
    """Appends lines to `metrics.jsonl` (evaluations) and `training.jsonl` (diagnostics).

    A line is written whole or not at all. `tensorboard/` holds the same numbers. On resuming its
    event files are written anew from the lines, so that no number is there twice. If they cannot be
    written, a note says so and the run goes on without them.
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
            ValueError: if a file is shorter than its size, or one of its lines is damaged.
            ImportError: without tensorboardX.
            OSError: if a file cannot be opened.
        """
        self._events, self._also = _Events(workdir / "tensorboard"), also
        self._paths = {kind: workdir / name for kind, name in _FILES.items()}
        self._files = {
            kind: _open(path, (sizes or {}).get(kind, 0)) for kind, path in self._paths.items()
        }
        lines = [(kind, line) for kind, path in self._paths.items() for line in _lines(path)]
        self._events.begin()
        for kind, line in sorted(lines, key=lambda one: one[1]["step"]):
            self._show(kind, line)

    def write(self, kind: str, line: Mapping[str, Any]) -> None:
        """Appends a line.

        Args:
            kind: "evaluation" or "training".
            line: numbers by name, `step` among them.

        Raises:
            OSError: if the line cannot be written whole, as on a full disk; the file then ends with
                the line before.
        """
        file, text = self._files[kind], (json.dumps(line) + "\n").encode()
        end = file.tell()
        try:
            while text:  # a disk that gets full takes a part, and refuses the rest
                text = text[file.write(text) :]
        except OSError as error:
            file.truncate(end)
            file.seek(end)
            raise cannot_write(self._paths[kind], error) from error
        self._show(kind, line)

    def sizes(self) -> dict[str, int]:
        """Flushes the files to disk, and returns the bytes in each, by kind.

        Raises:
            OSError: if they cannot be written.
        """
        for kind, file in self._files.items():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise cannot_write(self._paths[kind], error) from error
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
        self._events.add(kind, line)
        if kind == "evaluation":
            self._events.flush()


class _Events:
    """TensorBoard events of the lines, written by the thread that trains.

    The `SummaryWriter` of tensorboardX has a thread of its own. If that ends, as on a full disk,
    `add_scalar` waits for it for ever.
    """

    def __init__(self, folder: pathlib.Path):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event  # type: ignore
            from tensorboardX.proto.summary_pb2 import Summary  # type: ignore
        except ImportError as error:
            raise ImportError(
                "runs write TensorBoard events: pip install '.[run]' in a checkout of isjax"
            ) from error
        self._folder, self._make, self._writer = folder, EventsWriter, None
        self._event, self._summary = Event, Summary

    def begin(self) -> None:
        """Removes the event files in the folder, and begins another."""
        with self._dropped_if_it_fails():
            self._folder.mkdir(exist_ok=True)
            for path in self._folder.glob("events.out.tfevents.*"):
                path.unlink()
            self._writer = self._make(str(self._folder / "events"))

    def add(self, kind: str, line: Mapping[str, Any]) -> None:
        """Adds an event with the finite numbers of a line."""
        if self._writer is None:
            return
        values = [
            self._summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in line.items()
            if name != "step" and math.isfinite(value)
        ]
        summary = self._summary(value=values)
        event = self._event(wall_time=time.time(), step=line["step"], summary=summary)
        with self._dropped_if_it_fails():
            self._writer.write_event(event)

    def flush(self) -> None:
        """Writes the events to disk."""
        if self._writer is not None:
            with self._dropped_if_it_fails():
                self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            with self._dropped_if_it_fails():
                self._writer.close()

    @contextlib.contextmanager
    def _dropped_if_it_fails(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(
                f"note: {cannot_write(self._folder, error)}; the run goes on without TensorBoard "
                "events, metrics.jsonl and training.jsonl hold the same numbers",
                file=sys.stderr,
                flush=True,
            )


class NullWriter:
    """Stands for the `Writer` in processes that do not write."""

    def write(self, kind: str, line: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def sizes(self) -> dict[str, int]:
        """No files."""
        return {}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a file; refuses one that is not numbers by name."""
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
            {name: float(value) for name, value in line.items()}
            line["step"] = int(line["step"])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: damaged ({error!r}); repair the line, or choose another "
                "folder"
            ) from error
        lines.append(line)
    return lines


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
