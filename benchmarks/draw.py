"""Time to draw a batch and write back its scores, by the size of the data set.

    python benchmarks/draw.py [--rounds 15] [--sizes 1e4 1e5 1e6 1e7 1e8]

A step draws 128 ids in proportion to the scores, with their probabilities, and writes 128 new
scores. It is compiled as one program and its state is donated, as within a training step. Every
method takes a turn of 0.1 s in every round, so that ratios hold on a machine whose speed drifts. By
default this takes about a minute, and compilation.

Each row is a method at one size: median over rounds, with quartiles, of microseconds per step, of
the ratio to the same method at 1e5 examples, and of the ratio to `tree`. A JSON line follows.

- `tree`: `isjax.samplers.sum_tree` alone;
- `tree_sampler`, `pool` (of 1024 examples), `whole_pool`: samplers by the last-seen loss, which
  also keep past losses and weigh the draws;
- `cumsum`: a cumulative sum over all scores and a binary search;
- `flashbax`: the sum tree of that library (pip install flashbax), with its own update for the
  device; `flashbax, 2 calls` compiles draw and write apart, since within one program XLA may copy
  its tree.
"""

import argparse
import functools
import json
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import measure, quartiles

import isjax
from isjax import resampling, scorers
from isjax.samplers import sum_tree

try:
    from flashbax.buffers import prioritised_trajectory_buffer
    from flashbax.buffers import sum_tree as flashbax_tree
except ImportError:
    flashbax_tree = None

BATCH, POOL, BASE = 128, 1024, 100_000


class Method(NamedTuple):
    init: Callable  # (num_examples) -> state
    draw: Callable  # (key, state) -> (drawn, state)
    write: Callable  # (state, drawn, scores) -> state
    calls: int = 1  # draw and write compiled as one step, or as two


def random_scores(num_examples):
    return jax.random.exponential(jax.random.key(0), (num_examples,))


def draw_by_sum_tree(key, state):
    return sum_tree.sample(key, state, BATCH), state


def draw_by_cumsum(key, state):
    cdf = jnp.cumsum(state)
    points = jax.random.uniform(key, (BATCH,)) * cdf[-1]
    ids = jnp.minimum(jnp.searchsorted(cdf, points, side="right"), state.shape[0] - 1)
    return (ids, state[ids] / cdf[-1]), state


def init_flashbax(num_examples):
    state = flashbax_tree.init(num_examples)
    levels = [jnp.pad(random_scores(num_examples), (0, 2**state.tree_depth - num_examples))]
    while len(levels[0]) > 1:
        levels.insert(0, jnp.sum(levels[0].reshape(-1, 2), axis=1))
    # flashbax's own 1.0 has a weak type, which the first write changes: the step compiles twice.
    return state.replace(nodes=jnp.concatenate(levels), max_recorded_priority=jnp.float32(1))


def draw_by_flashbax(key, state):
    ids = flashbax_tree.stratified_sample(state, BATCH, key)
    return (ids, flashbax_tree.get_probability(state, ids)), state


def write_by_flashbax(state, drawn, scores):
    update = prioritised_trajectory_buffer.SET_BATCH_FN[jax.default_backend()]
    return update(state, drawn[0], scores)


def of_sampler(sampler, pool=None):
    def draw(key, state):
        pool_key, draw_key = jax.random.split(key)
        size = state.buffer.count.shape[0]
        ids = None if pool is None else resampling.presample(pool_key, size, pool)
        return sampler.sample(draw_key, state, ids)

    return Method(functools.partial(sampler.init, jax.random.key(0)), draw, sampler.update)


BY_TREE = isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH)
BY_POOL = isjax.importance_sampler(scorers.last_loss(), batch_size=BATCH)
FLASHBAX = Method(init_flashbax, draw_by_flashbax, write_by_flashbax)
METHODS = {
    "tree": Method(
        lambda num_examples: sum_tree.init(random_scores(num_examples)),
        draw_by_sum_tree,
        lambda state, drawn, scores: sum_tree.update(state, drawn[0], scores),
    ),
    "tree_sampler": of_sampler(BY_TREE),
    "pool": of_sampler(BY_POOL, POOL),
    "cumsum": Method(
        random_scores,
        draw_by_cumsum,
        lambda state, drawn, scores: state.at[drawn[0]].set(scores),
    ),
    "whole_pool": of_sampler(BY_POOL),
    "flashbax": FLASHBAX,
    "flashbax, 2 calls": FLASHBAX._replace(calls=2),
}


def prepare(method, num_examples):
    """Returns (step, state), with `state, out = step(state, scores)`; None if memory is short."""

    def draw(carry):
        key, draw_key = jax.random.split(carry[0])
        drawn, state = method.draw(draw_key, carry[1])
        return (key, state), drawn

    def write(carry, drawn, scores):
        return (carry[0], method.write(carry[1], drawn, scores))

    def both(carry, scores):
        carry, drawn = draw(carry)
        return write(carry, drawn, scores), drawn

    step = jax.jit(both, donate_argnums=0)
    make = jax.jit(lambda: (jax.random.key(1), method.init(num_examples)))
    scores = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    parts = step.lower(jax.eval_shape(make), scores), make.lower()
    if sum(map(memory_of, parts)) > free_memory():
        return None
    if method.calls == 1:
        return step, make()

    # This draw does not return the state: returning it would copy it.
    @jax.jit
    def draw_alone(carry):
        (key, _), drawn = draw(carry)
        return key, drawn

    write_alone = jax.jit(write, donate_argnums=0)

    def in_two(carry, scores):
        key, drawn = draw_alone(carry)
        return write_alone((key, carry[1]), drawn, scores), drawn

    return in_two, make()


def memory_of(lowered):
    """Returns the bytes that a program needs, with its arguments and results."""
    known = lowered.compile().memory_analysis()
    taken = known.argument_size_in_bytes + known.output_size_in_bytes + known.temp_size_in_bytes
    return taken - known.alias_size_in_bytes


def free_memory():
    """Returns the free bytes of the device; infinity where it is unknown."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    known = "SC_AVPHYS_PAGES" in os.sysconf_names
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else np.inf


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each turn")
    parser.add_argument(
        "--sizes",
        type=lambda text: int(float(text)),
        nargs="+",
        default=[10**n for n in (4, 5, 6, 7)],
    )
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"device: {device}")
    if flashbax_tree is None:
        print("flashbax left out: it is not installed (pip install flashbax)")
    steps = {}
    for size in sorted(args.sizes):
        for name, method in METHODS.items():
            if flashbax_tree is None and name.startswith("flashbax"):
                continue
            prepared = prepare(method, size)
            if prepared is None:
                print(f"{name} of {size:.0e} examples left out: it needs more memory than is free")
            else:
                steps[name, size] = prepared
    times = measure(steps, (random_scores(BATCH),), args.rounds, args.seconds)
    header = "examples  method                   us (quartiles)     over 1e5 examples"
    print(f"{header}             over tree")
    unknown = np.full(args.rounds, np.nan)
    for (name, size), values in times.items():
        row = {
            "examples": size,
            "method": name,
            "us": quartiles(values * 1e6),
            "over_1e5": quartiles(values / times.get((name, BASE), unknown)),
            "over_tree": quartiles(values / times.get(("tree", size), unknown)),
        }
        cells = ["{:9.0f} ({:.0f} to {:.0f})".format(*row["us"])]
        cells += ["{:8.2f} ({:.2f} to {:.2f})".format(*row[f"over_{b}"]) for b in ("1e5", "tree")]
        print(f"{size:<9.0e} {name:17} {' '.join(cells)}", flush=True)
        print(json.dumps(row | {"device": device}))


if __name__ == "__main__":
    main()
