"""Pictures of how samplers behaved: where the time went, what was drawn, what was predicted."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.reporting.behaviour import Behaviour
from isjax.reporting.figures import COLOURS, GREY, mean_and_band, new_figure, plain, styles
from isjax.reporting.runs import Group, final
from isjax.reporting.timeline import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isjax.reporting.runs import Run

__all__ = ["draw_behaviour", "draw_draws", "draw_predictions", "draw_time"]

_PANELS = {  # of draw_behaviour: where the numbers are and their name: a title, and the range
    ("steps", "ess"): ("effective sample size (share of pool)", (0, 1.05)),
    ("steps", "tau"): ("τ = 1 / √ess", (0.95, None)),
    ("steps", "max_weight"): ("largest weight of a batch", (0, None)),
    ("steps", "unique"): ("unique ids (share of batch)", (0, 1.05)),
    ("evaluations", "coverage"): ("data set drawn so far (share)", (0, 1.05)),
    ("steps", "score_correlation"): ("correlation of score and loss", (None, 1.05)),
}
_DATA, _DRAWN = GREY, COLOURS[0]
_HEAT = (0.17, 0.55, 0.77)  # seen on light and dark: a raster knows no theme
_FEW = 20  # draws of which a histogram would say nothing


def draw_time(
    runs: Mapping[Group, Sequence["Run"]], behaviours: Mapping[Group, Sequence[Behaviour]]
) -> "Figure | None":
    """Draw the milliseconds of a step and what they were spent on; None if nothing is known."""
    known = {}
    for group, some in behaviours.items():
        shares = [behaviour.shares for behaviour in some if behaviour.shares]
        steps, seconds = (np.mean(final(runs[group], name)) for name in ("step", "seconds"))
        if shares and steps > 0:
            step_ms = 1e3 * seconds / steps
            known[group] = {p: step_ms * np.mean([s.get(p, 0.0) for s in shares]) for p in PARTS}
    if not known:
        return None
    figure = new_figure(9, 1.1 + 0.38 * len(known))
    ax = figure.subplots()
    names = [group.label for group in known]
    left = np.zeros(len(names))
    colours = {"train": GREY, "score": COLOURS[1], "draw": COLOURS[0], "learn": COLOURS[2]}
    colours |= {"buffer": COLOURS[4], "diagnose": COLOURS[3], "other": "#bbbbbb"}
    for part, colour in colours.items():
        values = np.array([spent[part] for spent in known.values()])
        ax.barh(names, values, left=left, color=colour, label=PARTS[part], height=0.62)
        left += values
    for y, total in enumerate(left):
        ax.text(total, y, f"  {total:.3g} ms", va="center", fontsize=9)
    ax.invert_yaxis()
    plain(ax)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.12 * left.max())
    ax.set_xlabel("milliseconds of a step")
    figure.legend(loc="outside upper left", ncols=7, frameon=False, handlelength=1.0)
    return figure


def draw_behaviour(behaviours: Mapping[Group, Sequence[Behaviour]]) -> "Figure | None":
    """Draw diagnostics over the steps, a line per method; None if there are none yet."""
    panels = [
        (kind, name)
        for kind, name in _PANELS
        if any(
            len(getattr(b, kind).get(name, ())) > 1 for some in behaviours.values() for b in some
        )
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure = new_figure(9, 0.6 + 2.2 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    lines = {}
    for ax, (kind, name) in zip(axes, panels, strict=False):
        title, (low, high) = _PANELS[kind, name]
        for group, style in styles(behaviours).items():
            seeds = [getattr(behaviour, kind) for behaviour in behaviours[group]]
            seeds = [columns for columns in seeds if len(columns.get(name, ())) > 1]
            if not seeds:
                continue
            length = min(len(columns[name]) for columns in seeds)
            values = np.array([columns[name][:length] for columns in seeds])
            steps = seeds[0]["step"][:length]
            style = style | {"linewidth": 1.2, "markersize": 3}
            line = mean_and_band(ax, steps, values, group.label, style)
            lines.setdefault(group.label, line)
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_ylim(low, high)
        plain(ax)
        ax.tick_params(labelsize=8)
        ax.ticklabel_format(axis="x", style="plain")
        ax.locator_params(axis="x", nbins=4)
    figure.supxlabel("training steps", fontsize=9)
    columns = min(6, len(lines))
    figure.legend(
        handles=list(lines.values()), loc="outside upper left", ncols=columns, frameon=False
    )
    return figure


def draw_draws(behaviours: Mapping[Group, Sequence[Behaviour]]) -> "Figure | None":
    """Draw the scores, of the data set and as drawn, and how often examples were drawn."""
    known = _with_draws(behaviours)
    if not known:
        return None

    def scores(ax: Any, draws: Mapping[str, np.ndarray]) -> None:
        values, weights = draws["scores"], 1 / draws["probs"]
        good = np.isfinite(values) & np.isfinite(weights)
        values, weights = values[good], weights[good]
        bins, log = _bins(values)
        if bins is None:
            _say_alike(ax)
            return
        values = values.clip(bins[0])
        ax.hist(
            values, bins, weights=weights / weights.sum(), color=_DATA, alpha=0.5, label="data set"
        )
        drawn = np.full(len(values), 1 / len(values))
        ax.hist(values, bins, weights=drawn, color=_DRAWN, histtype="step", lw=1.4, label="drawn")
        if log:
            ax.set_xscale("log")

    def counts(ax: Any, draws: Mapping[str, np.ndarray]) -> None:
        count = draws["count"]
        end = int(count.max()) + 1
        width = -(-end // 40)  # whole: each bin is for as many counts
        ax.hist(count, np.arange(0, end + width, width) - 0.5, color=_DRAWN)
        ax.set_yscale("log")

    figure = _grid(known, [(scores, "score", "share"), (counts, "times drawn", "examples")])
    handles, labels = _legend_of(figure)
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    return figure


def draw_predictions(behaviours: Mapping[Group, Sequence[Behaviour]]) -> "Figure | None":
    """Draw the losses observed against the scores by which the examples were drawn."""
    known = {
        group: draws
        for group, draws in _with_draws(behaviours).items()
        if len(np.unique(draws["scores"][np.isfinite(draws["scores"])])) > 1
    }
    if not known:
        return None
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    cmap = LinearSegmentedColormap.from_list("", [(*_HEAT, 0.3), (*_HEAT, 1.0)])

    def scatter(ax: Any, draws: Mapping[str, np.ndarray]) -> None:
        x, y = draws["scores"], draws["losses"]
        good = np.isfinite(x) & np.isfinite(y)
        x, y = x[good], y[good]
        (x_bins, x_log), (y_bins, y_log) = _bins(x), _bins(y)
        if x_bins is None or y_bins is None:
            _say_alike(ax)
            return
        ax.text(
            0.04, 0.93, f"r = {np.corrcoef(x, y)[0, 1]:.2f}", transform=ax.transAxes, fontsize=9
        )
        x, y = x.clip(x_bins[0]), y.clip(y_bins[0])
        ax.hist2d(x, y, (x_bins, y_bins), cmap=cmap, norm=LogNorm(), cmin=1, rasterized=True)
        low, high = max(x_bins[0], y_bins[0]), min(x_bins[-1], y_bins[-1])
        if low < high:
            equal = np.union1d(x_bins, y_bins)  # many, as it is a curve where one scale is log
            equal = equal[(equal >= low) & (equal <= high)]
            ax.plot(equal, equal, color=COLOURS[1], linewidth=1.0)
        ax.set_xscale("log" if x_log else "linear")
        ax.set_yscale("log" if y_log else "linear")

    return _grid(known, [(scatter, "score when drawn", "loss then observed")])


def _with_draws(
    behaviours: Mapping[Group, Sequence[Behaviour]],
) -> dict[Group, Mapping[str, np.ndarray]]:
    """Of each group the draws of the first seed that has enough of them."""
    known = {}
    for group, some in behaviours.items():
        enough = [b.draws for b in some if len(b.draws.get("scores", ())) >= _FEW]
        if enough:
            known[group] = enough[0]
    return known


def _grid(
    known: Mapping[Group, Mapping[str, np.ndarray]],
    kinds: Sequence[tuple[Callable[[Any, Mapping[str, np.ndarray]], None], str, str]],
) -> "Figure":
    """A column per method, at most four side by side, and in it a panel per kind."""
    across = min(4, len(known))
    down = -(-len(known) // across) * len(kinds)
    figure = new_figure(9, 0.5 + 2.1 * down)
    axes = figure.subplots(down, across, squeeze=False)
    for ax in axes.ravel():
        ax.set_visible(False)
    for place, (group, draws) in enumerate(known.items()):
        row, column = divmod(place, across)
        for k, (draw, x_label, y_label) in enumerate(kinds):
            ax = axes[row * len(kinds) + k, column]
            ax.set_visible(True)
            draw(ax, draws)
            if k == 0:
                ax.set_title(group.label, fontsize=10, loc="left")
            if column == 0:
                ax.set_ylabel(y_label, fontsize=9)
            ax.set_xlabel(x_label, fontsize=9)
            plain(ax)
            ax.tick_params(labelsize=8)
    return figure


def _say_alike(ax: Any) -> None:
    ax.text(0.5, 0.5, "all are alike", ha="center", transform=ax.transAxes, fontsize=9)
    ax.set(xticks=[], yticks=[])


def _bins(values: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """Edges, and whether they are on a log scale; None if all values are alike.

    On a log scale what is smaller, zeros included, is to be counted in the first bin.
    """
    positive = values[values > 0]
    if len(positive) > 0.5 * len(values):
        low, high = np.quantile(positive, [0.01, 1.0])
        if high > 20 * low:
            return np.geomspace(max(low, 1e-6 * high), 1.001 * high, 31), True
    low, high = np.quantile(values, [0.0, 1.0]) if len(values) else (0.0, 0.0)
    return (np.linspace(low, high, 31), False) if high > low else (None, False)


def _legend_of(figure: "Figure") -> tuple[list[Any], list[str]]:
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            return handles, labels
    return [], []
