"""Figure of `isjax.compare`: final metrics of each method under equal budgets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.reporting.plotting import COLOURS, GREY, declutter, lower_is_better, new_figure
from isjax.reporting.runs import Metric
from isjax.reporting.text import for_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_comparison"]


def draw_comparison(
    lines: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    metrics: Sequence[Metric],
    title: str,
    output: str | Path,
) -> "Figure":
    """Draws the final values of each method, a panel per metric and a row per method.

    The methods are sorted by the first metric under equal seconds.

    Args:
        lines: Last evaluation of each run, by budget ("steps", "examples", "seconds") and by
            method. "uniform" must be one of the methods.
        metrics: Metrics to draw, at least one; each is a key of the evaluations.
        title: Text above the panels.
        output: File to write; its suffix gives the format.

    Returns:
        The figure.

    Raises:
        ImportError: Matplotlib is not installed.
        OSError: The file cannot be written.
    """
    first = metrics[0].name
    ends = lines["seconds"]
    methods = sorted(ends, key=lambda m: np.mean([line[first] for line in ends[m]]), reverse=True)
    figure = new_figure(9, 1.6 + 0.36 * len(methods))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        _draw_panel(ax, lines, methods, metric)
    axes[0].set_yticks(range(len(methods)), methods)
    handles, labels = axes[0].get_legend_handles_labels()
    options: dict[str, Any] = {"alignment": "left", "frameon": False, "ncols": len(handles)}
    heading = f"{for_figure(title)} (line: uniform's mean)"
    figure.legend(handles, labels, title=heading, loc="outside upper left", **options)
    figure.savefig(output)
    return figure


def _draw_panel(
    ax: Any,
    lines: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    methods: Sequence[str],
    metric: Metric,
) -> None:
    """Draws one metric: a faint marker per run, a full one per mean, a line at uniform's mean."""
    drawn = []
    for i, (budget, of_method) in enumerate(lines.items()):
        style = {"color": COLOURS[i], "linestyle": "none", "marker": "osD"[i]}
        for y, method in enumerate(methods):
            ends = np.array([line[metric.name] for line in of_method[method]])
            values = lower_is_better(ends, metric)
            drawn.append(values)
            height = y + 0.22 * (1 - i)
            ax.plot(values, np.full(len(values), height), markersize=3, alpha=0.35, **style)
            label = f"equal {budget}" if y == 0 else None
            ax.plot(values.mean(), height, markersize=5, label=label, **style)
    uniform = np.mean([line[metric.name] for line in lines["seconds"]["uniform"]])
    ax.axvline(lower_is_better(uniform, metric), color=GREY, linewidth=0.8, zorder=0)
    drawn = np.concatenate(drawn)
    if (drawn > 0).all() and drawn.max() > 3 * drawn.min():
        ax.set_xscale("log")
    ax.set_xlabel(f"final {metric.label.replace('accuracy', 'error (fraction)')}")
    declutter(ax)
    ax.spines["left"].set_visible(False)
