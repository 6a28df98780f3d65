"""Learning curves: train loss and a test metric against seconds and steps."""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.reporting.plotting import (
    GREY,
    declutter,
    lower_is_better,
    mean_and_band,
    new_figure,
    styles,
)
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
from isjax.reporting.text import for_figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_learning_curves"]


def draw_learning_curves(runs: Sequence[Run]) -> "Figure":
    """Draws train loss, test loss and the test metric against seconds (left) and steps (right).

    Perplexity is drawn without the test loss, its logarithm. Each panel has a line per method and
    budget, and a thin line at uniform's final value.

    Args:
        runs: Runs on one data set, at least one.

    Returns:
        The figure, with a row of 2 panels for each metric.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    groups = by_group(runs)
    test_metric = score(runs)
    metrics = [TRAIN_LOSS, *([TEST_LOSS] if test_metric.higher_is_better else []), test_metric]
    figure = new_figure(9, 1.0 + 2.7 * len(metrics))
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes = figure.subplots(len(metrics), 2, sharex="col", sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        drawn = [_draw_panel(row[i], groups, x, metric) for i, x in enumerate(("seconds", "step"))]
        _set_y_scale(row[0], np.concatenate(drawn), 1 if metric == TRAIN_LOSS else 3)
        row[0].set_ylabel(metric.label.replace("accuracy", "error (fraction)"))
    for ax, label in zip(axes[-1], ("training time (s)", "training steps"), strict=True):
        ax.set_xlabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    _draw_legends(figure, groups, runs[0].dataset)
    return figure


def _draw_panel(ax: Any, groups: dict[Group, list[Run]], x: str, metric: Metric) -> np.ndarray:
    """Draws a line and a band per group, and uniform's final value; returns all values drawn."""
    drawn = []
    for group, style in styles(groups).items():
        grid, curves = _curves(groups[group], x, metric)
        drawn.append(curves.ravel())
        mean_and_band(ax, grid, curves, for_figure(group.label), style)
    uniform = reference(groups)
    if uniform is not None:
        end = lower_is_better(np.mean(final(groups[uniform], metric.name)), metric)
        label = f"{for_figure(uniform.label)}'s final value"
        ax.axhline(end, color=GREY, linewidth=0.7, zorder=1.5, label=label)
    declutter(ax)
    ax.margins(x=0.02)
    return np.concatenate(drawn)


def _curves(runs: Sequence[Run], x: str, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Interpolates the runs on a common grid [points]; returns it and the values [runs, points].

    Over steps, the grid holds the evaluations that all runs have; over seconds, it covers the range
    that all runs cover. Positive values are interpolated on a log scale.
    """
    xs = [run.metrics[x] for run in runs]
    grid = functools.reduce(np.intersect1d, xs)
    if x == "seconds":
        low, high = max(v[0] for v in xs), min(v[-1] for v in xs)
        grid = np.unique(np.concatenate([np.linspace(low, high, 200), *xs]).clip(low, high))
    ys = [lower_is_better(run.metrics[metric.name], metric) for run in runs]
    if all((v > 0).all() for v in ys):
        logs = [np.interp(grid, u, np.log(v)) for u, v in zip(xs, ys, strict=True)]
        return grid, np.exp(logs)
    return grid, np.array([np.interp(grid, u, v) for u, v in zip(xs, ys, strict=True)])


def _set_y_scale(ax: Any, values: np.ndarray, least_span: float) -> None:
    """Uses a log scale if all values are positive and max > least_span * min."""
    from matplotlib import ticker

    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0 or values.max() <= least_span * values.min():
        return
    ax.set_yscale("log")
    span = values.max() / values.min()
    if span < 8:
        ax.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
    elif span < 200:
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.10g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def _draw_legends(figure: "Figure", groups: dict[Group, list[Run]], dataset: str) -> None:
    """Draws a legend of methods and, unless all runs have the full budget, one of budgets."""
    from matplotlib.lines import Line2D

    counts = sorted({len(group) for group in groups.values()})
    seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
    caption = f"mean of {seeds} seeds, band: min to max" if counts[-1] > 1 else "one seed each"
    methods, budgets = {}, {}
    for group, style in styles(groups).items():
        solid: dict[str, Any] = {
            **style,
            "linestyle": "-",
            "label": for_figure(shown(group.method)),
        }
        grey: dict[str, Any] = {**style, "color": "#888888", "marker": "", "label": group.share}
        methods[group.method] = Line2D([], [], **solid)
        budgets[group.budget] = Line2D([], [], **grey)
    handles = list(methods.values())
    if reference(groups):
        handles.append(figure.axes[0].get_lines()[-1])
    options: dict[str, Any] = {"alignment": "left", "frameon": False, "handlelength": 2.4}
    columns = min(4 if len(budgets) > 1 else 5, math.ceil(len(handles) / len(budgets)))
    title = f"{for_figure(shown(dataset))}: {caption}"
    figure.legend(handles=handles, title=title, loc="outside upper left", ncols=columns, **options)
    if set(budgets) != {1.0}:
        handles = [budgets[budget] for budget in sorted(budgets, reverse=True)]
        figure.legend(handles=handles, title="budget", loc="outside upper right", **options)
