"""The README's own loop runs as printed."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import assert_mean

import isjax

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


NUM_EXAMPLES = 2000
X = jax.random.normal(jax.random.key(0), (NUM_EXAMPLES, 4))
TRAIN = {"x": X, "label": (X[:, 0] > 0).astype(jnp.int32)}


def loss_fn(params, batch):
    logits = batch["x"] @ params
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def run(tx, params, steps):
    """Runs the README's code; returns the params, losses and effective sample sizes."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {"functools": functools, "isjax": isjax, "jax": jax, "optax": optax, "tx": tx}
    names |= {"loss_fn": loss_fn, "num_examples": NUM_EXAMPLES}
    exec(code, names)
    opt_state, is_state, reported = tx.init(params), names["is_state"], []
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(1), step)
        params, opt_state, is_state, *numbers = names["train_step"](
            key, params, opt_state, is_state, TRAIN
        )
        reported.append(numbers)
    return params, *np.array(reported).T


def test_the_loop_of_the_readme_trains():
    before = float(jnp.mean(loss_fn(jnp.zeros((4, 2)), TRAIN)))
    params, losses, _ = run(optax.sgd(0.5), jnp.zeros((4, 2)), 30)
    assert np.isfinite(losses).all()
    assert float(jnp.mean(loss_fn(params, TRAIN))) < before / 2


def test_the_loss_that_it_returns_is_that_of_the_data_set_though_k_is_not_one():
    params = jax.random.normal(jax.random.key(2), (4, 2))
    expected = float(jnp.mean(loss_fn(params, TRAIN)))
    _, losses, ess = run(optax.sgd(0.0), params, 300)  # a model that stays as it is
    assert ess[-1] < 0.8  # most examples have been seen, and draws are far from uniform
    assert_mean(losses[100:, None], expected)
