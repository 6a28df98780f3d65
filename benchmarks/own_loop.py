"""Train loss with importance sampling in a hand-written loop, on Fashion-MNIST.

    python benchmarks/own_loop.py [--seeds 3] [--steps 6000] [--pixels unit] [--data DIR]

Compares sampling by the last-seen loss with reshuffled uniform epochs. An MLP 784-256-256-10 on
pixels that are standardised, or `unit`, between 0 and 1. Batch 128, SGD with momentum 0.9, learning
rate from 0.05 to zero along a cosine. By default 6 runs of 6,000 steps. DIR holds the four files of
Fashion-MNIST (IDX, gzip); by default the folder of Debian's package dataset-fashion-mnist.

Prints a JSON line for each run, with the final loss over the whole training set and that over the
test set; then the ratios of train losses, sampled over epochs, one per seed.
"""

import argparse
import functools
import gzip
import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import isjax
from isjax.networks import MLP

BATCH, POOL = 128, 1024
network = MLP(10, hidden=(256, 256))
sampler = isjax.importance_sampler(
    isjax.scorers.last_loss(),
    isjax.smooth_by_mean(0.5),
    batch_size=BATCH,
    k=0.5,
    initial_loss=math.log(10),
)


def loss_fn(params, batch):
    logits = network.apply(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


value_and_grad = isjax.weighted_value_and_grad(loss_fn)
evaluate = jax.jit(lambda params, data: jnp.mean(loss_fn(params, data)))


def load(folder, standardise):
    def read(name, offset):
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, -1, offset)

    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        x = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 784) / np.float32(255)
        label = read(f"{prefix}-labels-idx1-ubyte.gz", 8).astype(np.int32)
        if standardise:
            x = (x - np.float32(0.2860)) / np.float32(0.3530)
        parts[part] = {"x": x, "label": label}
    return jax.device_put(parts["train"]), jax.device_put(parts["test"])


def train_epochs(seed, steps, train):
    """Trains on reshuffled epochs."""
    params, tx, opt_state = start(seed, steps, train)
    num_examples = train["label"].shape[0]
    ones = jnp.ones(BATCH)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, ids, train):
        batch = jax.tree.map(lambda x: x[ids], train)
        _, grads = value_and_grad(params, batch, ones)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    rng = np.random.default_rng(seed)
    per_epoch = num_examples // BATCH
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(num_examples)
        first = step % per_epoch * BATCH
        params, opt_state = train_step(params, opt_state, order[first : first + BATCH], train)
    return params


def train_sampled(seed, steps, train):
    """Trains with importance sampling, by the loop of the README."""
    params, tx, opt_state = start(seed, steps, train)
    num_examples = train["label"].shape[0]
    is_state = sampler.init(jax.random.key(seed), num_examples)

    @functools.partial(jax.jit, donate_argnums=(1, 2, 3))
    def train_step(key, params, opt_state, is_state, train):
        pool_key, draw_key = jax.random.split(key)
        ids = isjax.presample(pool_key, num_examples, POOL)
        draw, is_state = sampler.sample(draw_key, is_state, ids)
        batch = jax.tree.map(lambda x: x[draw.ids], train)
        (_, losses), grads = value_and_grad(params, batch, draw.weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        is_state = sampler.update(is_state, draw, losses)
        loss = isjax.diagnostics.mean_loss(draw, losses)  # unbiased for every k
        return params, opt_state, is_state, loss, draw.ess

    key = jax.random.key(seed)
    for step in range(steps):
        step_key = jax.random.fold_in(key, step)
        params, opt_state, is_state, *_ = train_step(step_key, params, opt_state, is_state, train)
    return params


def start(seed, steps, train):
    params = network.init(jax.random.key(seed), train["x"][:1])
    tx = optax.sgd(optax.cosine_decay_schedule(0.05, steps), momentum=0.9)
    return params, tx, tx.init(params)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--pixels", choices=("standardised", "unit"), default="standardised")
    parser.add_argument(
        "--data", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist")
    )
    args = parser.parse_args()
    if not (args.data / "train-images-idx3-ubyte.gz").exists():
        sys.exit(
            f"{args.data} does not hold Fashion-MNIST; install Debian's package "
            "dataset-fashion-mnist, or name the folder of its four files with --data"
        )
    train, test = load(args.data, args.pixels == "standardised")
    ratios = []
    for seed in range(args.seeds):
        losses = {}
        for name, run in (("reshuffled", train_epochs), ("last_loss", train_sampled)):
            params = run(seed, args.steps, train)
            losses[name] = float(evaluate(params, train))
            row = {"seed": seed, "sampling": name, "train_loss": losses[name]}
            print(json.dumps(row | {"test_loss": float(evaluate(params, test))}), flush=True)
        ratios.append(losses["last_loss"] / losses["reshuffled"])
    device = jax.devices()[0].device_kind
    print(
        json.dumps(
            {
                "steps": args.steps,
                "pixels": args.pixels,
                "train_loss_ratios": ratios,
                "device": device,
            }
        )
    )


if __name__ == "__main__":
    main()
