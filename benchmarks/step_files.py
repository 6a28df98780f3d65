"""Counts the files of isjax that a reader passes through to follow one training step.

    python benchmarks/step_files.py

Traces a step of `make_train_step` (a linear model, 64 examples, a pool of 32) for `learned_loss`,
`last_loss` and `default`. Takes some fifteen seconds on a CPU; the step itself is never run.

A row per method:

- files: files of isjax of which at least one function is called during the trace;
- changes: how often a call of a function of isjax is in another file than the call before it. Calls
  of other packages are ignored, returns are not counted.

`--list` also prints the files, in the order of their first call.
"""

import argparse
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

import isjax
from isjax import recipes

NUM_EXAMPLES, BATCH, POOL, CLASSES = 64, 8, 32, 10
OPTIONS = {"learned_loss": {"num_classes": CLASSES}, "last_loss": {}, "default": {}}
ROOT = f"{pathlib.Path(isjax.__file__).parent}/"


def make_step(method):
    """Returns (step, state, data) of a method on a linear model, which is no part of isjax."""
    tx, params = optax.sgd(0.1), jnp.zeros((8, CLASSES))
    data = {
        "x": jnp.ones((NUM_EXAMPLES, 8)),
        "label": jnp.zeros((NUM_EXAMPLES,), jnp.int32),
    }

    def loss_fn(params, model_state, batch, key):
        logits = batch["x"] @ params
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses, model_state

    sampler = getattr(recipes, method)(batch_size=BATCH, **OPTIONS[method])
    state = isjax.init_train_state(jax.random.key(1), params, tx, sampler, NUM_EXAMPLES)
    pool_size = None if sampler.own_pool else POOL
    return isjax.make_train_step(loss_fn, tx, sampler, pool_size=pool_size), state, data


def files_called(step, state, data):
    """Traces a step; returns the file of each call of a function of isjax, in order."""
    files = []

    def on_event(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            files.append(frame.f_code.co_filename.removeprefix(ROOT))

    jax.clear_caches()  # what an earlier step has traced is called again
    sys.setprofile(on_event)
    try:
        step.lower(state, data)
    finally:
        sys.setprofile(None)
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the files, too")
    args = parser.parse_args()
    print("method        files  changes")
    for method in OPTIONS:
        files = files_called(*make_step(method))
        changes = sum(a != b for a, b in itertools.pairwise(files))
        print(f"{method:13} {len(set(files)):5}  {changes:7}")
        if args.list:
            print("\n".join(f"    {name}" for name in dict.fromkeys(files)))


if __name__ == "__main__":
    main()
