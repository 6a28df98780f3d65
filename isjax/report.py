"""Compare training runs: ``python -m isjax.report DIR [DIR ...]`` prints a table, draws a figure.

Every run directory at or below a DIR is read: its ``config.json`` and its ``metrics.jsonl``, which
has one JSON object per evaluation. Runs still going are read as far as they have come.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "Summary", "draw_figure", "format_table", "load_runs", "main", "summarise"]

_CONFIG = {"method": str, "seed": int, "num_steps": int, "dataset": str}
_METRICS = {"step": float, "seconds": float, "train_loss": float, "test_accuracy": float}
_GREY = "#444444"  # uniform; the others take Okabe-Ito, yellow last because it is faint on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_EXPLANATION = """
Time to a target: training seconds at a run's first evaluation at least as good as uniform's mean
final value, divided by uniform's mean total seconds. ± is one standard deviation over seeds.
With each method's learning rate decayed to its own full budget, a ratio below 1 says when a run
first got there, not what a shorter budget would give."""


class Run(NamedTuple):
    """One run: its settings, and arrays with an entry per evaluation (``seconds`` of training)."""

    path: Path
    method: str
    seed: int
    num_steps: int
    dataset: str
    step: np.ndarray
    seconds: np.ndarray
    train_loss: np.ndarray
    test_accuracy: np.ndarray


class Summary(NamedTuple):
    """One method: final values, one per seed, and times to uniform's mean final values.

    The times are ratios to uniform's mean total seconds: infinite for a seed that never gets
    there, None when there is no uniform run that has trained.
    """

    method: str
    steps: tuple[float, ...]
    seconds: tuple[float, ...]
    train_loss: tuple[float, ...]
    test_accuracy: tuple[float, ...]
    loss_ratio: tuple[float, ...] | None
    accuracy_ratio: tuple[float, ...] | None


def _parse(text: bytes, keys: dict[str, Any], where: str) -> list[Any]:
    """Return the values of a JSON object at the keys, each converted; ValueError if malformed."""
    try:
        entry = json.loads(text)
        return [kind(entry[key]) for key, kind in keys.items()]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{where}: malformed ({error!r}); repair it, or move the run away and run it anew"
        raise ValueError(message) from error


def _load_run(folder: Path) -> Run | None:
    """Return the run in a folder, or None if it has no complete evaluation yet."""
    path = folder / "metrics.jsonl"
    *lines, tail = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows = [_parse(v, _METRICS, f"{path}, line {i}") for i, v in enumerate(lines, 1) if v.strip()]
    with contextlib.suppress(ValueError):  # without a newline: probably still being written
        rows.append(_parse(tail, _METRICS, ""))
    if not rows:
        return None
    step, seconds, *values = np.array(rows).T
    if not ((np.diff(step) > 0).all() and (np.diff(seconds) >= 0).all()):
        raise ValueError(f"{path}: step or seconds goes back; move the run away and run it anew")
    path = folder / "config.json"
    config = _parse(path.read_bytes(), _CONFIG, str(path))
    return Run(folder, *config, step, seconds, *values)


def load_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Load every run at or below the folders, each once.

    A run without a complete evaluation is skipped with a note on stderr, a folder without runs
    likewise. A torn last line is ignored.

    Args:
        folders: Run directories, or folders above them.

    Returns:
        The runs, at least one, all on one data set.

    Raises:
        ValueError: A folder is missing, no run is found, a file is malformed or the data sets
            differ; the message names the path and the remedy.
        OSError: A file cannot be read.
    """
    folders = [Path(folder) for folder in folders]
    runs: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give a run directory or one above runs")
        found = sorted(path.parent for path in folder.rglob("config.json"))
        loaded = [_load_run(path) for path in found]
        runs |= {run.path.resolve(): run for run in loaded if run is not None}
        skipped = [path for path, run in zip(found, loaded, strict=True) if run is None]
        for path in skipped if found else [folder]:
            reason = "skipped, no complete evaluation yet" if found else "no run in this folder"
            print(f"note: {path}: {reason}", file=sys.stderr)
    if not runs:
        message = "no run with an evaluation; give a folder with config.json and metrics.jsonl"
        raise ValueError(f"{', '.join(map(str, folders))}: {message} in it or below it")
    places = {run.dataset: run.path for run in runs.values()}
    if len(places) > 1:
        names = ", ".join(f"{name} ({path})" for name, path in sorted(places.items()))
        raise ValueError(f"runs on different data sets: {names}; report on one data set at a time")
    return list(runs.values())


def _by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by method, uniform first, then by name."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.method != "uniform", run.method, run.seed)):
        groups.setdefault(run.method, []).append(run)
    return groups


def _final(runs: Iterable[Run], name: str) -> tuple[float, ...]:
    """Return each run's last value."""
    return tuple(float(getattr(run, name)[-1]) for run in runs)


def _ratios(runs: Iterable[Run], uniform: Sequence[Run], name: str) -> tuple[float, ...] | None:
    """Return each run's seconds to uniform's mean final value, over uniform's mean seconds."""
    total = np.mean(_final(uniform, "seconds")) if uniform else 0.0
    if total == 0:
        return None
    target = np.mean(_final(uniform, name))
    compare = np.less_equal if name == "train_loss" else np.greater_equal
    hits = [run.seconds[compare(getattr(run, name), target)] for run in runs]
    return tuple(float(hit[0] / total) if hit.size else math.inf for hit in hits)


def summarise(runs: Iterable[Run]) -> list[Summary]:
    """Summarise runs on one data set, a summary per method, uniform first, then by name."""
    groups = _by_method(runs)
    uniform = groups.get("uniform", [])
    return [
        Summary(
            method,
            *(_final(group, name) for name in _METRICS),
            *(_ratios(group, uniform, name) for name in ("train_loss", "test_accuracy")),
        )
        for method, group in groups.items()
    ]


def _mean_std(values: Sequence[float], decimals: int) -> str:
    """Format a mean and, for several values, their sample standard deviation."""
    text = f"{np.mean(values):.{decimals}f}"
    with np.errstate(invalid="ignore"):  # a run that diverged to infinity
        return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def _ratio_text(ratios: Sequence[float] | None) -> str:
    """Format the mean ratio of the seeds that reached the target, and how many did."""
    reached = [ratio for ratio in ratios or () if math.isfinite(ratio)]
    if ratios is None or not reached:
        return "\N{EN DASH}" if ratios is None else "never"
    partly = f" ({len(reached)} of {len(ratios)})" if len(reached) < len(ratios) else ""
    return _mean_std(reached, 2) + partly


def format_table(summaries: Sequence[Summary]) -> str:
    """Format summaries as aligned text: two heading lines, then a line per method."""

    def column(name: str, least: int) -> list[str]:
        """Format a mean ± deviation per method, the smallest mean with 3 significant digits."""
        values = [getattr(summary, name) for summary in summaries]
        means = [mean for v in values if 0 < (mean := float(np.mean(v))) < math.inf]
        digits = 2 - math.floor(math.log10(min(means, default=1.0)))
        return [_mean_std(value, min(8, max(least, digits))) for value in values]

    ranges = [sorted({int(min(s.steps)), int(max(s.steps))}) for s in summaries]
    *_, loss_ratios, accuracy_ratios = zip(*summaries, strict=True)
    columns = [
        ["", "method", *(s.method for s in summaries)],
        ["", "seeds", *(str(len(s.steps)) for s in summaries)],
        ["", "steps", *(" to ".join(map(str, ends)) for ends in ranges)],
        ["", "seconds", *column("seconds", 0)],
        ["final", "train loss", *column("train_loss", 3)],
        ["final", "test accuracy", *column("test_accuracy", 4)],
        ["time to uniform's", "final train loss", *map(_ratio_text, loss_ratios)],
        ["time to uniform's", "final test accuracy", *map(_ratio_text, accuracy_ratios)],
    ]
    padded = [
        [f"{cell:{align}{max(map(len, cells))}}" for cell in cells]
        for cells, align in zip(columns, "<>>>>><<", strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing the rows."""
    notes = []
    groups = _by_method(runs)
    if "uniform" not in groups:
        wanted = f"method uniform, dataset {runs[0].dataset}, {runs[0].num_steps} steps"
        notes.append(f"no uniform run to compare with; add one ({wanted})")
    elif not any(_final(groups["uniform"], "seconds")):
        notes.append("uniform has not trained yet; wait for its next evaluation")
    counts = sorted({int(count) for run in runs for count in (run.num_steps, run.step[-1])})
    if len(counts) > 1:
        notes.append(f"the runs differ in their number of steps: {', '.join(map(str, counts))}")
    for run in runs:
        if run.step[-1] < run.num_steps:
            notes.append(f"{run.path} is at step {run.step[-1]:.0f} of {run.num_steps}")
    for method, group in groups.items():
        if len({run.seed for run in group}) < len(group):
            notes.append(f"{method} has several runs with one seed; each is counted as a seed")
    return [f"note: {note}" for note in notes]


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
        final = np.mean(_final(groups["uniform"], y))
        final = final if y == "train_loss" else 1 - final
        ax.axhline(final, color=_GREY, linewidth=0.9, linestyle=":", label="uniform's final value")
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
    groups = _by_method(runs)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the figure, and return the exit status: 2 after an error, else 0."""
    parser = argparse.ArgumentParser(prog="python -m isjax.report", description=__doc__)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run, or a folder above runs")
    parser.add_argument("--output", metavar="PATH", help="figure (default: report.png above runs)")
    args = parser.parse_args(argv)
    folder = args.dirs[0]
    try:
        if len(args.dirs) > 1:
            folder = os.path.commonpath([os.path.abspath(name) for name in args.dirs])
        output = Path(args.output or Path(folder, "report.png"))
        runs = load_runs(args.dirs)
        print(format_table(summarise(runs)), _EXPLANATION, *_notes(runs), sep="\n", flush=True)
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
