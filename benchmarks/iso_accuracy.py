"""Budget that each method needs for a test accuracy, over uniform's: a curve over budgets.

    python benchmarks/iso_accuracy.py FILE... [--metric test_accuracy] [--baseline uniform]
      [--budgets 0.5 1] [--out FIGURE.svg]

A FILE holds a line of JSON per run, as time_to_target.py (runs.jsonl) and paper_on_gpu.py write
them: `method`, `seed`, `budget` (a share of the whole, with a schedule of its own) and metrics.
Other lines are passed over. A method is compared on the seeds that both it and the baseline have
at all budgets; give --budgets where some are missing.

Every accuracy that the baseline's mean has at a budget is a target. Its iso-accuracy ratio is the
least budget at which the method reaches it, over the least at which the baseline does: below 1,
sampling is ahead. Between budgets, accuracies are interpolated against the logarithm of the budget.
"<=" marks a target that the method reaches at its smallest budget already; inf one never reached.
Brackets are 95% intervals of bootstraps over seeds, which resample both methods alike. With few
seeds they are too narrow. Prints a table, and a line of JSON per method and target; draws the
accuracies and the ratios.
"""

import argparse
import json
import pathlib

import numpy as np

from isjax.reporting.plotting import COLOURS, GREY, declutter, new_figure

# How to make a metric linear, and whether higher (1) or lower (-1) is better.
METRICS = {"train_loss": (np.log, -1), "test_loss": (np.log, -1), "test_accuracy": (np.array, 1)}
BOOTSTRAPS, POINTS = 2_000, 21


def goodness(values, metric):
    """Returns values that are better if higher, on the scale that is interpolated."""
    scale, sign = METRICS[metric]
    return sign * scale(values)


def reached(budgets, good, target):
    """Returns the first budget at which a curve is as good as the target; inf if it never is."""
    better = np.asarray(good) - target
    for i, gain in enumerate(better):
        if gain >= 0:
            if i == 0:
                return budgets[0]
            part = -better[i - 1] / (gain - better[i - 1])
            low, high = np.log(budgets[i - 1 : i + 1])
            return float(np.exp(low + part * (high - low)))
    return np.inf


def ratio_at(budgets, base, method, at):
    """Returns (target, the baseline's least budget for it, the ratio) at a budget of the baseline.

    Args:
        budgets: [budgets] ascending shares.
        base: [budgets] goodness of the baseline.
        method: [budgets] goodness of the method.
        at: budget of the baseline that sets the target.
    """
    target = np.interp(np.log(at), np.log(budgets), base)
    own = float(
        min(reached(budgets, base, target), at)
    )  # rounding may put the target above the curve
    return target, own, reached(budgets, method, target) / own


def iso_curve(budgets, base, method, metric, points=POINTS):
    """Returns the ratio over the baseline's budgets, with intervals.

    Args:
        budgets: [budgets] ascending shares of the whole.
        base: [seeds, budgets] values of the baseline.
        method: [seeds, budgets] values of the method, of the same seeds.
        metric: name in METRICS.
        points: targets; those of the trained budgets are among them.

    Returns:
        A dictionary for each target: `at`, the budget of the baseline that sets it; `target`;
        `baseline`, the least budget of the baseline; `ratio`, `low`, `high`; and `at_most`, whether
        the method reaches it at its smallest budget.
    """
    budgets = np.asarray(budgets, float)
    grid = np.geomspace(budgets[0], budgets[-1], points)
    grid = np.unique(np.concatenate([grid[~np.isclose(grid[:, None], budgets).any(1)], budgets]))
    rng, seeds = np.random.default_rng(0), len(base)
    chosen = [np.arange(seeds)]
    if seeds > 1:
        chosen += list(rng.integers(0, seeds, (BOOTSTRAPS, seeds)))
    means = [[goodness(part[c].mean(axis=0), metric) for part in (base, method)] for c in chosen]
    curve = []
    for at in grid:
        found = [ratio_at(budgets, *mean, at) for mean in means]
        target, own, ratio = found[0]
        ratios = [other for _, _, other in found[1:]] or [ratio]
        low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
        value = float(np.exp(-target) if METRICS[metric][1] < 0 else target)
        row = {"at": float(at), "target": value, "baseline": own, "ratio": float(ratio)}
        row |= {"low": float(low), "high": float(high)}
        curve.append(row | {"at_most": bool(np.isclose(ratio * own, budgets[0]))})
    return curve


def curves_of(rows, metric, baseline="uniform", budgets=None):
    """Sorts runs into curves.

    Args:
        rows: dictionaries with `method`, `seed`, `budget` and the metric.
        metric: name in METRICS.
        baseline: method to compare with.
        budgets: shares to use; by default all that the baseline has.

    Returns:
        Budgets ascending, and for each method the pair of [seeds, budgets] arrays (baseline,
        method) over the seeds that both have at all budgets. Methods without such a seed are left
        out.

    Raises:
        ValueError: if the baseline has no runs.
    """
    found = {(row["method"], row["seed"], row["budget"]): row[metric] for row in rows}
    budgets = sorted(budgets or {b for name, _, b in found if name == baseline})
    if not budgets:
        raise ValueError(f"no runs of {baseline} with {metric}; choose another --baseline")
    seeds = sorted({seed for _, seed, _ in found})
    pairs = {}
    for name in dict.fromkeys([baseline, *(name for name, _, _ in found)]):
        both = [
            seed
            for seed in seeds
            if all((who, seed, b) in found for who in (baseline, name) for b in budgets)
        ]
        if both:
            pairs[name] = tuple(
                np.array([[found[who, seed, b] for b in budgets] for seed in both], float)
                for who in (baseline, name)
            )
    return budgets, pairs


def draw_iso(budgets, pairs, metric, baseline, title, output, curves=None):
    """Draws the metric at each budget, and the ratios; shaded where sampling is ahead.

    Args:
        budgets: of `curves_of`.
        pairs: of `curves_of`.
        metric: name in METRICS.
        baseline: its name.
        title: text above the panels.
        output: file to write; its suffix gives the format.
        curves: `iso_curve` of each method but the baseline, if made already.
    """
    figure = new_figure(9.5, 4.2)
    values, ratios = figure.subplots(1, 2)
    others = [name for name in pairs if name != baseline]
    colours = {baseline: GREY} | {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(others)}
    for name, (_, own) in pairs.items():
        style = {"color": colours[name], "label": f"{name} ({len(own)})"}
        values.plot(budgets, own.T, ".", color=colours[name], alpha=0.35, markersize=4)
        values.plot(budgets, own.mean(axis=0), linewidth=2.4 if name == baseline else 1.4, **style)
    values.set_ylabel(metric.replace("_", " "))
    values.set_xlabel("share of the budget")
    top = 1.3
    for name in others:
        curve = (curves or {}).get(name) or iso_curve(budgets, *pairs[name], metric)
        at = np.array([point["at"] for point in curve])
        ratio, low, high = (np.array([p[key] for p in curve]) for key in ("ratio", "low", "high"))
        known = np.isfinite(ratio)
        top = max([top, *(1.1 * ratio[known])])
        ratios.plot(at[known], ratio[known], color=colours[name], linewidth=1.6)
        beyond = np.where(np.isfinite(high), high, 99.0)
        band = {"color": colours[name], "alpha": 0.13, "linewidth": 0}
        ratios.fill_between(at[known], low[known], beyond[known], **band)
        bound = known & np.array([point["at_most"] for point in curve])
        ratios.plot(at[bound], ratio[bound], "v", color=colours[name], markersize=4)
        never = np.full(np.sum(~known), 0.985)
        ratios.plot(
            at[~known],
            never,
            "x",
            color=colours[name],
            markersize=5,
            transform=ratios.get_xaxis_transform(),
        )
    ratios.axhspan(0, 1, color="#009E73", alpha=0.08, linewidth=0)
    ratios.axhline(1, color=GREY, linewidth=0.9)
    ratios.text(0.98, 0.02, "sampling is ahead", ha="right", transform=ratios.transAxes, fontsize=9)
    ratios.set_ylim(0, min(top, 2.5))
    ratios.set_xlabel(f"share of the budget that {baseline} needs")
    ratios.set_ylabel(f"same {metric.split('_')[-1]}: budget over {baseline}'s")
    ratios.set_title("triangle: at most; cross: not reached", fontsize=9, loc="left")
    for ax in (values, ratios):
        declutter(ax)
    figure.legend(
        *values.get_legend_handles_labels(),
        title=f"{title} (seeds)",
        loc="outside upper left",
        alignment="left",
        frameon=False,
        ncols=4,
        fontsize=9,
    )
    figure.savefig(output)
    return figure


def print_differences(budgets, pairs, metric, baseline):
    """Prints what each method has more than the baseline, mean ± standard error of the pairs."""
    print(f"{metric} less {baseline}'s of the same seed, ± standard error")
    for name, (base, own) in pairs.items():
        if name != baseline:
            gains, seeds = own - base, len(own)
            texts = [f"{b:.0%} {gain:+.4f}" for b, gain in zip(budgets, gains.mean(0), strict=True)]
            if seeds > 1:
                errors = gains.std(axis=0, ddof=1) / seeds**0.5
                texts = [f"{t} ± {error:.4f}" for t, error in zip(texts, errors, strict=True)]
            print(f"  {name}, {seeds} seed{'s' * (seeds > 1)}: " + ", ".join(texts))


def print_iso(budgets, curves, metric, baseline):
    """Prints a row per trained budget: the target, then each method's ratio."""
    print(f"budget for {baseline}'s {metric}, over {baseline}'s [95% interval]")
    for budget in budgets:
        points = {
            name: next(point for point in curve if np.isclose(point["at"], budget))
            for name, curve in curves.items()
        }
        texts = [
            f"{name} {'<= ' * point['at_most']}{point['ratio']:.2f} "
            f"[{point['low']:.2f}, {point['high']:.2f}]"
            for name, point in points.items()
        ]
        targets = {f"{point['target']:.4f}" for point in points.values()}
        print(f"  {budget:4.0%}, {' or '.join(sorted(targets))}: " + ", ".join(texts))


def report(rows, metric, baseline, budgets, title, output):
    """Prints and draws all of it. -> the curves by method."""
    budgets, pairs = curves_of(rows, metric, baseline, budgets)
    curves = {
        name: iso_curve(budgets, *both, metric) for name, both in pairs.items() if name != baseline
    }
    print_differences(budgets, pairs, metric, baseline)
    print_iso(budgets, curves, metric, baseline)
    for name, curve in curves.items():
        for point in curve:
            print(json.dumps({"iso": metric, "baseline_method": baseline, "method": name} | point))
    if output:
        draw_iso(budgets, pairs, metric, baseline, title, output, curves)
        print(f"figure: {output}")
    return curves


def read(paths):
    """Returns the runs in files of JSON lines."""
    rows = []
    for path in paths:
        for line in path.read_text().splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                if {"method", "seed", "budget"} <= row.keys():
                    rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--metric", default="test_accuracy", choices=METRICS)
    parser.add_argument("--baseline", default="uniform")
    parser.add_argument("--budgets", nargs="+", type=float)
    parser.add_argument("--title", default="")
    parser.add_argument("--out", type=pathlib.Path, help="figure; its suffix gives the format")
    args = parser.parse_args()
    title = args.title or ", ".join(path.stem for path in args.files)
    report(read(args.files), args.metric, args.baseline, args.budgets, title, args.out)


if __name__ == "__main__":
    main()
