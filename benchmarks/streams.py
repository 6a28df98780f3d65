"""Cost and gain of choosing from a stream of pools, by how the pool is scored.

    python benchmarks/streams.py --data-dir DATA [--dataset fashion_mnist] [--steps 600]

Each pool of B = 8 b examples, b = 32, arrives once: it is a stretch of the data set, which is
reshuffled for each pass. Images are padded to 32 x 32. A small CNN for images of any size, momentum
SGD, learning rate decaying within each run, k = 0.5. By default 33 runs of at most 600 steps (6
methods, 3 seeds, two budgets). DATA holds the data set as prepared by tensorflow-datasets.

The pool is scored by the main model (`loss`), by the same at half resolution or in bfloat16, or by
a proxy (`recipes.proxy_loss`). `half resolution, trained at both` also trains the model on its
batch at half resolution, with a tenth of the weight.

First measures the time of a step over that of uniform draws: median and range over `--rounds`, in
which the methods take turns. Then trains each method for as many steps as uniform, and again for as
long as uniform by the median time. Prints a JSON line for each run, then tables with a row per
method:

- cost of a step over uniform's, in time and in forward passes (a backward pass counts as two);
- Spearman correlation of the scores with the model's losses, on 2,000 random examples, at each
  quarter of the run;
- train loss, test loss and test accuracy, mean and standard deviation over seeds.

On a CPU, XLA may keep bfloat16 values in float32. To see how rounding changes the scores, use
XLA_FLAGS=--xla_allow_excess_precision=false with `--methods bfloat16`.
"""

import argparse
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import load_config, measure
from scipy import stats

import isjax
from isjax import scorers
from isjax.base import Rows, Scorer
from isjax.experiment.components import make_optimizer, make_task
from isjax.experiment.evaluation import make_evaluation
from isjax.scorers import views
from isjax.tasks import Task
from isjax.training import init_train_state, make_train_step

BATCH, POOL, SCORED, SIDE = 32, 256, 2000, 32
HALF_WEIGHT = 0.1  # of the losses at half resolution, when training at both
QUARTERS = (0.25, 0.5, 0.75, 1.0)
MEASURED = ("train_loss", "test_loss", "test_accuracy")


def padded(part):
    """Pads images with zeros to SIDE x SIDE."""
    margins = [(SIDE - size) // 2 for size in part["x"].shape[1:3]]
    return part | {"x": np.pad(part["x"], [(0, 0), *((m, m) for m in margins), (0, 0)])}


def task_of(config):
    dataset = make_task(config).dataset
    dataset = dataset._replace(train=padded(dataset.train), test=padded(dataset.test))
    return make_task(config, dataset)


class Method(NamedTuple):
    """A scorer of the pool, the task to train on, and the forward passes of a step."""

    scorer: Scorer
    task: Task
    passes: float


def methods_of(task):
    """Returns {name: Method}."""

    def loss_fn(params, batch):
        return task.score_fn(params, None, batch)

    def viewed(name):
        return scorers.loss(getattr(views, name)(loss_fn), views.PASSES[name])

    def at_both(params, model_state, batch, key):
        losses, model_state = task.loss_fn(params, model_state, batch, key)
        return losses + HALF_WEIGHT * views.half_resolution(loss_fn)(params, batch), model_state

    features = scorers.coarse_features(task.dataset.num_classes)
    example = jax.tree.map(lambda x: x[:1], task.dataset.train)
    network = scorers.features_mlp(features, jax.eval_shape(features, example).shape[1])
    made = {
        "uniform": scorers.uniform(),
        "loss": scorers.loss(loss_fn),
        "half resolution": viewed("half_resolution"),
        "half resolution, trained at both": viewed("half_resolution"),
        "bfloat16": viewed("in_bfloat16"),
        "proxy": scorers.learned(network, history=0),
    }
    methods = {
        name: Method(scorer, task, 3 * BATCH + scorer.passes * POOL)
        for name, scorer in made.items()
    }
    both = methods["half resolution, trained at both"]
    methods["half resolution, trained at both"] = both._replace(
        task=task._replace(loss_fn=at_both),
        passes=both.passes + 3 * BATCH * views.PASSES["half_resolution"],
    )
    return methods


def pools(data, seed):
    """Generates the stream of pools."""
    rng, size = np.random.default_rng(seed), len(data["label"])
    while True:  # passes over the data
        order = rng.permutation(size)
        for start in range(0, size - POOL + 1, POOL):
            ids = np.sort(order[start : start + POOL])
            yield {name: value[ids] for name, value in data.items()}


def begin(config, method):
    """Returns the step of runs of `config.num_steps`, and `start(seed) -> state`."""
    scorer, task, _ = method
    smoothed = isjax.smooth_by_mean(0.5)
    sampler = isjax.importance_sampler(scorer, smoothed, batch_size=BATCH, k=0.5)
    tx = make_optimizer(config)

    def start(seed):
        init_key, key = jax.random.split(jax.random.key(seed))
        return init_train_state(key, task.init(init_key)[0], tx, sampler, num_examples=1)

    return make_train_step(task.loss_fn, tx, sampler), start


def rank_correlation(method, state, seed):
    """Returns Spearman's correlation of scores and losses, on random examples."""
    scorer, task, _ = method
    ids = np.random.default_rng(seed).choice(len(task.dataset.train["label"]), SCORED, False)
    batch = jax.tree.map(lambda x: jnp.asarray(x[ids]), task.dataset.train)
    count = jnp.zeros(SCORED, jnp.int32)
    rows = Rows(jnp.zeros((SCORED, 0)), count, batch, state.params, count, count)
    scores = jax.jit(scorer.score)(state.sampler.scorer, rows)
    losses = jax.jit(task.score_fn)(state.params, None, batch)
    return float(stats.spearmanr(scores, losses).statistic)


def run(method, step, state, num_steps, seed, evaluate, correlate):
    """Trains on the stream, and returns the final metrics and, if asked, the correlations."""
    moments = {round(share * num_steps) for share in QUARTERS} if correlate else {}
    stream, ranks = pools(method.task.dataset.train, seed), []
    for number in range(1, num_steps + 1):
        state, _ = step(state, next(stream))
        if number in moments:
            ranks.append(round(rank_correlation(method, state, number), 4))
    found = evaluate(state)
    return {name: found[name] for name in MEASURED} | ({"ranks": ranks} if correlate else {})


def spread(values, digits):
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=len(values) > 1):.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mnist", help="a config of 32 x 32 or less")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument(
        "--methods", nargs="+", default=[], help="methods beside uniform; default: all"
    )
    args = parser.parse_args()
    config = load_config(args.dataset)
    config.network_options = {"channels": (16, 32, 64), "kernel": 3, "hidden": 128, "pooled": True}
    config.update({"data_dir": args.data_dir, "augment": (), "learning_rate": args.learning_rate})
    config.num_steps = args.steps
    task = task_of(config)
    evaluate = make_evaluation(task, max_examples=10_000)
    methods = methods_of(task)
    chosen = {"uniform", *(args.methods or methods)}
    methods = {name: method for name, method in methods.items() if name in chosen}

    device = jax.devices()[0].device_kind
    print(f"{args.dataset}, b = {BATCH}, B = {POOL}, {args.steps} steps, on {device}")
    ratios = measure_costs(config, task, methods, args.rounds)
    rows = {}
    for name, method in methods.items():
        for equal in ("steps", "time"):
            if name == "uniform" and equal == "time":
                rows[name, equal] = rows[name, "steps"]
                continue
            cost = 1.0 if equal == "steps" else np.median(ratios[name])
            config.num_steps = num_steps = round(args.steps / cost)
            (step, start), rows[name, equal] = begin(config, method), []
            correlate = equal == "steps" and name != "uniform"
            for seed in range(args.seeds):
                found = run(method, step, start(seed), num_steps, seed, evaluate, correlate)
                rows[name, equal].append(found)
                row = {"method": name, "equal": equal, "seed": seed, "steps": num_steps}
                print(json.dumps(row | found), flush=True)
    print_tables(methods, ratios, rows)


def measure_costs(config, task, methods, rounds):
    """Measures the time of each method's step over that of uniform's, [rounds]."""
    pool = jax.tree.map(jnp.asarray, next(pools(task.dataset.train, 0)))
    steps = {}
    for name, method in methods.items():
        step, start = begin(config, method)
        steps[name] = step, start(0)
    times = measure(steps, (pool,), rounds, 0.3)
    ratios = {name: values / times["uniform"] for name, values in times.items()}
    for name, values in ratios.items():
        row = {"method": name, "ms": float(np.median(times[name]) * 1e3)}
        print(json.dumps(row | {"over_uniform": values.tolist()}), flush=True)
    return ratios


def print_tables(methods, ratios, rows):
    """Prints the table of costs and one of each metric, with a row per method."""

    def over_seeds(name, equal, measured):
        return [found[measured] for found in rows[name, equal]]

    print("\n| scored by | step over uniform's: median (range) | in examples | rank correlation |")
    print("| --- | --: | --: | --: |")
    for name, method in methods.items():
        low, middle, high = np.percentile(ratios[name], [0, 50, 100])
        cost = f"{middle:.2f} ({low:.2f} to {high:.2f}) | {method.passes / (3 * BATCH):.2f}"
        ranks = [] if name == "uniform" else np.mean(over_seeds(name, "steps", "ranks"), axis=0)
        print(f"| {name} | {cost} | {', '.join(f'{rank:.2f}' for rank in ranks)} |")
    for measured in MEASURED:
        print(f"\n| {measured.replace('_', ' ')} | equal steps | equal time |")
        print("| --- | --: | --: |")
        for name in methods:
            cells = (spread(over_seeds(name, equal, measured), 4) for equal in ("steps", "time"))
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
