"""Compares methods under equal budgets: `python -m isjax.compare --config=FILE --workdir=DIR`.

    python -m isjax.compare --config=configs/mnist1d.py --methods=all --seeds=3 --workdir=DIR

Each method trains under three equal budgets: as many steps as uniform draws, then as many steps as
cost the same in examples of the main model, and in seconds of training. The last two are run only
for methods that cost more than uniform draws. Scoring and reference models count, a backward pass
as two forward ones; compilation and evaluation do not. The learning rate decays within each
budget. Costs are those of the runs of equal steps: means over the seeds or, in seconds, from the
median time of a step, as measured between evaluations. A difference in seconds that may be noise,
twice its standard error, changes no budget. Prints a table; writes it as
`compare.md`, its numbers as `compare.jsonl`, and a figure as `compare.png`. The same command
resumes a comparison that was interrupted. Settings are given as for isjax.main.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from isjax import experiment, main, recipes
from isjax.data.files import cannot_write, read_or_none, write_whole
from isjax.data.source import num_examples
from isjax.experiment.components import make_sampler, make_task
from isjax.experiment.config import ConfigDict, ConfigError, check, check_name, num_steps
from isjax.experiment.reference_models import placeholders
from isjax.reporting.comparison_figure import draw_comparison
from isjax.reporting.runs import SCORES, TRAIN_LOSS, Metric, Run, load_runs
from isjax.reporting.tables import mean_stds
from isjax.tasks import Task

__all__ = ["compare", "table"]

EQUAL = ("steps", "examples", "seconds")
_SAME = 0.02  # a budget this close to 1 uses the run of equal steps
_UNKNOWN = 0.1  # standard error of a time measured fewer than three times
_METHODS = flags.DEFINE_list("methods", ["all"], "Names in isjax.recipes, or all that fit.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each, with seeds from config.seed on.", 1)

Lines = dict[str, dict[str, list[dict[str, Any]]]]  # kind of budget -> method -> line of each seed


def compare(config: ConfigDict, workdir: str, methods: Sequence[str], seeds: int) -> Lines:
    """Trains every method under every budget, except for runs that `workdir` holds finished.

    Args:
        config: of the runs; its method options apply to its own method alone.
        workdir: folder of the comparison.
        methods: names in `isjax.recipes`, to which "uniform" is added; or `["all"]`, which leaves
            out those that do not fit the task, with a note.
        seeds: runs of each method, with seeds from `config.seed` on.

    Returns:
        The last line of metrics of each run: by kind of budget, method and seed.

    Raises:
        ConfigError: before anything is trained, if a method is unknown or does not fit the task.
    """
    check(config)
    check(_with(config, seed=config.seed + seeds - 1))
    folder = pathlib.Path(workdir).expanduser()
    task = make_task(_with(config, label_noise=0.0))  # each run adds its own noise
    methods = _fitting(config, task, methods)
    lines: Lines = {equal: {} for equal in EQUAL}

    def run(equal: str, method: str, seed: int, budget: float) -> None:
        one = _with(
            config,
            method=method,
            seed=config.seed + seed,
            budget=config.budget * budget,
            stop_on_nonfinite=False,  # a run that diverges is a result too
            max_skipped=1.0,
        )
        print(f"== equal {equal}: {method}, seed {one.seed}, {budget:.1%}", flush=True)
        line = experiment.run(one, folder / equal / f"{method}-{one.seed}", task.dataset)
        lines[equal].setdefault(method, []).append({**line, "budget": budget})

    for seed in range(seeds):
        for method in methods:
            run("steps", method, seed, 1.0)
    seeds_of = range(config.seed, config.seed + seeds)
    seconds = {
        method: _seconds(load_runs(folder / "steps" / f"{method}-{seed}" for seed in seeds_of))
        for method in methods
    }
    budgets = _budgets(folder / "budgets.json", lines["steps"], seconds, methods)
    for seed in range(seeds):
        for equal in EQUAL[1:]:
            for method in methods:
                if budgets[equal][method] < 1:
                    run(equal, method, seed, budgets[equal][method])
                else:
                    lines[equal].setdefault(method, []).append(lines["steps"][method][seed])
    return lines


def _fitting(config: ConfigDict, task: Task, methods: Sequence[str]) -> list[str]:
    """Uniform draws and the methods that fit the task, in order."""
    everything = list(methods) == ["all"]
    chosen = list(recipes.__all__) if everything else list(methods)
    for method in chosen:
        check_name(method, recipes.__all__, "a method", "--methods: ")
    size = num_examples(task.dataset.train)
    fitting = []
    for method in dict.fromkeys(["uniform", *chosen]):
        one = _with(config, method=method)
        check(one)
        try:
            make_sampler(one, task, None, placeholders(one, size))
        except ConfigError as error:
            if not everything:
                raise
            print(f"note: without {method}: {error}", flush=True)
            continue
        fitting.append(method)
    return fitting


def _with(config: ConfigDict, **settings: Any) -> ConfigDict:
    """The config with other settings; another method does not keep the options."""
    one = ConfigDict(config.to_dict())
    if settings.get("method", config.method) != config.method:
        one.method_options = ConfigDict()
    for name, value in settings.items():
        one[name] = value
    return one


def cost(line: dict[str, Any], equal: str) -> float:
    """The cost of a run.

    Args:
        line: its last line of metrics.
        equal: unit of the cost: "examples" (forward, plus twice those backward), "seconds" or
            "steps".
    """
    if equal == "examples":
        return line["examples_forward"] + 2 * line["examples_backward"]
    return line["seconds" if equal == "seconds" else "step"]


class _Seconds(NamedTuple):
    """Seconds of training of a method's runs.

    Attributes:
        total: of one run.
        error: standard error, as a share of it.
    """

    total: float
    error: float


def _seconds(runs: Sequence[Run]) -> _Seconds:
    """The time of a run by the median time of a step, so that one slow moment does not count."""
    rates = [np.diff(run.metrics["seconds"]) / np.diff(run.metrics["step"]) for run in runs]
    rates = np.concatenate(rates)
    first = np.mean([run.metrics["seconds"][0] for run in runs])  # of reference models
    total = max(float(first + np.median(rates) * runs[0].total_steps), 1e-9)
    if len(rates) < 3:
        return _Seconds(total, _UNKNOWN)
    # Of a median, for normal noise whose deviation is the interquartile range / 1.35.
    error = 1.25 * np.subtract(*np.quantile(rates, [0.75, 0.25])) / 1.35 / math.sqrt(len(rates))
    return _Seconds(total, float(error * runs[0].total_steps / total))


def _budgets(
    path: pathlib.Path,
    lines: dict[str, list[dict[str, Any]]],
    seconds: dict[str, _Seconds],
    methods: Sequence[str],
) -> dict[str, dict[str, float]]:
    """The share of the steps for which each method costs as much as uniform draws, at most 1.

    Kept in the file `path`: a comparison that is resumed must use the same budgets.
    """
    kept = read_or_none(path, _read_budgets) or {}
    budgets = {equal: kept.get(equal, {}) for equal in EQUAL[1:]}
    for equal, shares in budgets.items():
        means = {m: float(np.mean([cost(line, equal) for line in lines[m]])) for m in methods}
        for method in methods:
            share, same = means["uniform"] / means[method], _SAME
            if equal == "seconds":
                share = seconds["uniform"].total / seconds[method].total
                noise = math.hypot(seconds["uniform"].error, seconds[method].error)
                same = max(_SAME, 2 * noise)
            shares.setdefault(method, float(f"{share:.3g}") if share < 1 - same else 1.0)
    with write_whole(path) as file:
        file.write(json.dumps(budgets, indent=2).encode() + b"\n")
    return budgets


def _read_budgets(path: pathlib.Path) -> dict[str, dict[str, float]]:
    """The budgets in a file; raises ValueError if one is no share."""
    kept = json.loads(path.read_bytes())
    if not all(0 < share <= 1 for shares in kept.values() for share in shares.values()):
        raise ValueError("a budget is outside (0, 1]")
    return kept


def table(lines: Lines) -> str:
    """The comparison as a Markdown table, the lowest train loss in equal seconds first.

    Args:
        lines: of `compare`.

    Returns:
        A row for each method: costs over those of uniform draws, then train loss and score under
        each budget, with standard deviations over the seeds.
    """
    score = _score(lines)
    methods = sorted(lines["steps"], key=lambda m: _mean(lines["seconds"][m], TRAIN_LOSS))
    columns = [["method", *(f"`{method}`" for method in methods)]]
    for equal, heading in (("seconds", "time"), ("examples", "examples")):
        base = np.mean([cost(line, equal) for line in lines["steps"]["uniform"]])
        ratios = ([cost(x, equal) / base for x in lines["steps"][method]] for method in methods)
        columns.append([f"cost in {heading}", *mean_stds(list(ratios), 2)])
    for metric in (TRAIN_LOSS, score):
        for equal in EQUAL:
            values = [[line[metric.name] for line in lines[equal][m]] for m in methods]
            cells = mean_stds(values, 4 if metric.higher_is_better else 3)
            columns.append([f"{metric.label}, equal {equal}", *cells])
    heading, *rows = zip(*columns, strict=True)
    rule = ("---", *["--:"] * (len(columns) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rows))


def _skipped(lines: Lines, first_seed: int) -> str:
    """The runs that skipped steps, each with how many of how many."""
    return ", ".join(
        f"{method} (equal {equal}, seed {first_seed + i}) {line['skipped']} of {line['step']}"
        for equal in EQUAL
        for method, of_method in lines[equal].items()
        for i, line in enumerate(of_method)
        if line.get("skipped") and (equal == "steps" or line["budget"] < 1)
    )


def _score(lines: Lines) -> Metric:
    found = lines["steps"]["uniform"][0]
    return next(metric for metric in SCORES if metric.name in found)


def _mean(lines: Sequence[dict[str, Any]], metric: Metric) -> float:
    return float(np.mean([line[metric.name] for line in lines]))


def _write(folder: pathlib.Path, config: ConfigDict, lines: Lines, seeds: int) -> None:
    """Prints the table, and writes table, numbers and figure to the folder."""
    device = jax.devices()[0].device_kind
    text = (
        f"{config.dataset}, {config.network}, {num_steps(config)} steps of uniform, "
        f"{seeds} seeds (mean ± standard deviation), on {device}\n\n{table(lines)}\n"
    )
    if skipped := _skipped(lines, config.seed):
        text += f"\nSteps skipped, because losses or gradients were not finite: {skipped}.\n"
    print(text)
    with write_whole(folder / "compare.md") as file:
        file.write(text.encode())
    with write_whole(folder / "compare.jsonl") as file:
        for equal in EQUAL:
            for method, of_method in lines[equal].items():
                for seed, line in enumerate(of_method):
                    row = {"equal": equal, "method": method, "seed": config.seed + seed, **line}
                    file.write(json.dumps({**row, "device": device}).encode() + b"\n")
    title = f"{config.dataset}, {config.network}: each seed, and the mean"
    try:
        draw_comparison(lines, (TRAIN_LOSS, _score(lines)), title, folder / "compare.png")
    except OSError as error:
        raise cannot_write(folder / "compare.png", error) from error
    print(f"figure: {folder / 'compare.png'}")


def run(config: ConfigDict, workdir: str) -> None:
    """Runs the command: compares, prints and writes.

    Args:
        config: of the runs.
        workdir: folder of the comparison.
    """
    lines = compare(config, workdir, _METHODS.value, _SEEDS.value)
    _write(pathlib.Path(workdir).expanduser(), config, lines, _SEEDS.value)


if __name__ == "__main__":
    main.command("compare", __doc__, run, _METHODS, _SEEDS)
