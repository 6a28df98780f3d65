"""Runs, read back from `config.json` and `metrics.jsonl` in their folders.

Unfinished runs are read as far as they have come.
"""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from isjax.reporting.text import shown

__all__ = [
    "DRAWS",
    "EXAMPLES",
    "SCORES",
    "TEST_LOSS",
    "TIME",
    "TRAIN_LOSS",
    "Group",
    "Metric",
    "Run",
    "by_group",
    "final",
    "load_runs",
    "reference",
    "score",
]


# Files that isjax.experiment.artifacts writes.
DRAWS, EXAMPLES, TIME = "draws.npz", "examples.npz", "time.json"


class Metric(NamedTuple):
    """Metric that compares runs.

    Attributes:
        name: Name in `Run.metrics`.
        label: Name in tables and figures.
        higher_is_better: Whether higher values are better.
    """

    name: str
    label: str
    higher_is_better: bool = False


TRAIN_LOSS = Metric("train_loss", "train loss")
TEST_LOSS = Metric("test_loss", "test loss")
SCORES = (  # in order of preference; every run has the last
    Metric("test_accuracy", "test accuracy", higher_is_better=True),
    Metric("test_perplexity", "test perplexity"),
    TEST_LOSS,
)


class Group(NamedTuple):
    """Method and budget of runs that differ in their seed alone.

    Attributes:
        method: Name of the method.
        budget: Share of `num_steps` that the runs take.
    """

    method: str
    budget: float

    @property
    def share(self) -> str:
        """Budget as a percentage."""
        return f"{100 * self.budget:.4g}%"

    @property
    def label(self) -> str:
        """Method, fit to be shown, and, unless it is full, budget; for example `last_loss 50%`."""
        return shown(self.method) + ("" if self.budget == 1 else f" {self.share}")


class Run(NamedTuple):
    """One run.

    Attributes:
        path: Folder of the run.
        method: Name of the method.
        seed: Random seed.
        num_steps: Steps at the full budget.
        dataset: Name of the data set.
        metrics: Metrics by name, [evaluations] float64: `step`, `seconds` of training,
            `train_loss`, `test_loss`, and those of `test_accuracy` and `test_perplexity` that all
            evaluations have.
        budget: Share of `num_steps` that the run takes.
        config: Settings of the run by dotted name.
    """

    path: Path
    method: str
    seed: int
    num_steps: int
    dataset: str
    metrics: dict[str, np.ndarray]
    budget: float = 1.0
    config: Mapping[str, Any] = MappingProxyType({})

    @property
    def total_steps(self) -> int:
        """Step at which the run ends."""
        return max(1, round(self.num_steps * self.budget))

    @property
    def finished(self) -> bool:
        """Whether the run has been evaluated at its last step."""
        return bool(self.metrics["step"][-1] >= self.total_steps)

    @property
    def skipped(self) -> int:
        """Steps skipped so far, because a loss or the gradient was not finite."""
        skipped = self.metrics.get("skipped", np.zeros(1))[-1]
        return int(skipped) if math.isfinite(skipped) else 0


def _budget(value: Any) -> float:
    """Converts a budget; raises ValueError unless it is positive and of a sensible size."""
    if not 0 < float(value) <= _MAX_BUDGET:
        raise ValueError(f"budget is {value}; it must be above 0, at most {_MAX_BUDGET}")
    return float(value)


def _steps(value: Any) -> int:
    """Converts a number of steps; raises ValueError unless it is positive and counts exactly."""
    if not 0 < int(value) <= _MAX_STEPS:
        raise ValueError(f"num_steps is {value}; it must be from 1 to {_MAX_STEPS}")
    return int(value)


def _finite(value: Any) -> float:
    """Converts a number; raises ValueError unless it is finite and at least 0."""
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{value} where a finite number, at least 0, is needed")
    return float(value)


_MAX_STEPS, _MAX_BUDGET = 2**53, 1000
_CONFIG = {"method": str, "seed": int, "num_steps": _steps, "dataset": str, "budget": _budget}
_METRICS: dict[str, Callable[[Any], float]] = {
    **dict.fromkeys(("step", "seconds"), _finite),
    **dict.fromkeys(("train_loss", "skipped", *(s.name for s in SCORES)), float),
}
_OPTIONAL = {"budget", "skipped", "test_accuracy", "test_perplexity"}


def _parse(text: bytes, kinds: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the converted values of a JSON object; raises ValueError if it is malformed."""
    try:
        entry = json.loads(text)
        keys = [key for key in kinds if key not in _OPTIONAL or key in entry]
        return {key: kinds[key](entry[key]) for key in keys}
    except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = shown(repr(error), 200)
        message = f"{where}: malformed ({reason}); repair it, or move the run away and repeat it"
        raise ValueError(message) from error


def _load_run(folder: Path) -> Run | None:
    """Returns the run in a folder, or None if it has no complete evaluation yet."""
    path = folder / "metrics.jsonl"
    *lines, tail = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows = [_parse(v, _METRICS, f"{path}, line {i}") for i, v in enumerate(lines, 1) if v.strip()]
    with contextlib.suppress(ValueError):  # a line without a newline may be incomplete
        rows.append(_parse(tail, _METRICS, ""))
    if not rows:
        return None
    names = [name for name in _METRICS if all(name in row for row in rows)]
    metrics = {name: np.array([row[name] for row in rows]) for name in names}
    if not ((np.diff(metrics["step"]) > 0).all() and (np.diff(metrics["seconds"]) >= 0).all()):
        raise ValueError(f"{path}: step or seconds decreases; move the run away and repeat it")
    path = folder / "config.json"
    text = path.read_bytes()
    settings = _parse(text, _CONFIG, str(path))
    return Run(folder, metrics=metrics, **settings, config=_flat(json.loads(text)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted name."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def load_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Loads every run at or below the folders, each once.

    Skips runs without a complete evaluation and folders without runs, with a note on stderr.
    Ignores an incomplete last line of `metrics.jsonl`.

    Args:
        folders: Run folders, or folders above them.

    Returns:
        The runs, at least one, all on one data set.

    Raises:
        ValueError: A folder is missing, no run is found, a file is malformed, or the data sets
            differ.
        OSError: A file cannot be read.
    """
    folders = [Path(folder) for folder in folders]
    runs: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give a run folder, or a folder above runs")
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
        names = ", ".join(f"{shown(name)} ({path})" for name, path in sorted(places.items()))
        raise ValueError(f"runs on different data sets: {names}; report on one data set at a time")
    return list(runs.values())


def score(runs: Iterable[Run]) -> Metric:
    """Chooses the test metric: accuracy if every run has it, else perplexity, else loss.

    Args:
        runs: Runs to compare, at least one.

    Returns:
        The first of `SCORES` that all runs have.
    """
    shared = set.intersection(*(set(run.metrics) for run in runs))
    return next(metric for metric in SCORES if metric.name in shared)


def by_group(runs: Iterable[Run]) -> dict[Group, list[Run]]:
    """Groups runs by method and budget.

    Args:
        runs: Runs in any order.

    Returns:
        Runs of each group, by seed. Uniform comes first, then methods by name; larger budgets come
        before smaller ones.
    """
    groups: dict[Group, list[Run]] = {}
    order = lambda run: (run.method != "uniform", run.method, -run.budget, run.seed)  # noqa: E731
    for run in sorted(runs, key=order):
        groups.setdefault(Group(run.method, run.budget), []).append(run)
    return groups


def reference(groups: Iterable[Group]) -> Group | None:
    """Chooses the baseline: uniform at the full budget, else at its largest budget.

    Args:
        groups: Groups to compare.

    Returns:
        One of the groups; None if there is no uniform.
    """
    budgets = [group.budget for group in groups if group.method == "uniform"]
    return Group("uniform", 1.0 if 1.0 in budgets else max(budgets)) if budgets else None


def final(runs: Iterable[Run], name: str) -> tuple[float, ...]:
    """Returns the last value of a metric.

    Args:
        runs: Runs that have the metric.
        name: Name in `Run.metrics`.

    Returns:
        A value per run.
    """
    return tuple(float(run.metrics[name][-1]) for run in runs)
