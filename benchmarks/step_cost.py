"""Time of a training step by method, over a plain step on uniform ids.

    python benchmarks/step_cost.py [--rounds 15] [--networks mlp cnn_2d] [--methods plain uniform]
      [--bfloat16]

Batch 128, pool 1024, momentum SGD, random data. Every method takes a turn of 0.3 s in every round,
so that ratios hold on a machine whose speed drifts. By default this takes about 90 s, and
compilation. `wrn`, `lstm` and `transformer` take seconds per step on a CPU.

Each row is a network and a method: milliseconds per step; the ratio to `plain` and to `uniform`,
median over rounds with quartiles; and `floor`, the same ratio in floating point operations by XLA's
count. A JSON line follows. `wrn` and `transformer` have no floor since they compile slowly; `lstm`
has none since XLA counts the body of a loop only once.

- `plain`: a hand-written step that draws 128 ids and does not use isjax;
- `uniform`: the recipe, with the diagnostics and guards of `make_train_step`;
- `learned_loss`: the recipe, whose LSTM trains in every step;
- `mlp`, `tree_mlp`, `tree_lstm`: scorers (`history_mlp` or an LSTM) that train in one step of four;
  `floor` counts them as if they trained in every step;
- `tree_...`: `tree_sampler`, which draws from all examples; the others draw from a pool.
"""

import argparse
import functools
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import flops_of, measure, quartiles

import isjax
from isjax import importance_sampler, networks, recipes, scorers, smooth_by_mean
from isjax._numerics import precision
from isjax.samplers import tree_sampler

NUM_EXAMPLES, BATCH, CLASSES, VOCABULARY, TRAIN_EVERY = 10_000, 128, 10, 10_000, 4
NETWORKS = {  # name: (network, shape of an example)
    "mlp": (networks.MLP(CLASSES, hidden=(512, 512)), (784,)),
    "cnn_1d": (networks.CNN(CLASSES), (40, 1)),
    "cnn_2d": (networks.CNN(CLASSES), (28, 28, 1)),
    "cifar_cnn": (networks.CNN(CLASSES, (16, 32, 64), kernel=3), (32, 32, 3)),
    "wrn": (networks.WideResNet(CLASSES), (32, 32, 3)),
    "lstm": (networks.LSTM(VOCABULARY), (20,)),
    "transformer": (networks.Transformer(VOCABULARY), (128,)),
}
OF_TOKENS = (networks.LSTM, networks.Transformer)
WITHOUT_FLOOR = ("wrn", "lstm", "transformer")
TX = optax.sgd(0.01, momentum=0.9)


class Task(NamedTuple):
    init: Callable  # (key) -> params
    loss_fn: Callable
    logits_fn: Callable
    classes: int | None
    data: dict


def lstm(task):
    return scorers.learned(num_classes=task.classes, train_every=TRAIN_EVERY)


def mlp(task):
    network = scorers.history_mlp(3, task.classes)
    return scorers.learned(network, optax.adam(1e-2), history=3, train_every=TRAIN_EVERY)


def pooled(scorer):
    return importance_sampler(scorer, smooth_by_mean(0.5), batch_size=BATCH, k=0.5)


def from_all(scorer):
    return tree_sampler(scorer, batch_size=BATCH, k=0.5)


METHODS = {  # task -> sampler
    "uniform": lambda task: recipes.uniform(batch_size=BATCH),
    "last_loss": lambda task: recipes.last_loss(batch_size=BATCH),
    "learned_loss": lambda task: recipes.learned_loss(batch_size=BATCH, num_classes=task.classes),
    "mlp": lambda task: pooled(mlp(task)),
    "tree_last_loss": lambda task: from_all(scorers.last_loss()),
    "tree_lstm": lambda task: from_all(lstm(task)),
    "tree_mlp": lambda task: from_all(mlp(task)),
    "biased_loss": lambda task: recipes.biased_loss(batch_size=BATCH, loss_fn=task.loss_fn),
    "grad_norm_bound": lambda task: pooled(scorers.grad_norm_bound(task.logits_fn)),
}
NEED_CLASSES = ("grad_norm_bound",)


def make_task(network, shape, bfloat16=False):
    """Makes a task of random data for a network of NETWORKS."""
    x_key, label_key = jax.random.split(jax.random.key(0))
    model = precision.bfloat16(network) if bfloat16 else precision.float32(network)
    if isinstance(network, OF_TOKENS):
        classes, size = None, (NUM_EXAMPLES, *shape)
        data = {
            "x": jax.random.randint(x_key, size, 0, VOCABULARY),
            "label": jax.random.randint(label_key, size, 0, VOCABULARY),
        }
    else:
        classes = CLASSES
        data = {
            "x": jax.random.normal(x_key, (NUM_EXAMPLES, *shape)),
            "label": jax.random.randint(label_key, (NUM_EXAMPLES,), 0, CLASSES),
        }

    def logits_fn(params, batch):
        return model.apply(params, batch["x"])

    def loss_fn(params, batch):
        logits = logits_fn(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.mean(losses.reshape(len(losses), -1), axis=1)  # the mean over tokens, if any

    return Task(lambda key: model.init(key, data["x"][:1]), loss_fn, logits_fn, classes, data)


def make_step(task, sampler, pool):
    """Returns (step, state), with `state, _ = step(state, task.data)`."""

    def loss_fn(params, model_state, batch, key):
        return task.loss_fn(params, batch), model_state

    params = task.init(jax.random.key(2))
    state = isjax.init_train_state(jax.random.key(1), params, TX, sampler, NUM_EXAMPLES)
    pool_size = None if sampler.own_pool else pool
    return isjax.make_train_step(loss_fn, TX, sampler, pool_size=pool_size), state


def make_plain_step(task):
    """Returns (step, state) of a hand-written step on uniform ids."""

    @functools.partial(jax.jit, donate_argnums=0)
    def plain(state, data):
        key, step, params, opt_state = state
        ids = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, NUM_EXAMPLES)
        batch = jax.tree.map(lambda x: x[ids], data)
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(task.loss_fn(p, batch)))(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return (key, step + 1, optax.apply_updates(params, updates), opt_state), loss

    params = task.init(jax.random.key(2))
    return plain, (jax.random.key(1), jnp.zeros((), jnp.int32), params, TX.init(params))


def steps_of(task, methods, pool):
    """Returns {name: (step, state)} of the methods that fit the task."""
    return {
        name: make_plain_step(task)
        if name == "plain"
        else make_step(task, METHODS[name](task), pool)
        for name in methods
        if task.classes is not None or name not in NEED_CLASSES
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn_2d"], choices=NETWORKS)
    methods = ["plain", *METHODS]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--bfloat16", action="store_true", help="the main model computes in it")
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"device: {device}")
    ratio = "(quartiles)     floor"
    print(f"network   method             ms/step   over plain {ratio} over uniform {ratio}")
    for network in args.networks:
        task, flops = make_task(*NETWORKS[network], args.bfloat16), {}
        if network not in WITHOUT_FLOOR:
            for name, (step, state) in steps_of(task, args.methods, args.pool).items():
                flops[name] = flops_of(step, state, task.data)
        steps = steps_of(task, args.methods, args.pool)
        times = measure(steps, (task.data,), args.rounds, args.seconds, TRAIN_EVERY)
        unknown = np.full(args.rounds, np.nan)
        for name, values in times.items():
            row = {"network": network, "method": name, "ms": float(np.median(values)) * 1e3}
            for base in ("plain", "uniform"):
                row[base] = quartiles(values / times.get(base, unknown))
                row[f"{base}_floor"] = flops.get(name, np.nan) / flops.get(base, np.nan)
            ratios = [
                "{:8.2f} ({:.2f} to {:.2f}) {:6.2f}".format(*row[base], row[f"{base}_floor"])
                for base in ("plain", "uniform")
            ]
            print(f"{network:9} {name:16} {row['ms']:9.2f} {' '.join(ratios)}", flush=True)
            print(
                json.dumps(row | {"pool": args.pool, "bfloat16": args.bfloat16, "device": device})
            )


if __name__ == "__main__":
    main()
