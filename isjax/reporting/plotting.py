"""Colours, line styles and axes that all figures of a report share."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.reporting.runs import Group, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GREY",
    "declutter",
    "lower_is_better",
    "mean_and_band",
    "new_figure",
    "styles",
]

GREY = "#444444"  # uniform; the others take Okabe-Ito, yellow last because it is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_MARKERS = ("", "o", "s")  # for more methods than colours
_DASHES = ("-", "--", ":", "-.")  # from the largest budget down


def new_figure(width: float, height: float) -> "Figure":
    """Creates an empty figure.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        The figure, with 160 dots per inch and no window.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "no matplotlib for the figures; pip install '.[run]' in a checkout of isjax"
        ) from error
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def declutter(ax: Any) -> None:
    """Removes the top and right borders and makes the grid faint.

    Args:
        ax: Matplotlib axes.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", color="#888888", labelsize=9)


def styles(groups: Iterable[Group]) -> dict[Group, dict[str, Any]]:
    """Chooses line styles: a colour per method, a dash pattern per budget.

    Args:
        groups: Methods and budgets of one figure.

    Returns:
        For each group, keyword arguments of `Axes.plot`.
    """
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
    """Draws the mean of several curves, and a band from their minimum to their maximum.

    Args:
        ax: Matplotlib axes.
        grid: [points] x values.
        curves: [seeds, points] y values; one seed has no band.
        label: Name in the legend.
        style: Keyword arguments of `Axes.plot`.

    Returns:
        The line of the mean.
    """
    (line,) = ax.plot(grid, curves.mean(0), label=label, markevery=0.1, **style)
    if len(curves) > 1:
        low, high = curves.min(0), curves.max(0)
        ax.fill_between(grid, low, high, color=style["color"], alpha=0.2, linewidth=0)
    return line


def lower_is_better(values: Any, metric: Metric) -> Any:
    """Converts accuracies to errors, so that lower is better in every panel.

    Args:
        values: Array or number of the metric.
        metric: Names the direction of the metric.

    Returns:
        `1 - values` if higher values of the metric are better, else `values`.
    """
    return 1 - values if metric.higher_is_better else values
