"""Train loss when each batch is chosen several steps before it is trained on.

    python benchmarks/lag.py --lags 0 2 8 32 --seeds 0 1 2 --data-dir DATA

Trains `default` on Fashion-MNIST (configs/fashion_mnist.py), with batches chosen d steps ahead by
`isjax.lagged`. By default 15 runs of 5,000 steps: 4 lags and the baseline, for 3 seeds. Prints a
JSON line for each run. Each row of the table is a lag: the final train loss over that of reshuffled
epochs of the same seed, median and range over seeds.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from common import load_config

from isjax.experiment.components import make_optimizer, make_sampler, make_task
from isjax.experiment.evaluation import make_evaluation
from isjax.samplers import lagged
from isjax.training import init_train_state, make_train_step


def final_loss(config, task, lag=None):
    """Returns the train loss at the end of a run; without a lag, of the method itself."""
    init_key, key = jax.random.split(jax.random.key(config.seed))
    params, model_state = task.init(init_key)
    tx, sampler = make_optimizer(config), make_sampler(config, task, model_state)
    sampler = sampler if lag is None else lagged(sampler, lag)
    pool_size = None if sampler.own_pool else config.pool_size
    step = make_train_step(task.loss_fn, tx, sampler, pool_size=pool_size)
    size = len(task.dataset.train["label"])
    state = init_train_state(key, params, tx, sampler, size, model_state)
    data = jax.tree.map(jnp.asarray, task.dataset.train)
    for _ in range(config.num_steps):
        state, _ = step(state, data)
    return make_evaluation(task)(state)["train_loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 2, 8, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--data-dir", default="")
    args = parser.parse_args()
    ratios = {lag: [] for lag in args.lags}
    for seed in args.seeds:
        config = load_config("fashion_mnist")
        config.update({"seed": seed, "num_steps": args.steps, "data_dir": args.data_dir})
        task = make_task(config)
        config.method = "reshuffled"
        uniform = final_loss(config, task)
        config.method = "default"
        for lag in args.lags:
            loss = final_loss(config, task, lag)
            ratios[lag].append(loss / uniform)
            row = {"seed": seed, "lag": lag, "train_loss": loss, "reshuffled": uniform}
            print(json.dumps(row), flush=True)
    print(f"{'lag':>4s}  train loss over that of reshuffled epochs: median (range)")
    for lag, values in ratios.items():
        low, high = np.min(values), np.max(values)
        print(f"{lag:4d}  {np.median(values):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
