"""The picture of a comparison: train loss and a test metric against time and steps."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.reporting.runs import TRAIN_LOSS, Group, Metric, Run, by_group, final, reference, score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GREY",
    "draw_comparison",
    "draw_curves",
    "mean_and_band",
    "new_figure",
    "plain",
    "styles",
]

GREY = "#444444"  # uniform; the others take Okabe-Ito, yellow last because it is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_MARKERS = ("", "o", "s")  # for more methods than colours
_DASHES = ("-", "--", ":", "-.")  # from the largest budget down


def _as_drawn(values: Any, metric: Metric) -> Any:
    """Return values of which less is better: an error in place of an accuracy."""
    return 1 - values if metric.higher_is_better else values


def _curves(runs: Sequence[Run], x: str, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid common to the runs and their values on it, shape (runs, grid).

    Over steps the grid is the evaluations all runs have, over seconds the range all runs cover.
    """
    xs = [run.metrics[x] for run in runs]
    grid = functools.reduce(np.intersect1d, xs)
    if x == "seconds":
        low, high = max(v[0] for v in xs), min(v[-1] for v in xs)
        grid = np.unique(np.concatenate([np.linspace(low, high, 200), *xs]).clip(low, high))
    ys = [_as_drawn(run.metrics[metric.name], metric) for run in runs]
    if all((v > 0).all() for v in ys):  # straight lines on a log scale
        logs = [np.interp(grid, u, np.log(v)) for u, v in zip(xs, ys, strict=True)]
        return grid, np.exp(logs)
    return grid, np.array([np.interp(grid, u, v) for u, v in zip(xs, ys, strict=True)])


def _set_y_scale(ax: Any, values: np.ndarray, least_span: float) -> None:
    """Use a log scale if the values are positive and span more than a factor of least_span."""
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


def styles(groups: Iterable[Group]) -> dict[Group, dict[str, Any]]:
    """Return each group's line style: a colour per method, dashes per budget."""
    groups = list(groups)
    others = list(dict.fromkeys(group.method for group in groups if group.method != "uniform"))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(others)}
    turns = {method: i // len(COLOURS) for i, method in enumerate(others)}
    budgets = sorted({group.budget for group in groups}, reverse=True)
    return {
        group: {
            "color": colours.get(group.method, GREY),
            "linestyle": _DASHES[budgets.index(group.budget) % len(_DASHES)],
            "linewidth": 1.6,
            "marker": _MARKERS[turns.get(group.method, 0) % len(_MARKERS)],
            "markersize": 3.5,
        }
        for group in groups
    }


def mean_and_band(
    ax: Any, grid: np.ndarray, curves: np.ndarray, label: str, style: dict[str, Any]
) -> Any:
    """Draw the mean of curves, shape (seeds, grid), and from least to most; return its line."""
    (line,) = ax.plot(grid, curves.mean(0), label=label, markevery=0.1, **style)
    if len(curves) > 1:
        low, high = curves.min(0), curves.max(0)
        ax.fill_between(grid, low, high, color=style["color"], alpha=0.2, linewidth=0)
    return line


def _draw_panel(ax: Any, groups: dict[Group, list[Run]], x: str, metric: Metric) -> np.ndarray:
    """Draw a line and a band per group, and uniform's final value; return all values drawn."""
    drawn = []
    for group, style in styles(groups).items():
        runs = groups[group]
        grid, curves = _curves(runs, x, metric)
        drawn.append(curves.ravel())
        mean_and_band(ax, grid, curves, group.label, style)
    uniform = reference(groups)
    if uniform is not None:
        end = _as_drawn(np.mean(final(groups[uniform], metric.name)), metric)
        label = f"{uniform.label}'s final value"
        ax.axhline(end, color=GREY, linewidth=0.7, zorder=1.5, label=label)
    plain(ax)
    ax.margins(x=0.02)
    return np.concatenate(drawn)


def _draw_legends(figure: "Figure", groups: dict[Group, list[Run]], dataset: str) -> None:
    """Say which colour is which method and, unless all runs are full, which dashes which budget."""
    from matplotlib.lines import Line2D

    counts = sorted({len(group) for group in groups.values()})
    seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
    caption = f"mean of {seeds} seeds, band: min to max" if counts[-1] > 1 else "one seed each"
    methods, budgets = {}, {}
    for group, style in styles(groups).items():
        solid: dict[str, Any] = {**style, "linestyle": "-", "label": group.method}
        plain: dict[str, Any] = {**style, "color": "#888888", "marker": "", "label": group.share}
        methods[group.method] = Line2D([], [], **solid)
        budgets[group.budget] = Line2D([], [], **plain)
    handles = list(methods.values())
    if reference(groups):
        handles.append(figure.axes[0].get_lines()[-1])
    options: dict[str, Any] = {"alignment": "left", "frameon": False, "handlelength": 2.4}
    columns = min(4 if len(budgets) > 1 else 5, math.ceil(len(handles) / len(budgets)))
    title = f"{dataset}: {caption}"
    figure.legend(handles=handles, title=title, loc="outside upper left", ncols=columns, **options)
    if set(budgets) != {1.0}:
        handles = [budgets[budget] for budget in sorted(budgets, reverse=True)]
        figure.legend(handles=handles, title="budget", loc="outside upper right", **options)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("no matplotlib for the figures; pip install 'isjax[run]'") from error
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(ax: Any) -> None:
    """Take from a panel what does not tell anything."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", color="#888888", labelsize=9)


def draw_curves(runs: Sequence[Run]) -> "Figure":
    """Draw train loss and the test metric of runs on one data set against seconds and steps.

    Each panel has a line per method and budget and, with uniform, one at its final value.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    figure = new_figure(9, 6.4)
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    groups = by_group(runs)
    measure = score(runs)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, metric in zip(axes, (TRAIN_LOSS, measure), strict=True):
        drawn = [_draw_panel(row[i], groups, x, metric) for i, x in enumerate(("seconds", "step"))]
        _set_y_scale(row[0], np.concatenate(drawn), 1 if metric == TRAIN_LOSS else 3)
    axes[0, 0].set_ylabel("train loss")
    axes[1, 0].set_ylabel(measure.label.replace("accuracy", "error (fraction)"))
    for ax, label in zip(axes[1], ("training time (s)", "training steps"), strict=True):
        ax.set_xlabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    _draw_legends(figure, groups, runs[0].dataset)
    return figure


def draw_comparison(
    lines: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    metrics: Sequence[Metric],
    title: str,
    output: str | Path,
) -> "Figure":
    """Draw what each method ends with, a panel per metric and a row per method; save the figure.

    Args:
        lines: By what was equal, "steps", "examples", "seconds", and by method, uniform among them:
            the last line of each run.
        metrics: Of the lines.
        title: Above the panels.
        output: File to write; its ending gives the format.
    """
    first = metrics[0].name
    ends = lines["seconds"]
    methods = sorted(ends, key=lambda m: np.mean([line[first] for line in ends[m]]), reverse=True)
    height = 1.6 + 0.36 * len(methods)
    figure = new_figure(9, height)
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        drawn = []
        for i, (equal, of_method) in enumerate(lines.items()):
            colour, marker = COLOURS[i], "osD"[i]
            for y, method in enumerate(methods):
                values = _as_drawn(np.array([x[metric.name] for x in of_method[method]]), metric)
                drawn.append(values)
                place = y + 0.22 * (1 - i)
                style = {"color": colour, "linestyle": "none", "marker": marker}
                ax.plot(values, np.full(len(values), place), markersize=3, alpha=0.35, **style)
                label = f"equal {equal}" if y == 0 else None
                ax.plot(values.mean(), place, markersize=5, label=label, **style)
        uniform = np.mean([line[metric.name] for line in ends["uniform"]])
        ax.axvline(_as_drawn(uniform, metric), color=GREY, linewidth=0.8, zorder=0)
        drawn = np.concatenate(drawn)
        if (drawn > 0).all() and drawn.max() > 3 * drawn.min():
            ax.set_xscale("log")
        ax.set_xlabel(f"final {metric.label.replace('accuracy', 'error (fraction)')}")
        plain(ax)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods)
    handles, labels = axes[0].get_legend_handles_labels()
    options: dict[str, Any] = {"alignment": "left", "frameon": False, "ncols": len(handles)}
    heading = f"{title} (line: uniform's mean)"
    figure.legend(handles, labels, title=heading, loc="outside upper left", **options)
    figure.savefig(output)
    return figure
