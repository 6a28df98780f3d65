"""Final loss and accuracy of the default recipe with one part changed at a time.

    python benchmarks/ablation.py [--configs mnist1d fashion_mnist] [--seeds 3] [--data-dir DATA]
      [--only tree uniform ...] [--steps N] [--set weight_decay=1e-3 ...]

All variants train for equal steps, with the same data, network, initial weights and learning rate.
benchmarks/step_cost.py measures what their steps cost. Fashion-MNIST is trained with an MLP
256-256. By default there are 34 variants, for 3 seeds and 2 data sets: 204 runs of 3,000 or 5,000
steps. Use `--only` for some of them.

Each row is a variant: train loss and test accuracy at the end, mean and standard deviation over
seeds. A JSON line follows with the numbers of each seed. `uniform from 50%` is the default, and
`smoothing 0.25` is the same to the end of the run. `tree` has k = 0.5 and smoothing 0.5. The
variants from `mean error` on have smoothing 0.25 and change the score: the error 1 - p(true class)
or the loss, as last seen or averaged over all visits.
"""

import argparse
import json
import math

import jax
import numpy as np
import optax
from common import load_config, override

import isjax
from isjax import recipes, resampling, scorers, transforms
from isjax.experiment import components
from isjax.experiment.config import num_steps
from isjax.experiment.evaluation import make_evaluation

STEPS = {"mnist1d": 3000, "fashion_mnist": 5000, "cifar10": 3000}
BATCH = 128


def error_last_seen():
    """Scores by 1 - p(true class), from the last-seen loss."""
    last = scorers.last_loss()
    return last._replace(score=lambda state, rows: -jax.numpy.expm1(-last.score(state, rows)))


def mean_loss():
    """Scores by the mean loss over all visits."""

    def remember(history, count, losses):
        return history + (losses[:, None] - history) / (count[:, None] + 1)

    return scorers.last_loss()._replace(remember=remember)


def variants(config, task):
    """Returns {name: (sampler, pool size or None)}."""
    steps, classes = num_steps(config), task.dataset.num_classes
    common = {"batch_size": BATCH, "initial_loss": task.initial_loss}
    last = scorers.last_loss()

    def tree(scorer=last, **options):
        return isjax.tree_sampler(scorer, **{"k": 0.5, **common, **options}), None

    def pool(size, scorer=last, transform=None, **options):
        transform = transform or transforms.smooth_by_mean(0.5)
        return isjax.importance_sampler(scorer, transform, **{"k": 0.5, **common, **options}), size

    def mlp(**options):
        network = scorers.history_mlp(3, classes, task.label_fn)
        return scorers.learned(network, optax.adam(1e-2), history=3, train_every=4, **options)

    def powered(a):
        return transforms.chain(transforms.power(a), transforms.smooth_by_mean(0.5))

    return {
        "uniform": (recipes.uniform(batch_size=BATCH), None),
        "reshuffled": (recipes.reshuffled(batch_size=BATCH), None),
        "tree": tree(),
        "pool 512": pool(512),
        "pool 4096": pool(4096),
        "pool 512, categorical": pool(512, resample=resampling.categorical),
        "k = 1": tree(k=1.0),
        "k = 0": tree(k=0.0),
        "k = -1": tree(k=-1.0),
        "k from 1 to 0": tree(k=optax.linear_schedule(1.0, 0.0, steps)),
        "k from 0 to 1": tree(k=optax.linear_schedule(0.0, 1.0, steps)),
        "smoothing 0.1": tree(smoothing=0.1),
        "smoothing 0.25": tree(smoothing=0.25),
        "smoothing 1": tree(smoothing=1.0),
        "smoothing 2": tree(smoothing=2.0),
        "root of the loss": pool(4096, transform=powered(0.5)),
        "loss^1.5": pool(4096, transform=powered(1.5)),
        "1 - p": tree(scorers.difficulty()),
        "loss_change": tree(scorers.loss_change()),
        "mlp": tree(mlp()),
        "mlp, log": tree(mlp(log_losses=True)),
        "mlp, refresh 512": tree(mlp(), refresh=512),
        "mlp, pool 4096": pool(4096, mlp()),
        "lstm, tree": tree(
            scorers.learned(num_classes=classes, label_fn=task.label_fn, train_every=4)
        ),
        "uniform at first 10%": tree(
            smoothing=lambda step: jax.numpy.where(step < 0.1 * steps, math.inf, 0.5)
        ),
        "uniform at last 10%": tree(
            smoothing=lambda step: jax.numpy.where(step > 0.9 * steps, math.inf, 0.5)
        ),
        "uniform from 50%": (recipes.default(num_steps=steps, until=0.5, **common), None),
        "rescaled, pool 4096": pool(4096, rescale=isjax.weights.preserve_mean_score),
        "mean error": (recipes.mean_error(**common), None),
        "mean error, k = 1": (recipes.mean_error(k=1.0, **common), None),
        "error last seen": tree(error_last_seen(), smoothing=0.25),
        "error last seen, k = 1": tree(error_last_seen(), smoothing=0.25, k=1.0),
        "mean loss": tree(mean_loss(), smoothing=0.25),
        "uncertainty": tree(scorers.uncertainty(), smoothing=0.25),
    }


def train(config, task, sampler, pool_size):
    """Trains, and returns the evaluation at the end."""
    size = isjax.training.num_examples(task.dataset.train)
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params, model_state = task.init(init_key)
    tx = components.make_optimizer(config)
    state = isjax.init_train_state(state_key, params, tx, sampler, size, model_state)
    step = isjax.make_train_step(task.loss_fn, tx, sampler, pool_size=pool_size)
    data = jax.device_put(task.dataset.train)
    for _ in range(num_steps(config)):
        state, _ = step(state, data)
    return make_evaluation(task, 1000, 0)(state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["mnist1d", "fashion_mnist"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--only", nargs="+", help="variants")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE settings of the configs")
    args = parser.parse_args()
    for name in args.configs:
        config = load_config(name)
        config.data_dir = args.data_dir
        config.num_steps = args.steps or STEPS[name]
        if name == "fashion_mnist":
            config.network, config.network_options = "MLP", {}
        override(config, args.set)
        task = components.make_task(config)
        for variant, (sampler, pool_size) in variants(config, task).items():
            if args.only and variant not in args.only:
                continue
            lines = []
            for config.seed in range(args.seeds):
                line = train(config, task, sampler, pool_size)
                lines.append({metric: float(value) for metric, value in line.items()})
            row = {"config": name, "variant": variant, "steps": config.num_steps}
            for metric in lines[0]:
                row[metric] = [line[metric] for line in lines]
            loss, accuracy = np.array(row["train_loss"]), np.array(row["test_accuracy"])
            print(
                f"{name:14} {variant:24} {loss.mean():9.5f} ± {loss.std():.5f}  "
                f"{accuracy.mean():.4f} ± {accuracy.std():.4f}",
                flush=True,
            )
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
