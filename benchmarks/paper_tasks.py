"""Every method on the tasks of the paper, at several budgets.

    python benchmarks/paper_tasks.py fashion_mnist --data-dir DATA --seeds 3
    python benchmarks/paper_tasks.py cifar10 --data-dir DATA
    python benchmarks/paper_tasks.py tiny_shakespeare --data-dir DATA

The learning rate decays within each budget. DATA holds the data set as prepared by
tensorflow-datasets. By default 12 runs per seed, of 1,000 to 2,000 steps at the full budget; models
and steps are small enough for a CPU. `--scale 10` trains ten times as long, `--network WideResNet`
uses that network. Runs are kept in --workdir (runs/TASK); the same command resumes them after an
interruption. At the end it prints the table of `python -m isjax.report`, a row per method and
budget.
"""

import argparse
import pathlib

from common import load_config

from isjax import experiment, report
from isjax.experiment import components

METHODS = ("uniform", "last_loss", "learned_loss", "biased_loss")
BUDGETS = (1.0, 0.7, 0.5)
POOL = {"biased_loss": 256}  # the main model scores it; the others choose from 1024
SMALL = {  # evaluated on a sample, or evaluation would take longer than training
    "fashion_mnist": {"num_steps": 2000, "eval_examples": 5000},
    "cifar10": {"num_steps": 1500, "eval_examples": 5000, "network_options.channels": (16, 32)},
    "tiny_shakespeare": {
        "num_steps": 1000,
        "batch_size": 32,
        "dataset_options": {"length": 32},
        "eval_examples": 1000,
    },
}


def make_config(args, method, budget, seed):
    config = load_config(args.task)
    config.update_from_flattened_dict(SMALL[args.task])
    config.num_steps *= args.scale
    if args.network:
        config.network, config.network_options = args.network, {}
    config.data_dir = args.data_dir
    config.method, config.budget, config.seed = method, budget, seed
    config.pool_size = POOL.get(method, 1024)
    config.num_evals = 10
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=SMALL)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--workdir")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--network", default="")
    args = parser.parse_args()
    workdir = pathlib.Path(args.workdir or f"runs/{args.task}")
    dataset = None
    for seed in range(args.seeds):
        for budget in args.budgets:
            for method in args.methods:
                config = make_config(args, method, budget, seed)
                dataset = dataset or components.make_task(config).dataset
                print(f"== {method}, {budget:.0%}, seed {seed}", flush=True)
                experiment.run(config, workdir / f"{method}-{budget:.2f}-{seed}", dataset)
    report.main([str(workdir)])


if __name__ == "__main__":
    main()
