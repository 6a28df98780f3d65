"""How the sampler of a run behaved, as read back from the run's folder."""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isjax.reporting.runs import DRAWS, EXAMPLES, TIME, Run

__all__ = ["Behaviour", "load_behaviour"]


class Behaviour(NamedTuple):
    """What a run put by, as far as it has come; what is missing is empty.

    Attributes:
        steps: diagnostics by name, an entry per line of `training.jsonl`, `step` among them, and
            `tau`, the 1 / sqrt(effective sample size) of arXiv 1803.00942.
        evaluations: by name, an entry per line of `metrics.jsonl`.
        draws: `count` [N], and of the last draws `scores`, `losses`, `probs`.
        examples: drawn most and least, see `isjax.reporting.gallery`.
        shares: of a step's time, by part, see `isjax.reporting.timeline`.
    """

    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    examples: dict[str, np.ndarray]
    shares: dict[str, float]


def load_behaviour(run: Run) -> Behaviour:
    """Reads what there is in the folder of a run, which may still be going."""
    steps = _columns(run.path / "training.jsonl")
    if "ess" in steps:
        with np.errstate(divide="ignore"):
            steps["tau"] = 1 / np.sqrt(steps["ess"])
    return Behaviour(
        steps,
        _columns(run.path / "metrics.jsonl"),
        _arrays(run.path / DRAWS),
        _arrays(run.path / EXAMPLES),
        _shares(run.path / TIME),
    )


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The numbers that all lines have in common; a torn last line is left out."""
    rows: list[Mapping[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    names: Iterable[str] = set.intersection(*(set(row) for row in rows)) if rows else ()
    return {name: np.array([row[name] for row in rows], float) for name in names}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile):
        return {}


def _shares(path: Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text())["shares"] or {}
    except (OSError, ValueError):
        return {}
