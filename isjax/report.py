"""Compare training runs: `python -m isjax.report DIR [DIR ...]` prints a table, draws a figure.

Every run directory at or below a DIR is read: its `config.json` and its `metrics.jsonl`, which
has one JSON object per evaluation. Runs still going are read as far as they have come. The rows
are methods; where runs took less than their full budget, methods and budgets.
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
from isjax.runs import TRAIN_LOSS, Group, Metric, Run, by_group, final, load_runs, reference, score

__all__ = ["Outcome", "Summary", "format_table", "main", "mean_stds", "summarise"]

_EXPLANATION = """
To uniform's final value: training seconds ("time") and steps at a run's first evaluation at least
as good as uniform's mean final value, divided by uniform's mean total seconds and steps. ± is one
standard deviation over seeds.
With each run's learning rate scheduled over its own budget, a ratio below 1 says when a run first
got there, not what a shorter budget """
_ONE_BUDGET = "would give."
_SEVERAL_BUDGETS = """gives: that is in the final values of the rows with a
percentage, the share of the full number of steps that those runs take. Uniform's values are in row
"{}"."""


class Outcome(NamedTuple):
    """How a group does on a metric: final values, and what it took to reach uniform's mean one.

    All are one per seed. `time` and `steps` are ratios to uniform's mean total: infinite for a seed
    that never gets there, None when there is no uniform run that has trained.
    """

    metric: Metric
    final: tuple[float, ...]
    time: tuple[float, ...] | None
    steps: tuple[float, ...] | None


class Summary(NamedTuple):
    """One method at one budget: last steps and total seconds, one per seed, and the outcomes."""

    group: Group
    steps: tuple[float, ...]
    seconds: tuple[float, ...]
    train_loss: Outcome
    score: Outcome


def _ratios(
    runs: Iterable[Run], uniform: Sequence[Run], metric: Metric, cost: str
) -> tuple[float, ...] | None:
    """Return each run's cost to uniform's mean final value, over uniform's mean total cost."""
    total = np.mean(final(uniform, cost)) if uniform else 0.0
    if total == 0:
        return None
    target = np.mean(final(uniform, metric.name))
    as_good = np.greater_equal if metric.higher_is_better else np.less_equal
    hits = [run.metrics[cost][as_good(run.metrics[metric.name], target)] for run in runs]
    return tuple(float(hit[0] / total) if hit.size else math.inf for hit in hits)


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """Summarise runs on one data set, a summary per method and budget, in `by_group`'s order."""
    groups = by_group(runs)
    uniform = groups.get(reference(groups), [])

    def outcome(group: Sequence[Run], metric: Metric) -> Outcome:
        costs = (_ratios(group, uniform, metric, cost) for cost in ("seconds", "step"))
        return Outcome(metric, final(group, metric.name), *costs)

    return [
        Summary(
            key,
            final(group, "step"),
            final(group, "seconds"),
            outcome(group, TRAIN_LOSS),
            outcome(group, score(runs)),
        )
        for key, group in groups.items()
    ]


def _mean_std(values: Sequence[float], decimals: int) -> str:
    """Format a mean and, for several values, their sample standard deviation."""
    text = f"{np.mean(values):.{decimals}f}"
    with np.errstate(invalid="ignore"):  # a run that diverged to infinity
        return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def mean_stds(rows: Sequence[Sequence[float]], least: int) -> list[str]:
    """Format a mean ± deviation per row, the smallest mean with 3 significant digits.

    Args:
        rows: Values, one row per cell.
        least: Decimals at the least.
    """
    means = [mean for row in rows if 0 < (mean := float(np.mean(row))) < math.inf]
    digits = 2 - math.floor(math.log10(min(means, default=1.0)))
    return [_mean_std(row, min(8, max(least, digits))) for row in rows]


def _ratio_text(ratios: Sequence[float] | None, count: bool = True) -> str:
    """Format the mean ratio of the seeds that reached the target, and how many did."""
    reached = [ratio for ratio in ratios or () if math.isfinite(ratio)]
    if ratios is None or not reached:
        return "\N{EN DASH}" if ratios is None else "never"
    partly = f" ({len(reached)} of {len(ratios)})" if count and len(reached) < len(ratios) else ""
    return _mean_std(reached, 2) + partly


def _align(columns: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Pad each column to its side, `<` or `>`, and join the columns to lines."""
    padded = [
        [f"{cell:{side}{max(map(len, cells))}}" for cell in cells]
        for cells, side in zip(columns, sides, strict=True)
    ]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def format_table(summaries: Sequence[Summary], markdown: bool = False) -> str:
    """Format summaries, a line each, as aligned text with two heading lines or as Markdown."""
    names = [summary.group.label for summary in summaries]
    ranges = [sorted({int(min(s.steps)), int(max(s.steps))}) for s in summaries]
    left = [
        ["method", *(f"`{name}`" if markdown else name for name in names)],
        ["seeds", *(str(len(s.steps)) for s in summaries)],
        ["steps", *(" to ".join(map(str, ends)) for ends in ranges)],
        ["seconds", *mean_stds([s.seconds for s in summaries], 0)],
    ]
    finals, reached = [], []
    for outcomes in ([s.train_loss for s in summaries], [s.score for s in summaries]):
        metric = outcomes[0].metric
        values = mean_stds([o.final for o in outcomes], 4 if metric.higher_is_better else 3)
        time = [_ratio_text(o.time, count=markdown) for o in outcomes]
        steps = [_ratio_text(o.steps) for o in outcomes]
        aim = f"to uniform's final {metric.label}"
        if markdown:
            finals.append([f"final {metric.label}", *values])
            reached += [[f"time {aim}", *time], [f"steps {aim}", *steps]]
        else:  # one heading over both cells
            finals.append(["final", metric.label, *values])
            reached.append([aim, *_align([["time", *time], ["steps", *steps]], "<<")])
    if markdown:
        heading, *lines = zip(*left, *finals, *reached, strict=True)
        rule = ("---", *["--:"] * 5, *["---"] * 4)
        return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *lines))
    return "\n".join(_align([*(["", *cells] for cells in left), *finals, *reached], "<>>>>><<"))


def _explanation(runs: Sequence[Run]) -> str:
    """Return what the ratios mean, and what the percentages if there are several budgets."""
    groups = by_group(runs)
    uniform = reference(groups)
    if len({group.budget for group in groups}) == 1:
        return _EXPLANATION + _ONE_BUDGET
    return _EXPLANATION + _SEVERAL_BUDGETS.format(uniform.label if uniform else "uniform")


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing the rows."""
    notes = []
    groups = by_group(runs)
    uniform = reference(groups)
    if uniform is None:
        wanted = f"method uniform, dataset {runs[0].dataset}, {runs[0].num_steps} steps"
        notes.append(f"no uniform run to compare with; add one ({wanted})")
    elif not any(final(groups[uniform], "seconds")):
        notes.append(f"{uniform.label} has not trained yet; wait for its next evaluation")
    if uniform is not None and uniform.budget != 1:
        notes.append(f"no uniform run of the full budget; {uniform.label} stands in for uniform")
    unfinished = [run for run in runs if run.metrics["step"][-1] != run.total_steps]
    lengths = {run.num_steps for run in runs} | {int(run.metrics["step"][-1]) for run in unfinished}
    if len(lengths) > 1:
        counts = ", ".join(map(str, sorted(lengths)))
        notes.append(f"the runs differ in their number of steps: {counts}")
    for run in runs:
        if run.metrics["step"][-1] < run.total_steps:
            notes.append(
                f"{run.path} is at step {run.metrics['step'][-1]:.0f} of {run.total_steps}"
            )
    for key, group in groups.items():
        if len({run.seed for run in group}) < len(group):
            notes.append(f"{key.label} has several runs with one seed; each is counted as a seed")
    return [f"note: {note}" for note in notes]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the figure, and return the exit status: 2 after an error, else 0."""
    parser = argparse.ArgumentParser(prog="python -m isjax.report", description=__doc__)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run, or a folder above runs")
    parser.add_argument("--output", metavar="PATH", help="figure (default: report.png above runs)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    folder = args.dirs[0]
    try:
        if len(args.dirs) > 1:
            folder = os.path.commonpath([os.path.abspath(name) for name in args.dirs])
        output = Path(args.output or Path(folder, "report.png"))
        runs = load_runs(args.dirs)
        table = format_table(summarise(runs), markdown=args.markdown)
        print(table, _explanation(runs), *_notes(runs), sep="\n", flush=True)
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
