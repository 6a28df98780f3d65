"""The picture of a comparison: train loss and test error against time and steps."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.runs import Run, by_method, final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure"]

_GREY = "#444444"  # uniform; the others take Okabe-Ito, yellow last because it is faint on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")


def _curves(runs: Sequence[Run], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid common to the runs and their values on it, shape (runs, grid).

    Over steps the grid is the evaluations all runs have, over seconds the range all runs cover.
    """
    xs = [getattr(run, x) for run in runs]
    grid = functools.reduce(np.intersect1d, xs)
    if x == "seconds":
        low, high = max(v[0] for v in xs), min(v[-1] for v in xs)
        grid = np.unique(np.concatenate([np.linspace(low, high, 200), *xs]).clip(low, high))
    ys = [run.train_loss if y == "train_loss" else 1 - run.test_accuracy for run in runs]
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


def _draw_panel(ax: Any, groups: dict[str, list[Run]], x: str, y: str) -> np.ndarray:
    """Draw a line and a band per method, and uniform's final value; return all values drawn."""
    colours = {method: i for i, method in enumerate(m for m in groups if m != "uniform")}
    drawn = []
    for method, runs in groups.items():
        i = colours.get(method)
        colour = _GREY if i is None else _COLOURS[i % len(_COLOURS)]
        dashes = "-" if i is None else ("-", "--", "-.")[i // len(_COLOURS) % 3]
        grid, curves = _curves(runs, x, y)
        drawn.append(curves.ravel())
        ax.plot(grid, curves.mean(0), dashes, color=colour, linewidth=1.6, label=method)
        if len(runs) > 1:
            low, high = curves.min(0), curves.max(0)
            ax.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
    if "uniform" in groups:
        end = np.mean(final(groups["uniform"], y))
        end = end if y == "train_loss" else 1 - end
        ax.axhline(end, color=_GREY, linewidth=0.9, linestyle=":", label="uniform's final value")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.tick_params(which="both", color="#888888", labelsize=9)
    ax.margins(x=0.02)
    return np.concatenate(drawn)


def draw_figure(runs: Sequence[Run], output: str | Path) -> "Figure":
    """Draw train loss and test error against training seconds and steps, and save the figure.

    Args:
        runs: Runs on one data set.
        output: File to write; its ending gives the format.

    Returns:
        The figure; each panel has a line per method and, with uniform, one at its final value.

    Raises:
        ImportError: Matplotlib is not installed.
        OSError: The file cannot be written.
        ValueError: The ending of the file is not a known format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ImportError as error:
        raise ImportError("no matplotlib for the figure; pip install 'isjax[run]'") from error
    groups = by_method(runs)
    figure = Figure(figsize=(9, 6.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, y in zip(axes, ("train_loss", "test_accuracy"), strict=True):
        drawn = [_draw_panel(row[i], groups, x, y) for i, x in enumerate(("seconds", "step"))]
        _set_y_scale(row[0], np.concatenate(drawn), 1 if y == "train_loss" else 3)
    axes[0, 0].set_ylabel("train loss")
    axes[1, 0].set_ylabel("test error (fraction)")
    for ax, label in zip(axes[1], ("training time (s)", "training steps"), strict=True):
        ax.set_xlabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    counts = sorted({len(group) for group in groups.values()})
    seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
    caption = f"mean of {seeds} seeds, band: min to max" if counts[-1] > 1 else "one seed each"
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        title=f"{runs[0].dataset}: {caption}",
        loc="outside upper left",
        alignment="left",
        ncols=min(5, len(groups) + 1),
        frameon=False,
    )
    figure.savefig(output)
    return figure
