"""Artifacts of a run, read back from its folder.

`isjax.experiment.artifacts` writes the draw statistics, the gallery and the step time;
`training.jsonl` and `metrics.jsonl` are the logs of every run.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isjax.reporting.runs import DRAWS, EXAMPLES, TIME, Run

__all__ = ["RunArtifacts", "load_artifacts"]


class RunArtifacts(NamedTuple):
    """Diagnostics, draws and times that a run has written so far; empty where it has none.

    Attributes:
        steps: Diagnostics of training steps by name, [lines of `training.jsonl`] float64. Has
            `step`, and `tau` = 1 / sqrt(`ess`) of arXiv:1803.00942.
        evaluations: Metrics by name, [lines of `metrics.jsonl`] float64.
        draws: `count` [N], the times each example was drawn; `scores`, `losses` and `probs` [K] of
            the last K draws.
        examples: Examples drawn most and least, see `isjax.reporting.gallery`.
        seconds: Seconds of one step by part, summed over its operations, see
            `isjax.reporting.timeline`.
    """

    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    examples: dict[str, np.ndarray]
    seconds: dict[str, float]


def load_artifacts(run: Run) -> RunArtifacts:
    """Reads the artifacts of a run, which may still be going.

    Missing and incomplete files read as empty, and so do damaged ones, with a note on stderr.

    Args:
        run: Run whose folder to read.

    Returns:
        The artifacts.
    """
    steps = _read_columns(run.path / "training.jsonl")
    if "ess" in steps:
        with np.errstate(divide="ignore"):
            steps["tau"] = 1 / np.sqrt(steps["ess"])
    return RunArtifacts(
        steps,
        _read_columns(run.path / "metrics.jsonl"),
        _read_arrays(run.path / DRAWS, _are_draws),
        _read_arrays(run.path / EXAMPLES, _are_examples),
        _read_seconds(run.path / TIME),
    )


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads the numbers that all JSON lines have; stops at an incomplete or damaged line."""
    rows: list[dict[str, float]] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            numbers = json.loads(line)
            row = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float)}
        except (AttributeError, OverflowError, RecursionError, ValueError):
            break
        if "step" not in row:
            break
        rows.append(row)
    names: Iterable[str] = set.intersection(*(set(row) for row in rows)) if rows else ()
    return {name: np.array([row[name] for row in rows]) for name in names}


def _read_arrays(path: Path, fit: Callable[[dict[str, np.ndarray]], bool]) -> dict[str, np.ndarray]:
    """Reads arrays; empty if the file is missing or damaged, or they do not fit each other."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if not fit(arrays):
            raise ValueError("its arrays do not fit each other")
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen kinds for damaged files
        _note_damage(path, error)
        return {}
    return arrays


def _are_draws(arrays: dict[str, np.ndarray]) -> bool:
    """Whether there are counts of examples, and scores, losses and probabilities of draws."""
    count, *drawn = (arrays[name] for name in ("count", "scores", "losses", "probs"))
    counts = count.ndim == 1 and count.size and count.dtype.kind in "iu" and count.min() >= 0
    numbers = all(x.ndim == 1 and x.dtype.kind in "fiu" for x in drawn)
    return bool(counts and numbers and len({len(x) for x in drawn}) == 1)


def _are_examples(arrays: dict[str, np.ndarray]) -> bool:
    """Whether all arrays have an entry for each example; removes inputs that cannot be shown."""
    if "x" in arrays and arrays["x"].dtype.kind not in "biuf":  # such as bfloat16
        del arrays["x"]
    kinds = {"ids": "iu", "count": "iu", "loss": "fiu"}
    kinds |= {name: "U" for name in ("label", "prediction", "text") if name in arrays}
    flat = all(arrays[n].ndim == 1 and arrays[n].dtype.kind in k for n, k in kinds.items())
    return flat and {np.shape(x)[:1] for x in arrays.values()} == {arrays["ids"].shape}


def _read_seconds(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        times = json.loads(path.read_bytes())["seconds"] or {}
        times = {str(part): float(time) for part, time in times.items()}
        if not all(0 <= time < math.inf for time in times.values()):
            raise ValueError("a time is negative or not finite")
    except Exception as error:  # whatever JSON holds
        _note_damage(path, error)
        return {}
    return times


def _note_damage(path: Path, error: Exception) -> None:
    # Not the error's message: that of NumPy advises to unpickle what it cannot read.
    print(f"note: {path}: damaged, left out ({type(error).__name__})", file=sys.stderr)
