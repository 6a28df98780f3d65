"""Artifacts of a run, read back from its folder.

`isjax.experiment.artifacts` writes the draw statistics, the gallery and the step time;
`training.jsonl` and `metrics.jsonl` are the logs of every run.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
        shares: Share of a step's time by part, see `isjax.reporting.timeline`.
    """

    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    examples: dict[str, np.ndarray]
    shares: dict[str, float]


def load_artifacts(run: Run) -> RunArtifacts:
    """Reads the artifacts of a run, which may still be going.

    Missing, incomplete and damaged files read as empty.

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
        _read_arrays(run.path / DRAWS),
        _read_arrays(run.path / EXAMPLES),
        _read_shares(run.path / TIME),
    )


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads the numbers that all JSON lines have; stops at an incomplete line."""
    rows: list[Mapping[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    names: Iterable[str] = set.intersection(*(set(row) for row in rows)) if rows else ()
    return {name: np.array([row[name] for row in rows], float) for name in names}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile):
        return {}


def _read_shares(path: Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text())["shares"] or {}
    except (OSError, ValueError):
        return {}
