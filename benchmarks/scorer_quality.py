"""Accuracy of each scorer's predictions of losses, on random examples.

    python benchmarks/scorer_quality.py [--configs fashion_mnist mnist1d] [--steps 4000] [--seeds 1]
      [--data-dir DATA]

Each scorer draws batches from a pool of 512 while a network trains on them (Fashion-MNIST: MLP
256-256). At 30 moments after the first quarter of the run, it scores 2,000 random examples, and the
scores are compared with the true losses. By default 14 runs of 4,000 steps. benchmarks/step_cost.py
measures what each scorer costs.

Each row is a scorer, with a JSON line of all seeds:

- absolute: mean absolute error over the mean loss;
- squared: mean squared error over the variance of the losses (1 = no better than their mean);
- correlation, and ranks: Pearson's and Spearman's;
- train_loss: at the end of the run.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import load_config
from scipy import stats

import isjax
from isjax import scorers
from isjax.experiment import components
from isjax.experiment.config import num_steps
from isjax.experiment.evaluation import make_evaluation
from isjax.samplers._importance import rows_of

BATCH, POOL, SCORED, MOMENTS = 128, 512, 2000, 30


def variants(task):
    """Returns {name: scorer}."""
    classes = {"num_classes": task.dataset.num_classes, "label_fn": task.label_fn}

    def mlp(rate, **options):
        network = scorers.history_mlp(3, **classes)
        return scorers.learned(network, optax.adam(rate), history=3, **options)

    return {
        "last_loss": scorers.last_loss(),
        "lstm": scorers.learned(**classes),
        "lstm, every 4th step": scorers.learned(**classes, train_every=4),
        "mlp, rate 0.001": mlp(1e-3),
        "mlp": mlp(1e-2),
        "mlp, every 4th step": mlp(1e-2, train_every=4),
        "mlp, log losses": mlp(1e-2, log_losses=True),
    }


def measure(config, task, scorer):
    """Trains, and returns the mean measures over all moments and the final train loss."""
    sampler = isjax.importance_sampler(
        scorer,
        isjax.smooth_by_mean(0.5),
        batch_size=BATCH,
        k=0.5,
        initial_loss=task.initial_loss,
    )
    data = jax.device_put(task.dataset.train)
    size = isjax.training.num_examples(data)
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params, model_state = task.init(init_key)
    tx = components.make_optimizer(config)
    state = isjax.init_train_state(state_key, params, tx, sampler, size, model_state)
    step = isjax.make_train_step(task.loss_fn, tx, sampler, pool_size=POOL)

    @jax.jit
    def compared(state, ids):
        batch = jax.tree.map(lambda x: x[ids], data)
        scores = scorer.score(state.sampler.scorer, rows_of(state.sampler, ids, batch))
        return scores, task.score_fn(state.params, state.model_state, batch)

    steps, rng, found = num_steps(config), np.random.default_rng(config.seed), []
    moments = set(np.linspace(steps // 4, steps - 1, MOMENTS).astype(int).tolist())
    for t in range(steps):
        state, _ = step(state, data)
        if t in moments:
            ids = jnp.asarray(rng.choice(size, SCORED, replace=False), jnp.int32)
            scores, losses = (np.asarray(x, np.float64) for x in compared(state, ids))
            found.append(
                {
                    "absolute": np.abs(scores - losses).mean() / losses.mean(),
                    "squared": np.square(scores - losses).mean() / losses.var(),
                    "correlation": stats.pearsonr(scores, losses)[0],
                    "ranks": stats.spearmanr(scores, losses)[0],
                }
            )
    means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    return means | {"train_loss": float(make_evaluation(task)(state)["train_loss"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["fashion_mnist", "mnist1d"])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data-dir", default="")
    args = parser.parse_args()
    for name in args.configs:
        config = load_config(name)
        config.data_dir, config.num_steps = args.data_dir, args.steps
        if name == "fashion_mnist":
            config.network, config.network_options = "MLP", {}
        task = components.make_task(config)
        for variant, scorer in variants(task).items():
            rows = []
            for config.seed in range(args.seeds):
                rows.append(measure(config, task, scorer))
            means = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
            text = "  ".join(f"{key} {value:.4g}" for key, value in means.items())
            print(f"{name:14} {variant:22} {text}", flush=True)
            print(json.dumps({"config": name, "scorer": variant, "seeds": rows}), flush=True)


if __name__ == "__main__":
    main()
