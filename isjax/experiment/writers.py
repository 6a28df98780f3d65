"""The metrics of a run on disk: JSON lines, and TensorBoard events made from them."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Silent", "Writer"]

_FILES = {"training": "training.jsonl", "evaluation": "metrics.jsonl"}  # of a step, in this order


class Writer:
    """Appends lines to `metrics.jsonl` (evaluations) and `training.jsonl` (diagnostics).

    `tensorboard/` shows the same numbers. Its event files are written anew from the lines when a
    run is resumed, so that neither holds a line twice.
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
            sizes: bytes of each file that count, as `sizes` once returned; what a crash left
                behind them is cut off. None = nothing counts.
            also: `(kind, line)`, called with every line in the order of steps, first with those
                that are in the files.

        Raises:
            ValueError: if a file is shorter than that.
            ImportError: without tensorboardX.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("runs write TensorBoard events: pip install 'isjax[run]'") from error
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
        """Appends a line of kind "evaluation" or "training", with its `step`."""
        self._files[kind].write((json.dumps(line) + "\n").encode())
        self._show(kind, line)

    def sizes(self) -> dict[str, int]:
        """Bytes written to each file, after making sure that they are on disk."""
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


class Silent:
    """In place of a `Writer` where another process writes."""

    def write(self, kind: str, line: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def sizes(self) -> dict[str, int]:
        """None of any file."""
        return {}


def _open(path: pathlib.Path, size: int) -> Any:
    """The file open for appending, unbuffered, cut to `size` bytes."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by the writer)
    if file.tell() < size:
        raise ValueError(
            f"{path} has {file.tell()} bytes, but its checkpoint knows of {size}; "
            "restore the file, or choose another folder"
        )
    file.truncate(size)
    file.seek(size)
    return file
