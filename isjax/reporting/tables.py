"""The table of a comparison: a row per method and budget, as text, Markdown, or cells."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from isjax.reporting.runs import TRAIN_LOSS, Group, Metric, Run, by_group, final, reference, score

__all__ = [
    "Outcome",
    "Summary",
    "columns",
    "explanation",
    "format_table",
    "interval",
    "mean_stds",
    "notes",
    "summarise",
]

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
    ends = final(uniform, metric.name)
    target = np.mean(ends) if len(set(ends)) > 1 else ends[0]  # the mean of equals may differ
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


def columns(summaries: Sequence[Summary]) -> list[list[str]]:
    """Return the columns of the table, each a heading and a cell per summary."""
    ranges = [sorted({int(min(s.steps)), int(max(s.steps))}) for s in summaries]
    table = [
        ["method", *(summary.group.label for summary in summaries)],
        ["seeds", *(str(len(s.steps)) for s in summaries)],
        ["steps", *(" to ".join(map(str, ends)) for ends in ranges)],
        ["seconds", *mean_stds([s.seconds for s in summaries], 0)],
    ]
    both = ([s.train_loss for s in summaries], [s.score for s in summaries])
    table += [[f"final {outcomes[0].metric.label}", *_finals(outcomes)] for outcomes in both]
    for outcomes in both:
        aim = f"to uniform's final {outcomes[0].metric.label}"
        table.append([f"time {aim}", *(_ratio_text(o.time) for o in outcomes)])
        table.append([f"steps {aim}", *(_ratio_text(o.steps) for o in outcomes)])
    return table


def _finals(outcomes: Sequence[Outcome]) -> list[str]:
    least = 4 if outcomes[0].metric.higher_is_better else 3
    return mean_stds([outcome.final for outcome in outcomes], least)


def format_table(summaries: Sequence[Summary], markdown: bool = False) -> str:
    """Format summaries, a line each, as aligned text with two heading lines or as Markdown."""
    table = columns(summaries)
    if markdown:
        table[0][1:] = [f"`{name}`" for name in table[0][1:]]
        heading, *lines = zip(*table, strict=True)
        rule = ("---", *["--:"] * 5, *["---"] * 4)
        return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *lines))
    finals, reached = [], []
    for outcomes in ([s.train_loss for s in summaries], [s.score for s in summaries]):
        label = outcomes[0].metric.label
        time = [_ratio_text(o.time, count=False) for o in outcomes]
        steps = [_ratio_text(o.steps) for o in outcomes]
        # One heading over both cells.
        finals.append(["final", label, *_finals(outcomes)])
        cells = _align([["time", *time], ["steps", *steps]], "<<")
        reached.append([f"to uniform's final {label}", *cells])
    left = [["", *column] for column in table[:4]]
    return "\n".join(_align([*left, *finals, *reached], "<>>>>><<"))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of the mean by Student's t; None of fewer than three values."""
    if len(values) < 3 or not np.isfinite(values).all():
        return None
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def explanation(runs: Sequence[Run]) -> str:
    """Return what the ratios mean, and what the percentages if there are several budgets."""
    groups = by_group(runs)
    uniform = reference(groups)
    if len({group.budget for group in groups}) == 1:
        return _EXPLANATION + _ONE_BUDGET
    return _EXPLANATION + _SEVERAL_BUDGETS.format(uniform.label if uniform else "uniform")


def notes(runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing the rows."""
    found = []
    groups = by_group(runs)
    uniform = reference(groups)
    if uniform is None:
        wanted = f"method uniform, dataset {runs[0].dataset}, {runs[0].num_steps} steps"
        found.append(f"no uniform run to compare with; add one ({wanted})")
    elif not any(final(groups[uniform], "seconds")):
        found.append(f"{uniform.label} has not trained yet; wait for its next evaluation")
    if uniform is not None and uniform.budget != 1:
        found.append(f"no uniform run of the full budget; {uniform.label} stands in for uniform")
    unfinished = [run for run in runs if run.metrics["step"][-1] != run.total_steps]
    lengths = {run.num_steps for run in runs} | {int(run.metrics["step"][-1]) for run in unfinished}
    if len(lengths) > 1:
        counts = ", ".join(map(str, sorted(lengths)))
        found.append(f"the runs differ in their number of steps: {counts}")
    for run in runs:
        if not run.finished:
            found.append(
                f"{run.path} is at step {run.metrics['step'][-1]:.0f} of {run.total_steps}"
            )
    for key, group in groups.items():
        if len({run.seed for run in group}) < len(group):
            found.append(f"{key.label} has several runs with one seed; each is counted as a seed")
    return found
