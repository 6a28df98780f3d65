"""Runs as read back from their folders: `config.json` and the evaluations in `metrics.jsonl`.

Runs still going are read as far as they have come.
"""

import contextlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Run", "by_method", "final", "load_runs"]

_CONFIG = {"method": str, "seed": int, "num_steps": int, "dataset": str}
_METRICS = {"step": float, "seconds": float, "train_loss": float, "test_accuracy": float}


class Run(NamedTuple):
    """One run: its settings, and arrays with an entry per evaluation (`seconds` of training)."""

    path: Path
    method: str
    seed: int
    num_steps: int
    dataset: str
    step: np.ndarray
    seconds: np.ndarray
    train_loss: np.ndarray
    test_accuracy: np.ndarray


def _parse(text: bytes, keys: dict[str, Any], where: str) -> list[Any]:
    """Return the values of a JSON object at the keys, each converted; ValueError if malformed."""
    try:
        entry = json.loads(text)
        return [kind(entry[key]) for key, kind in keys.items()]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{where}: malformed ({error!r}); repair it, or move the run away and run it anew"
        raise ValueError(message) from error


def _load_run(folder: Path) -> Run | None:
    """Return the run in a folder, or None if it has no complete evaluation yet."""
    path = folder / "metrics.jsonl"
    *lines, tail = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows = [_parse(v, _METRICS, f"{path}, line {i}") for i, v in enumerate(lines, 1) if v.strip()]
    with contextlib.suppress(ValueError):  # without a newline: probably still being written
        rows.append(_parse(tail, _METRICS, ""))
    if not rows:
        return None
    step, seconds, *values = np.array(rows).T
    if not ((np.diff(step) > 0).all() and (np.diff(seconds) >= 0).all()):
        raise ValueError(f"{path}: step or seconds goes back; move the run away and run it anew")
    path = folder / "config.json"
    config = _parse(path.read_bytes(), _CONFIG, str(path))
    return Run(folder, *config, step, seconds, *values)


def load_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Load every run at or below the folders, each once.

    A run without a complete evaluation is skipped with a note on stderr, a folder without runs
    likewise. A torn last line is ignored.

    Args:
        folders: Run directories, or folders above them.

    Returns:
        The runs, at least one, all on one data set.

    Raises:
        ValueError: A folder is missing, no run is found, a file is malformed or the data sets
            differ; the message names the path and the remedy.
        OSError: A file cannot be read.
    """
    folders = [Path(folder) for folder in folders]
    runs: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give a run directory or one above runs")
        found = sorted(path.parent for path in folder.rglob("config.json"))
        loaded = [_load_run(path) for path in found]
        runs |= {run.path.resolve(): run for run in loaded if run is not None}
        skipped = [path for path, run in zip(found, loaded, strict=True) if run is None]
        for path in skipped if found else [folder]:
            reason = "skipped, no complete evaluation yet" if found else "no run in this folder"
            print(f"note: {path}: {reason}", file=sys.stderr)
    if not runs:
        message = "no run with an evaluation; give a folder with config.json and metrics.jsonl"
        raise ValueError(f"{', '.join(map(str, folders))}: {message} in it or below it")
    places = {run.dataset: run.path for run in runs.values()}
    if len(places) > 1:
        names = ", ".join(f"{name} ({path})" for name, path in sorted(places.items()))
        raise ValueError(f"runs on different data sets: {names}; report on one data set at a time")
    return list(runs.values())


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by method, uniform first, then by name."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.method != "uniform", run.method, run.seed)):
        groups.setdefault(run.method, []).append(run)
    return groups


def final(runs: Iterable[Run], name: str) -> tuple[float, ...]:
    """Return each run's last value."""
    return tuple(float(getattr(run, name)[-1]) for run in runs)
