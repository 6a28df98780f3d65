"""Compare training runs: `python -m isjax.report DIR [DIR ...]` prints a table, draws a figure.

Every run directory at or below a DIR is read: its `config.json` and its `metrics.jsonl`, which
has one JSON object per evaluation. Runs still going are read as far as they have come.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isjax.figures import draw_figure
from isjax.runs import Run, by_method, final, load_runs

__all__ = ["Summary", "format_table", "main", "summarise"]

_SUMMARISED = ("step", "seconds", "train_loss", "test_accuracy")

_EXPLANATION = """
Time to a target: training seconds at a run's first evaluation at least as good as uniform's mean
final value, divided by uniform's mean total seconds. ± is one standard deviation over seeds.
With each method's learning rate decayed to its own full budget, a ratio below 1 says when a run
first got there, not what a shorter budget would give."""


class Summary(NamedTuple):
    """One method: final values, one per seed, and times to uniform's mean final values.

    The times are ratios to uniform's mean total seconds: infinite for a seed that never gets
    there, None when there is no uniform run that has trained.
    """

    method: str
    steps: tuple[float, ...]
    seconds: tuple[float, ...]
    train_loss: tuple[float, ...]
    test_accuracy: tuple[float, ...]
    loss_ratio: tuple[float, ...] | None
    accuracy_ratio: tuple[float, ...] | None


def _ratios(runs: Iterable[Run], uniform: Sequence[Run], name: str) -> tuple[float, ...] | None:
    """Return each run's seconds to uniform's mean final value, over uniform's mean seconds."""
    total = np.mean(final(uniform, "seconds")) if uniform else 0.0
    if total == 0:
        return None
    target = np.mean(final(uniform, name))
    compare = np.less_equal if name == "train_loss" else np.greater_equal
    hits = [run.seconds[compare(getattr(run, name), target)] for run in runs]
    return tuple(float(hit[0] / total) if hit.size else math.inf for hit in hits)


def summarise(runs: Iterable[Run]) -> list[Summary]:
    """Summarise runs on one data set, a summary per method, uniform first, then by name."""
    groups = by_method(runs)
    uniform = groups.get("uniform", [])
    return [
        Summary(
            method,
            *(final(group, name) for name in _SUMMARISED),
            *(_ratios(group, uniform, name) for name in ("train_loss", "test_accuracy")),
        )
        for method, group in groups.items()
    ]


def _mean_std(values: Sequence[float], decimals: int) -> str:
    """Format a mean and, for several values, their sample standard deviation."""
    text = f"{np.mean(values):.{decimals}f}"
    with np.errstate(invalid="ignore"):  # a run that diverged to infinity
        return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def _ratio_text(ratios: Sequence[float] | None) -> str:
    """Format the mean ratio of the seeds that reached the target, and how many did."""
    reached = [ratio for ratio in ratios or () if math.isfinite(ratio)]
    if ratios is None or not reached:
        return "\N{EN DASH}" if ratios is None else "never"
    partly = f" ({len(reached)} of {len(ratios)})" if len(reached) < len(ratios) else ""
    return _mean_std(reached, 2) + partly


def format_table(summaries: Sequence[Summary]) -> str:
    """Format summaries as aligned text: two heading lines, then a line per method."""

    def column(name: str, least: int) -> list[str]:
        """Format a mean ± deviation per method, the smallest mean with 3 significant digits."""
        values = [getattr(summary, name) for summary in summaries]
        means = [mean for v in values if 0 < (mean := float(np.mean(v))) < math.inf]
        digits = 2 - math.floor(math.log10(min(means, default=1.0)))
        return [_mean_std(value, min(8, max(least, digits))) for value in values]

    ranges = [sorted({int(min(s.steps)), int(max(s.steps))}) for s in summaries]
    *_, loss_ratios, accuracy_ratios = zip(*summaries, strict=True)
    columns = [
        ["", "method", *(s.method for s in summaries)],
        ["", "seeds", *(str(len(s.steps)) for s in summaries)],
        ["", "steps", *(" to ".join(map(str, ends)) for ends in ranges)],
        ["", "seconds", *column("seconds", 0)],
        ["final", "train loss", *column("train_loss", 3)],
        ["final", "test accuracy", *column("test_accuracy", 4)],
        ["time to uniform's", "final train loss", *map(_ratio_text, loss_ratios)],
        ["time to uniform's", "final test accuracy", *map(_ratio_text, accuracy_ratios)],
    ]
    padded = [
        [f"{cell:{align}{max(map(len, cells))}}" for cell in cells]
        for cells, align in zip(columns, "<>>>>><<", strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing the rows."""
    notes = []
    groups = by_method(runs)
    if "uniform" not in groups:
        wanted = f"method uniform, dataset {runs[0].dataset}, {runs[0].num_steps} steps"
        notes.append(f"no uniform run to compare with; add one ({wanted})")
    elif not any(final(groups["uniform"], "seconds")):
        notes.append("uniform has not trained yet; wait for its next evaluation")
    counts = sorted({int(count) for run in runs for count in (run.num_steps, run.step[-1])})
    if len(counts) > 1:
        notes.append(f"the runs differ in their number of steps: {', '.join(map(str, counts))}")
    for run in runs:
        if run.step[-1] < run.num_steps:
            notes.append(f"{run.path} is at step {run.step[-1]:.0f} of {run.num_steps}")
    for method, group in groups.items():
        if len({run.seed for run in group}) < len(group):
            notes.append(f"{method} has several runs with one seed; each is counted as a seed")
    return [f"note: {note}" for note in notes]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the figure, and return the exit status: 2 after an error, else 0."""
    parser = argparse.ArgumentParser(prog="python -m isjax.report", description=__doc__)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run, or a folder above runs")
    parser.add_argument("--output", metavar="PATH", help="figure (default: report.png above runs)")
    args = parser.parse_args(argv)
    folder = args.dirs[0]
    try:
        if len(args.dirs) > 1:
            folder = os.path.commonpath([os.path.abspath(name) for name in args.dirs])
        output = Path(args.output or Path(folder, "report.png"))
        runs = load_runs(args.dirs)
        print(format_table(summarise(runs)), _EXPLANATION, *_notes(runs), sep="\n", flush=True)
        try:
            draw_figure(runs, output)
        except (OSError, ValueError) as error:
            raise ValueError(f"{output}: {error}; choose another file with --output") from error
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"figure: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
