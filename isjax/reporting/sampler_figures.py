"""Figures of how samplers behave: step time, diagnostics, draws, scores against losses."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax.reporting.plotting import COLOURS, GREY, declutter, mean_and_band, new_figure, styles
from isjax.reporting.run_artifacts import RunArtifacts
from isjax.reporting.runs import Group, final
from isjax.reporting.text import for_figure
from isjax.reporting.timeline import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isjax.reporting.runs import Run

__all__ = [
    "draw_diagnostics",
    "draw_histograms",
    "draw_score_against_loss",
    "draw_step_time",
]

_PART_COLOURS = {
    "train": GREY,
    "score": COLOURS[1],
    "draw": COLOURS[0],
    "learn": COLOURS[2],
    "buffer": COLOURS[4],
    "diagnose": COLOURS[3],
    "other": "#bbbbbb",
    "wait": "#e6e6e6",
}
# Panels of draw_diagnostics: field of RunArtifacts and name in it; title and range of the axis.
_PANELS = {
    ("steps", "ess"): ("effective sample size (share of pool)", (0, 1.05)),
    ("steps", "tau"): ("τ = 1 / √ess", (0.95, None)),
    ("steps", "max_weight"): ("largest weight in the batch", (0, None)),
    ("steps", "unique"): ("distinct examples (share of batch)", (0, 1.05)),
    ("evaluations", "coverage"): ("examples drawn so far (share)", (0, 1.05)),
    ("steps", "score_correlation"): ("correlation of score and loss", (None, 1.05)),
}
_DATA, _DRAWN = GREY, COLOURS[0]
_HEAT = (0.17, 0.55, 0.77)  # legible on light and dark: a raster image cannot follow the theme
_MIN_DRAWS = 20  # a histogram of fewer draws shows only noise

_Draws = Mapping[str, np.ndarray]
_Artifacts = Mapping[Group, Sequence[RunArtifacts]]


def draw_step_time(runs: Mapping[Group, Sequence["Run"]], artifacts: _Artifacts) -> "Figure | None":
    """Draws the milliseconds of one training step by part, a bar per method.

    A part has the time that its operations took when they were measured, so that equal work has
    bars of equal length. The mean time of a step, as the clock shows it, is beside the bar. What it
    exceeds the operations by is time between them. It is less where operations run at once.

    Args:
        runs: Runs by group.
        artifacts: Artifacts by group, in any order within a group.

    Returns:
        The figure; None if no run has measured its step time.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    times, clock = {}, []
    for group, of_group in artifacts.items():
        measured = [one.seconds for one in of_group if one.seconds]
        steps, seconds = (np.mean(final(runs[group], name)) for name in ("step", "seconds"))
        if measured and steps > 0:
            parts = {p: 1e3 * np.mean([m.get(p, 0.0) for m in measured]) for p in PARTS}
            clock.append(1e3 * seconds / steps)
            times[group] = parts | {"wait": max(clock[-1] - sum(parts.values()), 0.0)}
    if not times:
        return None
    figure = new_figure(9, 1.1 + 0.38 * len(times))
    ax = figure.subplots()
    names = [for_figure(group.label) for group in times]
    left, labels = np.zeros(len(names)), PARTS | {"wait": "waiting"}
    for part, colour in _PART_COLOURS.items():
        values = np.array([by_part[part] for by_part in times.values()])
        ax.barh(names, values, left=left, color=colour, label=labels[part], height=0.62)
        left += values
    for y, (end, step_ms) in enumerate(zip(left, clock, strict=True)):
        ax.text(end, y, f"  {step_ms:.3g} ms", va="center", fontsize=9)
    ax.invert_yaxis()
    declutter(ax)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.12 * left.max())
    ax.set_xlabel("milliseconds per training step")
    figure.legend(
        loc="outside upper left", ncols=8, columnspacing=1.0, frameon=False, handlelength=1.0
    )
    return figure


def draw_diagnostics(artifacts: _Artifacts) -> "Figure | None":
    """Draws the sampler's diagnostics against steps, a panel per diagnostic, a line per method.

    Args:
        artifacts: Artifacts by group. Seeds are averaged over the steps that all of them have.

    Returns:
        The figure; None if no diagnostic has two values yet.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    panels = [
        (field, name)
        for field, name in _PANELS
        if any(
            len(getattr(one, field).get(name, ())) > 1
            for of_group in artifacts.values()
            for one in of_group
        )
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure = new_figure(9, 0.6 + 2.2 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    lines: dict[str, Any] = {}
    for ax, (field, name) in zip(axes, panels, strict=False):
        for label, line in _draw_diagnostic(ax, artifacts, field, name).items():
            lines.setdefault(label, line)
    figure.supxlabel("training steps", fontsize=9)
    columns = min(6, len(lines))
    figure.legend(
        handles=list(lines.values()), loc="outside upper left", ncols=columns, frameon=False
    )
    return figure


def _draw_diagnostic(ax: Any, artifacts: _Artifacts, field: str, name: str) -> dict[str, Any]:
    """Draws one panel; returns the line of each group by label."""
    title, (low, high) = _PANELS[field, name]
    lines = {}
    for group, style in styles(artifacts).items():
        seeds = [getattr(one, field) for one in artifacts[group]]
        seeds = [columns for columns in seeds if len(columns.get(name, ())) > 1]
        if not seeds:
            continue
        length = min(len(columns[name]) for columns in seeds)
        values = np.array([columns[name][:length] for columns in seeds])
        steps = seeds[0]["step"][:length]
        style = style | {"linewidth": 1.2, "markersize": 3}
        label = for_figure(group.label)
        lines[label] = mean_and_band(ax, steps, values, label, style)
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_ylim(low, high)
    declutter(ax)
    ax.tick_params(labelsize=8)
    ax.ticklabel_format(axis="x", style="plain")
    ax.locator_params(axis="x", nbins=4)
    return lines


def draw_histograms(artifacts: _Artifacts) -> "Figure | None":
    """Draws a histogram of scores and one of draw counts for each method.

    The scores are those of the last draws. Weighted by 1 / probability, they also estimate the
    distribution over the whole data set.

    Args:
        artifacts: Artifacts by group. Each group shows its first seed that has enough draws.

    Returns:
        The figure; None if no run has enough draws.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    draws = _first_with_draws(artifacts)
    if not draws:
        return None
    figure = _grid(
        draws, [(_score_histogram, "score", "share"), (_count_histogram, "times drawn", "examples")]
    )
    legends = (ax.get_legend_handles_labels() for ax in figure.axes)
    handles, labels = next((legend for legend in legends if legend[0]), ([], []))
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    return figure


def _score_histogram(ax: Any, draws: _Draws) -> None:
    """Draws the distribution of scores: of the whole data set, and of the examples drawn."""
    scores, weights = draws["scores"], 1 / draws["probs"]
    finite = np.isfinite(scores) & np.isfinite(weights)
    scores, weights = scores[finite], weights[finite]
    bins, log = _bins(scores)
    if bins is None:
        _write_all_equal(ax)
        return
    scores = scores.clip(bins[0])
    shares = weights / weights.sum()
    ax.hist(scores, bins, weights=shares, color=_DATA, alpha=0.5, label="whole data set")
    shares = np.full(len(scores), 1 / len(scores))
    ax.hist(scores, bins, weights=shares, color=_DRAWN, histtype="step", lw=1.4, label="drawn")
    if log:
        ax.set_xscale("log")


def _count_histogram(ax: Any, draws: _Draws) -> None:
    """Draws how many examples were drawn how often."""
    count = draws["count"]
    end = int(count.max()) + 1
    width = -(-end // 40)  # an integer, so that every bin holds as many counts
    ax.hist(count, np.arange(0, end + width, width) - 0.5, color=_DRAWN)
    ax.set_yscale("log")


def draw_score_against_loss(artifacts: _Artifacts) -> "Figure | None":
    """Draws a heat map for each method: the score of a draw against the loss then observed.

    All axes are logarithmic, or all are linear: the line of equality is straight.

    Args:
        artifacts: Artifacts by group. Each group shows its first seed that has enough draws.

    Returns:
        The figure; None if no method has scores that differ.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    draws = {
        group: of_group
        for group, of_group in _first_with_draws(artifacts).items()
        if len(np.unique(of_group["scores"][np.isfinite(of_group["scores"])])) > 1
    }
    if not draws:
        return None
    values = [v for of_group in draws.values() for v in _finite_pairs(of_group) if v.size]
    log = all(np.mean(v > 0) > 0.5 for v in values) and any(_bins(v)[1] for v in values)
    draw = functools.partial(_heat_map, log=log)
    return _grid(draws, [(draw, "score when drawn", "loss then observed")])


def _finite_pairs(draws: _Draws) -> np.ndarray:
    """Returns the scores and losses of the draws of which both are finite, [2, draws]."""
    pairs = np.stack([draws["scores"], draws["losses"]])
    return pairs[:, np.isfinite(pairs).all(axis=0)]


def _heat_map(ax: Any, draws: _Draws, log: bool) -> None:
    """Draws scores against losses, their correlation, and the line of equality."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    x, y = _finite_pairs(draws)
    x_bins, y_bins = (_bins(values, log)[0] for values in (x, y))
    if x_bins is None or y_bins is None:
        _write_all_equal(ax)
        return
    r = np.corrcoef(x, y)[0, 1]
    ax.text(0.04, 0.93, f"r = {r:.2f}", transform=ax.transAxes, fontsize=9)
    x, y = x.clip(x_bins[0]), y.clip(y_bins[0])
    cmap = LinearSegmentedColormap.from_list("", [(*_HEAT, 0.3), (*_HEAT, 1.0)])
    ax.hist2d(x, y, (x_bins, y_bins), cmap=cmap, norm=LogNorm(), cmin=1, rasterized=True)
    low, high = max(x_bins[0], y_bins[0]), min(x_bins[-1], y_bins[-1])
    if low < high:
        ax.plot([low, high], [low, high], color=COLOURS[1], linewidth=1.0)
    ax.set(xscale="log" if log else "linear", yscale="log" if log else "linear")


def _first_with_draws(artifacts: _Artifacts) -> dict[Group, _Draws]:
    """Returns each group's draws, of its first seed that has at least _MIN_DRAWS."""
    found = {}
    for group, of_group in artifacts.items():
        enough = [one.draws for one in of_group if len(one.draws.get("scores", ())) >= _MIN_DRAWS]
        if enough:
            found[group] = enough[0]
    return found


def _grid(
    draws: Mapping[Group, _Draws],
    panels: Sequence[tuple[Callable[[Any, _Draws], None], str, str]],
) -> "Figure":
    """Draws the panels of each method below each other, at most four methods side by side.

    A panel is a function that draws it, the label of its x axis, and that of its y axis.
    """
    across = min(4, len(draws))
    down = -(-len(draws) // across) * len(panels)
    figure = new_figure(9, 0.5 + 2.1 * down)
    axes = figure.subplots(down, across, squeeze=False)
    for ax in axes.ravel():
        ax.set_visible(False)
    for place, (group, of_group) in enumerate(draws.items()):
        row, column = divmod(place, across)
        for k, (draw, x_label, y_label) in enumerate(panels):
            ax = axes[row * len(panels) + k, column]
            ax.set_visible(True)
            draw(ax, of_group)
            if k == 0:
                ax.set_title(for_figure(group.label), fontsize=10, loc="left")
            if column == 0:
                ax.set_ylabel(y_label, fontsize=9)
            ax.set_xlabel(x_label, fontsize=9)
            declutter(ax)
            ax.tick_params(labelsize=8)
    return figure


def _write_all_equal(ax: Any) -> None:
    ax.text(0.5, 0.5, "all values are equal", ha="center", transform=ax.transAxes, fontsize=9)
    ax.set(xticks=[], yticks=[])


def _bins(values: np.ndarray, log: bool | None = None) -> tuple[np.ndarray | None, bool]:
    """Returns the edges of 30 bins, or None if all values are equal, and whether they are log.

    `log` decides that; None leaves it to the values, which are log if they span a factor of 20.
    Values below the first edge, zeros included, are to be counted in the first bin.
    """
    positive = values[values > 0]
    if log or (log is None and len(positive) > 0.5 * len(values)):
        low, high = np.quantile(positive, [0.01, 1.0]) if len(positive) else (0.0, 0.0)
        if log and high > values.min():
            low = min(low, 0.5 * high)
        if high > (1 if log else 20) * low:
            return np.geomspace(max(low, 1e-6 * high), 1.001 * high, 31), True
    low, high = np.quantile(values, [0.0, 1.0]) if len(values) else (0.0, 0.0)
    return (np.linspace(low, high, 31), False) if high > low else (None, False)
