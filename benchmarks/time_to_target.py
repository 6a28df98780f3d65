"""Share of uniform's budget at which methods reach uniform's metrics.

    python benchmarks/time_to_target.py --config fashion_mnist [--set network=MLP ...]
      [--methods default biased_loss,pool_size=256 paper:learned_loss] [--budgets 0.3 0.5 0.7 1]
      [--seeds 5] [--rates 0.02 0.05 0.1] [--decays 1e-4 1e-3 --tune-by test_accuracy]
      [--data-dir DATA] [--halve] --workdir DIR

A method is a recipe, followed by options of it and `pool_size`; `paper:` before it takes the draws,
weights and pool of the authors' code (`isjax.experiment.presets.paper`). `--halve` takes images of
half the height and width, for convolutions on a CPU.

1. Tunes learning rate and weight decay for uniform draws: one run each, with a seed that is used
   for nothing else. `--tune-by` a test metric favours uniform, since it selects on the test data.
2. Trains uniform and the methods with them, from the same initial weights, for each budget (share
   of the steps). The learning rate decays within each budget.
3. The target is uniform's mean at the largest budget. Interpolates between budgets (log loss, or
   accuracy, against log budget) where a method reaches it.
4. Iso-accuracy: does the same for uniform's test accuracy at every budget, see iso_accuracy.py.

By default 43 runs. DIR/lines.json keeps finished runs, which are not repeated; runs.jsonl has them
for iso_accuracy.py.

Prints the final metrics at each budget, then a row per metric, method and unit of cost, with a JSON
line: the share of uniform's budget, and in brackets the 95% interval of 10,000 bootstraps over
seeds. Units are steps, seconds, examples of the main model (a backward pass counts as two forward
passes) and floating point operations by XLA's count. All include scoring. "<=" marks a target
reached at the smallest budget; inf marks one never reached. The iso-accuracy is in steps: multiply
it by the cost of a step. Draws budgets.png and iso_accuracy.svg.
"""

import argparse
import itertools
import json
import pathlib

import jax
import matplotlib
import numpy as np
from common import flops_of, halve, load_config, override, settings
from iso_accuracy import METRICS, goodness, reached, report
from ml_collections import ConfigDict

from isjax import experiment
from isjax.data.source import num_examples
from isjax.experiment import components, presets
from isjax.reporting.plotting import COLOURS, GREY
from isjax.training import init_train_state, make_train_step

matplotlib.use("agg")
import matplotlib.pyplot as plt

TUNING_SEED = 1000
# The settings by which methods differ.
DRAWS = ("method", "pool_size", "gate", "weighting")
DRAWS += ("method_options", "gate_options", "weighting_options")


def config_of(config, method):
    """Returns the config with the draws of a method, such as `biased_loss,pool_size=256`."""
    name, *pairs = method.split(",")
    options = settings(pairs)
    if name.startswith("paper:"):
        base = presets.paper(name.removeprefix("paper:"))
    else:
        base = experiment.default_config()
        base.method, base.pool_size = name, config.pool_size
    one = ConfigDict(config.to_dict())
    for setting in DRAWS:
        one[setting] = base[setting]
    one.pool_size = options.pop("pool_size", one.pool_size)
    one.method_options.update(options)
    return one


def flops_per_step(config, task):
    """Returns the floating point operations of a step, too few for a recurrent main model."""
    params, model_state = task.init(jax.random.key(0))
    tx, sampler = (
        components.make_optimizer(config),
        components.make_sampler(config, task, model_state),
    )
    size = num_examples(task.dataset.train)
    state = init_train_state(jax.random.key(0), params, tx, sampler, size, model_state)
    pool_size = None if sampler.own_pool else config.pool_size
    step = make_train_step(task.loss_fn, tx, sampler, pool_size=pool_size)
    return flops_of(step, state, jax.device_put(task.dataset.train))


def interval(budgets, uniform, method, metric):
    """Returns the share and its 95% interval; curves are [seeds, budgets]."""
    rng = np.random.default_rng(0)

    def share(chosen):
        target = goodness(uniform[chosen, -1].mean(), metric)
        return reached(budgets, goodness(method[chosen].mean(axis=0), metric), target)

    seeds = len(uniform)
    shares = [share(rng.integers(0, seeds, seeds)) for _ in range(10_000)]
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return share(np.arange(seeds)), float(low), float(high)


def draw(budgets, curves, title, path):
    """Draws loss and accuracy against the share of the budget, each seed and the mean."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, metric in zip(axes, ("train_loss", "test_accuracy"), strict=True):
        for i, (name, by_metric) in enumerate(curves.items()):
            values, color = by_metric[metric], COLOURS[(i - 1) % len(COLOURS)] if i else GREY
            ax.plot(budgets, values.T, ".", color=color, alpha=0.4)
            ax.plot(budgets, values.mean(axis=0), color=color, label=name)
        ax.set(xlabel="share of the budget", ylabel=metric.replace("_", " "))
        ax.legend(frameon=False)
    axes[0].set_yscale("log")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="fashion_mnist")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE settings of the config")
    parser.add_argument("--methods", nargs="+", default=["default"], help="NAME[,OPTION=VALUE...]")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.3, 0.5, 0.7, 1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.02, 0.05, 0.1])
    parser.add_argument("--decays", nargs="+", type=float, help="by default the config's own")
    parser.add_argument("--tune-by", default="train_loss", choices=METRICS)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--halve", action="store_true", help="half the height and width of images")
    parser.add_argument("--workdir", required=True)
    return parser.parse_args()


def make_task(config, half):
    """Returns the task; with images of half the size, if so asked, and the config's label noise."""
    if not half:
        return components.make_task(config)
    clean = ConfigDict(config)
    clean.label_noise = 0.0
    return components.make_task(config, dataset=halve(components.make_task(clean).dataset))


def make_run(config, task, folder):
    """Returns `run(method, rate, decay, seed, budget)`, which keeps finished runs in a file."""
    kept = folder / "lines.json"
    lines = json.loads(kept.read_text()) if kept.exists() else {}

    def run(method, rate, decay, seed, budget):
        name = f"{method.replace(',', '-').replace(':', '-')}-{rate}-{decay}-{seed}-{budget}"
        if name not in lines:
            one = config_of(config, method)
            one.seed, one.budget = seed, budget
            one.learning_rate, one.weight_decay = rate, decay
            one.stop_on_nonfinite, one.max_skipped = False, 1.0  # a rate that diverges is a result
            lines[name] = experiment.run(one, folder / name, task=task)
            kept.write_text(json.dumps(lines))
        return lines[name]

    return run


def tune(run, config, args):
    """Returns the learning rate and weight decay that are best for uniform."""
    grid = list(itertools.product(args.rates, args.decays or [config.weight_decay]))
    if len(grid) == 1:
        return grid[0]
    tuned = {pair: run("uniform", *pair, TUNING_SEED, 1.0)[args.tune_by] for pair in grid}
    best = min if args.tune_by.endswith("loss") else max
    rate, decay = best(tuned, key=tuned.get)
    print(f"learning rate {rate}, weight decay {decay}, by uniform's {args.tune_by}: {tuned}")
    return rate, decay


def curve(lines, value):
    """Returns [seeds, budgets] values of the last evaluations."""
    return np.array([[value(line) for line in of_seed] for of_seed in lines])


def step_costs(uniform, method, flops):
    """Returns the cost of a method's step over uniform's, by unit."""
    work = {
        "seconds": lambda line: line["seconds"] / line["step"],
        "examples": lambda line: (
            (line["examples_forward"] + 2 * line["examples_backward"]) / line["step"]
        ),
    }
    costs = {"steps": 1.0}
    for name, value in work.items():
        costs[name] = float(np.median(curve(method, value) / curve(uniform, value)))
    return costs | {"flops": flops[1] / flops[0]}


def print_metric(metric, budgets, curves, costs, common):
    """Prints the values at each budget, and a row per method and unit of cost."""
    uniform = curves["uniform"]
    for i, budget in enumerate(budgets):
        texts = [f"{m} {x[:, i].mean():.5f} ± {x[:, i].std():.5f}" for m, x in curves.items()]
        print(f"{metric:14} at {budget:.0%}: " + ", ".join(texts))
    for name, of_step in costs.items():
        shares = interval(budgets, uniform, curves[name], metric)
        for unit, cost in of_step.items():
            share, low, high = (cost * value for value in shares)
            least = "<= " if shares[0] == budgets[0] else ""
            print(
                f"  {name}, {unit:9} to uniform's final: {least}{share:.3f} [{low:.3f}, {high:.3f}]"
            )
            row = {"method": name, "metric": metric, "cost": unit, "share": share}
            print(json.dumps(common | row | {"low": low, "high": high}))


def rows_of(found, budgets):
    """Returns the last evaluation of each run, as iso_accuracy.py reads them."""
    return [
        {**found[method][seed][i], "method": method, "seed": seed, "budget": budget}
        for method in found
        for seed in range(len(found[method]))
        for i, budget in enumerate(budgets)
    ]


def main():
    args = parse_args()
    folder = pathlib.Path(args.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(args.config)
    config.update(
        {"data_dir": args.data_dir, "num_evals": 1, "checkpoint_every": 0, "artifacts": False}
    )
    override(config, args.set)
    methods = list(dict.fromkeys(["uniform", *args.methods]))
    task = make_task(config, args.halve)
    run = make_run(config, task, folder)
    rate, decay = tune(run, config, args)
    budgets = sorted(args.budgets)
    found = {method: [[None] * len(budgets) for _ in range(args.seeds)] for method in methods}
    for seed in range(args.seeds):  # the methods take turns, in case the machine's speed drifts
        for i, budget in enumerate(budgets):
            for method in methods:
                found[method][seed][i] = run(method, rate, decay, seed, budget)

    flops = {method: flops_per_step(config_of(config, method), task) for method in methods}
    costs = {
        method: step_costs(found["uniform"], found[method], (flops["uniform"], flops[method]))
        for method in methods[1:]
    }
    device = jax.devices()[0].device_kind
    title = f"{config.dataset}, {config.network}, {config.num_steps} steps, {args.seeds} seeds"
    print(f"{title}, {' '.join(methods[1:])} against uniform, on {device}")
    for method, of_step in costs.items():
        texts = (f"{name} {cost:.3f}" for name, cost in of_step.items())
        print(f"cost of a step of {method}: " + ", ".join(texts))
    row = {"config": args.config, "steps": config.num_steps, "rate": rate, "decay": decay}
    row |= {"seeds": args.seeds, "device": device}
    curves = {m: {x: curve(found[m], lambda line, x=x: line[x]) for x in METRICS} for m in methods}
    for metric in METRICS:
        print_metric(metric, budgets, {m: curves[m][metric] for m in methods}, costs, row)
    draw(budgets, curves, title, folder / "budgets.png")
    print(f"figure: {folder / 'budgets.png'}")
    rows = rows_of(found, budgets)
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(rows, "test_accuracy", "uniform", budgets, title, folder / "iso_accuracy.svg")


if __name__ == "__main__":
    main()
