"""Throughput of loading only the chosen examples, against loading a pool to choose from.

    python benchmarks/loading.py --data-dir DATA

`isjax.data.loading.Loader` reads CIFAR-10 from array_record. All rows take a turn of 2 s in each of
7 rounds, by default some two and a half minutes. Prints a JSON line and a table row for each: reads
per step, examples trained on per second, and the ratio to "read the pool" at the same d, median and
range over rounds.

- "choose first": `default` chooses b examples d steps ahead; only those are read;
- "read the pool": B examples are read d steps ahead, and b of them are trained on. They are chosen
  at random, so that scoring costs nothing: the least cost of a method that must see the pool;
- "read alone": b examples are read and not trained on;
- "in memory": the data set is on the device.
"""

import argparse
import contextlib
import itertools
import json

import jax
import numpy as np
from common import load_config, measure

from isjax import recipes, resampling
from isjax.data.loading import Loader
from isjax.experiment.components import make_optimizer, make_task
from isjax.samplers import lagged, pending
from isjax.training import init_train_state, make_loaded_step, make_train_step

BATCH, POOL = 128, 1024


def chosen_first(task, tx, init, lag, held):
    """Returns a step that reads the b examples chosen d steps before, and its state."""
    sampler = lagged(recipes.default(batch_size=BATCH), lag)
    state = init(sampler)
    loader = held.enter_context(Loader(task.dataset.train, pending(state.sampler)))
    step = make_loaded_step(task.loss_fn, tx, sampler)

    def run(state):
        state, metrics = step(state, next(loader))
        loader.post(metrics["chosen"])
        return state, metrics

    return run, state


def pool_first(task, tx, init, lag, held):
    """Returns a step that trains on b of the B examples read for it, and its state."""
    sampler = recipes.uniform(batch_size=BATCH)
    keys = (jax.random.key(number) for number in itertools.count())
    presample = jax.jit(lambda key: resampling.presample(key, len(task.dataset.train), POOL)[None])
    first = np.concatenate([presample(next(keys)) for _ in range(lag + 1)])
    loader = held.enter_context(Loader(task.dataset.train, jax.device_put(first)))
    step = make_train_step(task.loss_fn, tx, sampler)

    def run(state):
        state, metrics = step(state, next(loader))
        loader.post(presample(next(keys)))
        return state, metrics

    return run, init(sampler, 1)


def read_alone(task, lag, held):
    """Returns a step that reads the same b examples each time and does not train."""
    ids = np.random.default_rng(0).integers(0, len(task.dataset.train), (1, BATCH), np.int32)
    ids = jax.device_put(ids)
    first = jax.device_put(np.repeat(ids, lag + 1, axis=0))
    loader = held.enter_context(Loader(task.dataset.train, first))

    def run(state):
        loader.post(ids)
        return state, next(loader)

    return run, None


def in_memory(task, tx, init):
    """Returns a step on data in device memory, and its state."""
    sampler = recipes.default(batch_size=BATCH)
    step = make_train_step(task.loss_fn, tx, sampler)
    data = jax.device_put(task.dataset.train)
    return lambda state: step(state, data), init(sampler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 2, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--network", default="MLP", help="a name in isjax.networks")
    parser.add_argument("--data-dir", default="")
    args = parser.parse_args()
    config = load_config("cifar10")
    config.update({"data_dir": args.data_dir, "network": args.network, "augment": ()})
    config.network_options = {}
    held_task = make_task(config)
    config.in_memory = False
    task, tx = make_task(config), make_optimizer(config)
    size = len(task.dataset.train)

    def init(sampler, num_examples=size):
        params, model_state = task.init(jax.random.key(0))
        key = jax.random.key(1)
        return init_train_state(key, params, tx, sampler, num_examples, model_state)

    with contextlib.ExitStack() as held:
        steps, reads = {"in memory": in_memory(held_task, tx, init)}, {"in memory": 0}
        for lag in args.lags:
            for name, number, made in (
                (f"choose first, d = {lag}", BATCH, chosen_first(task, tx, init, lag, held)),
                (f"read the pool, d = {lag}", POOL, pool_first(task, tx, init, lag, held)),
                (f"read alone, d = {lag}", BATCH, read_alone(task, lag, held)),
            ):
                steps[name], reads[name] = made, number
        times = measure(steps, (), args.rounds, args.seconds)
    rates = {name: BATCH / seconds for name, seconds in times.items()}
    for name, rate in rates.items():
        row = {"name": name, "reads_per_step": reads[name], "examples_per_second": rate.tolist()}
        print(json.dumps(row | {"device": jax.devices()[0].device_kind}), flush=True)
    print(f"{'':24s} {'reads':>6s} {'examples/s':>11s}  over reading the pool at the same d")
    for name, rate in rates.items():
        pool = f"read the pool, {name.split(', ')[-1]}"
        line = f"{name:24s} {reads[name]:6d} {np.median(rate):11.0f}"
        if pool in rates:
            ratio = rate / rates[pool]
            line += f"  {np.median(ratio):5.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        print(line)


if __name__ == "__main__":
    main()
