"""Test accuracy and loss of sampling methods with wrong labels, on Fashion-MNIST.

    python benchmarks/label_noise.py --data-dir DATA [--seeds 3] [--steps 5000]

An MLP 784-256-256-10, batch 128, momentum SGD, cosine learning rate. A share of the training labels
is wrong, every other class with equal probability (symmetric noise). DATA holds the data set as
prepared by tensorflow-datasets. By default 63 runs of 5,000 steps (7 methods, 3 shares, 3 seeds).
Runs are kept in --workdir; the same command resumes them after an interruption.

Prints a JSON line for each run, then a table of test accuracy and one of test loss. Each row is a
method: its cost in examples over uniform's, and for each share of wrong labels the mean and
standard deviation over seeds, with the mean difference to uniform of the same seed in brackets.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from common import load_config

from isjax import compare, experiment
from isjax.experiment import components

CAP = float(np.log(10))  # the loss of a uniform guess
METHODS = {
    "uniform": ("uniform", {}),
    "reshuffled": ("reshuffled", {}),
    "last_loss": ("last_loss", {}),
    "last_loss, capped": ("last_loss", {"cap": CAP}),
    "small_loss": ("small_loss", {}),
    "reducible_loss": ("reducible_loss", {}),
    "reducible_loss, sampled": ("reducible_loss", {"sampled": True}),
}


def make_config(args, name, noise, seed):
    config = load_config("fashion_mnist")
    config.network, config.network_options = "MLP", {}
    config.method, config.method_options = METHODS[name]
    config.label_noise, config.seed, config.num_steps = noise, seed, args.steps
    config.data_dir, config.num_evals, config.checkpoint_every = args.data_dir, 1, args.steps
    config.eval_examples, config.pool_size = 10_000, args.pool
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--noise", type=float, nargs="+", default=(0.0, 0.2, 0.4))
    parser.add_argument("--workdir", default="runs/label_noise", type=pathlib.Path)
    args = parser.parse_args()
    dataset, lines = None, {}
    for seed in range(args.seeds):
        for noise in args.noise:
            for name in METHODS:
                config = make_config(args, name, noise, seed)
                dataset = dataset or components.make_task(make_config(args, name, 0.0, 0)).dataset
                print(f"== {noise:.0%} noise, {name}, seed {seed}", flush=True)
                folder = f"{noise:.2f}-{name.replace(', ', '-')}-{seed}"
                line = experiment.run(config, args.workdir / folder, dataset)
                lines.setdefault((name, noise), []).append(line)
                row = {"method": name, "noise": noise, "seed": seed, **line}
                print(json.dumps(row | {"device": jax.devices()[0].device_kind}), flush=True)
    for metric in ("test_accuracy", "test_loss"):
        print(table(lines, args.noise, metric))


def table(lines, shares, metric):
    """Formats a metric as Markdown, a row per method."""
    rows = [f"| {metric.replace('_', ' ')} | cost in examples |"]
    rows[0] += "".join(f" {noise:.0%} wrong labels |" for noise in shares)
    rows.append("| --- | --: |" + " --: |" * len(shares))
    for name in METHODS:
        costs = [
            compare.cost(line, "examples") / compare.cost(plain, "examples")
            for noise in shares
            for line, plain in zip(lines[name, noise], lines["uniform", noise], strict=True)
        ]
        cells = []
        for noise in shares:
            own = np.array([line[metric] for line in lines[name, noise]])
            gain = own - [line[metric] for line in lines["uniform", noise]]
            spread = f" ± {own.std(ddof=1):.4f}" if len(own) > 1 else ""
            cells.append(f"{own.mean():.4f}{spread} ({gain.mean():+.4f})")
        rows.append(f"| {name} | {np.mean(costs):.2f} | {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    main()
