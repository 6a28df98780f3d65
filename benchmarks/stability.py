"""Learning rates at which sampling by loss still trains, on 1,500 examples of Fashion-MNIST.

    python benchmarks/stability.py --data-dir DATA [--rates R ...] [--seeds 3] [--steps 700]

A CNN, batch 32, SGD with momentum 0.9 at a constant learning rate. DATA holds the data set as
prepared by tensorflow-datasets. By default 72 runs of 700 steps (8 variants, 3 rates, 3 seeds).
Runs are kept in --workdir; the same command resumes them after an interruption.

Each row is a variant, each cell the final train losses of the seeds. 2.30 is the loss of a uniform
guess, which remains when all units have died; NaN means that every further step was skipped.
"""

import argparse
import pathlib

from common import load_config

from isjax import experiment
from isjax.experiment import components

VARIANTS = {
    "uniform": {},
    "uniform, clip_norm=1": {"clip_norm": 1.0},
    "last_loss": {"method": "last_loss"},
    "default": {"method": "default"},
    "default, k=0": {"method": "default", "method_options": {"k": 0.0}},
    "default, k=1": {"method": "default", "method_options": {"k": 1.0}},
    "default, smoothing=1": {"method": "default", "method_options": {"smoothing": 1.0}},
    "default, clip_norm=1": {"method": "default", "clip_norm": 1.0},
}


def make_config(args, name, rate, seed):
    config = load_config("fashion_mnist")
    config.dataset_options = {"train": "train[:1500]"}
    config.network_options, config.weight_decay = {}, 0.0
    config.batch_size, config.learning_rate, config.schedule = 32, rate, "constant"
    config.num_steps = config.checkpoint_every = args.steps
    config.data_dir, config.seed, config.num_evals = args.data_dir, seed, 1
    config.eval_examples, config.artifacts = 1500, False
    config.stop_on_nonfinite, config.max_skipped = False, 1.0
    config.update(VARIANTS[name])
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--rates", type=float, nargs="+", default=(0.02, 0.05, 0.07))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--workdir", default="runs/stability", type=pathlib.Path)
    args = parser.parse_args()
    dataset = components.make_task(make_config(args, "uniform", 0.1, 0)).dataset
    lines = [f"| train loss at rate | {' | '.join(map(str, args.rates))} |"]
    lines.append("| --- |" + " --: |" * len(args.rates))
    for name in VARIANTS:
        cells = []
        for rate in args.rates:
            losses = []
            for seed in range(args.seeds):
                folder = args.workdir / f"{name.replace(', ', '-')}-{rate}-{seed}"
                last = experiment.run(make_config(args, name, rate, seed), folder, dataset)
                losses.append(f"{last['train_loss']:.3f}")
            cells.append(", ".join(losses))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
