"""Result table of a report: a row per method and budget, as text, Markdown, or cells."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from isjax.reporting.runs import (
    TEST_LOSS,
    TRAIN_LOSS,
    Group,
    Metric,
    Run,
    by_group,
    final,
    reference,
    score,
)
from isjax.reporting.text import for_markdown

__all__ = [
    "Outcome",
    "Summary",
    "columns",
    "explanation",
    "format_table",
    "interval",
    "mean_stds",
    "summarise",
]

_EXPLANATION = """
Columns "to uniform's final ..." say when a run first matches uniform's mean final value: its
training seconds (time) and steps so far, divided by uniform's mean total. Below 1 is sooner than
uniform. ± is one standard deviation over seeds.
Each run schedules its learning rate over its own budget. The ratios say when a run first got there,
not what a shorter budget """
_ONE_BUDGET = "would give."
_SEVERAL_BUDGETS = """gives. For that, compare the final values of the rows with a
percentage: their runs take that share of the full number of steps. Uniform's values are in row
"{}"."""


class Outcome(NamedTuple):
    """Results of a group on one metric, one value per seed.

    Attributes:
        metric: The metric.
        final: Value at the last evaluation.
        time: Training seconds until the first evaluation at least as good as uniform's mean final
            value, divided by uniform's mean total seconds. Infinite for a seed that never gets
            there; None if no uniform run has trained.
        steps: The same in steps.
    """

    metric: Metric
    final: tuple[float, ...]
    time: tuple[float, ...] | None
    steps: tuple[float, ...] | None


class Summary(NamedTuple):
    """Results of one method at one budget.

    Attributes:
        group: Method and budget.
        steps: Last evaluated step of each seed.
        seconds: Total training seconds of each seed.
        train_loss: Outcome by train loss.
        score: Outcome by the test metric.
        test_loss: Last test loss of each seed; None where the test metric says the same.
        skipped: Steps that each seed skipped, because a loss or the gradient was not finite.
    """

    group: Group
    steps: tuple[float, ...]
    seconds: tuple[float, ...]
    train_loss: Outcome
    score: Outcome
    test_loss: tuple[float, ...] | None = None
    skipped: tuple[int, ...] = ()


def _ratios(
    runs: Iterable[Run], uniform: Sequence[Run], metric: Metric, cost: str
) -> tuple[float, ...] | None:
    """Returns each run's cost to reach uniform's mean final value, over uniform's mean cost."""
    total = np.mean(final(uniform, cost)) if uniform else 0.0
    if total == 0:
        return None
    ends = final(uniform, metric.name)
    target = np.mean(ends) if len(set(ends)) > 1 else ends[0]  # NumPy's mean of equals may differ
    as_good = np.greater_equal if metric.higher_is_better else np.less_equal
    hits = [run.metrics[cost][as_good(run.metrics[metric.name], target)] for run in runs]
    return tuple(float(hit[0] / total) if hit.size else math.inf for hit in hits)


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """Summarises runs by method and budget.

    Args:
        runs: Runs on one data set, at least one.

    Returns:
        A summary per method and budget, in the order of `by_group`.
    """
    groups = by_group(runs)
    uniform = groups.get(reference(groups), [])
    test_metric = score(runs)

    def outcome(group: Sequence[Run], metric: Metric) -> Outcome:
        costs = (_ratios(group, uniform, metric, cost) for cost in ("seconds", "step"))
        return Outcome(metric, final(group, metric.name), *costs)

    return [
        Summary(
            key,
            final(group, "step"),
            final(group, "seconds"),
            outcome(group, TRAIN_LOSS),
            outcome(group, test_metric),
            final(group, TEST_LOSS.name) if test_metric.higher_is_better else None,
            tuple(run.skipped for run in group),
        )
        for key, group in groups.items()
    ]


def _mean_std(values: Sequence[float], decimals: int) -> str:
    """Formats a mean and, for several values, their sample standard deviation."""
    text = f"{np.mean(values):.{decimals}f}"
    with np.errstate(invalid="ignore"):  # a run that diverged to infinity
        return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def mean_stds(rows: Sequence[Sequence[float]], least: int) -> list[str]:
    """Formats cells as mean ± standard deviation, all with the same number of decimals.

    Args:
        rows: Values of each cell.
        least: Least number of decimals; more are used to give the smallest mean 3 significant
            digits, at most 8.

    Returns:
        A text per cell.
    """
    means = [mean for row in rows if 0 < (mean := float(np.mean(row))) < math.inf]
    digits = 2 - math.floor(math.log10(min(means, default=1.0)))
    return [_mean_std(row, min(8, max(least, digits))) for row in rows]


def _ratio_text(ratios: Sequence[float] | None, count: bool = True) -> str:
    """Formats the mean ratio of the seeds that reached the target, and how many did."""
    reached = [ratio for ratio in ratios or () if math.isfinite(ratio)]
    if ratios is None or not reached:
        return "\N{EN DASH}" if ratios is None else "never"
    partly = f" ({len(reached)} of {len(ratios)})" if count and len(reached) < len(ratios) else ""
    return _mean_std(reached, 2) + partly


def _align(columns: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Aligns each column to its side, `<` or `>`, and joins the columns to lines."""
    padded = [
        [f"{cell:{side}{max(map(len, cells))}}" for cell in cells]
        for cells, side in zip(columns, sides, strict=True)
    ]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def columns(summaries: Sequence[Summary]) -> list[list[str]]:
    """Returns the table as columns.

    Args:
        summaries: A summary per row, at least one.

    Returns:
        Columns of text, each a heading and a cell per summary.
    """
    ranges = [sorted({int(min(s.steps)), int(max(s.steps))}) for s in summaries]
    table = [
        ["method", *(summary.group.label for summary in summaries)],
        ["seeds", *(str(len(s.steps)) for s in summaries)],
        ["steps", *(" to ".join(map(str, ends)) for ends in ranges)],
        ["seconds", *mean_stds([s.seconds for s in summaries], 0)],
    ]
    if any(sum(s.skipped) for s in summaries):
        cells = (f"{sum(s.skipped)} of {sum(s.steps):.0f}" for s in summaries)
        table.append(["steps skipped", *cells])
    table += [[f"final {label}", *cells] for label, cells in _finals(summaries)]
    for outcomes in ([s.train_loss for s in summaries], [s.score for s in summaries]):
        aim = f"to uniform's final {outcomes[0].metric.label}"
        table.append([f"time {aim}", *(_ratio_text(o.time) for o in outcomes)])
        table.append([f"steps {aim}", *(_ratio_text(o.steps) for o in outcomes)])
    return table


def _finals(summaries: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """Returns the final values of each metric: its label, and a cell per summary."""
    metric = summaries[0].score.metric
    values = [(TRAIN_LOSS, [s.train_loss.final for s in summaries])]
    test_losses = [s.test_loss for s in summaries if s.test_loss is not None]
    if test_losses:
        values.append((TEST_LOSS, test_losses))
    values.append((metric, [s.score.final for s in summaries]))
    return [(m.label, mean_stds(rows, 4 if m.higher_is_better else 3)) for m, rows in values]


def format_table(summaries: Sequence[Summary], markdown: bool = False) -> str:
    """Formats the table as text.

    Args:
        summaries: A summary per line, at least one.
        markdown: Whether to write Markdown; else columns are aligned, below two heading lines.

    Returns:
        The lines, without a newline at the end.
    """
    table = columns(summaries)
    if markdown:
        table[0][1:] = [f"`{for_markdown(name)}`" for name in table[0][1:]]
        heading, *lines = zip(*table, strict=True)
        rule = ("---", *["--:"] * (len(table) - 5), *["---"] * 4)
        return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *lines))
    finals = [["final", label, *cells] for label, cells in _finals(summaries)]
    left = [["", *column] for column in table[: -4 - len(finals)]]
    reached = []
    for outcomes in ([s.train_loss for s in summaries], [s.score for s in summaries]):
        label = outcomes[0].metric.label
        time = [_ratio_text(o.time, count=False) for o in outcomes]
        steps = [_ratio_text(o.steps) for o in outcomes]
        # Time and steps share a heading.
        cells = _align([["time", *time], ["steps", *steps]], "<<")
        reached.append([f"to uniform's final {label}", *cells])
    sides = "<" + ">" * (len(left) + len(finals) - 1) + "<<"
    return "\n".join(_align([*left, *finals, *reached], sides))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Computes the 95% confidence interval of a mean by Student's t.

    Args:
        values: One value per seed.

    Returns:
        Lower and upper end; None for fewer than three values, or if one is not finite.
    """
    if len(values) < 3 or not np.isfinite(values).all():
        return None
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def explanation(runs: Sequence[Run]) -> str:
    """Explains the ratios of the table and, if there are several budgets, its percentages.

    Args:
        runs: Runs of the table.

    Returns:
        Lines of text, after an empty one.
    """
    groups = by_group(runs)
    uniform = reference(groups)
    if len({group.budget for group in groups}) == 1:
        return _EXPLANATION + _ONE_BUDGET
    return _EXPLANATION + _SEVERAL_BUDGETS.format(uniform.label if uniform else "uniform")
