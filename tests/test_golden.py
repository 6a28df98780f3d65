"""Metrics of thirty steps of learned_loss, which only a change of training may move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import recipes
from isjax.training import init_train_state, make_train_step

STEPS = 30
GOLDEN = {
    "loss": 0.277678,
    "ess": 0.896358,
    "max_weight": 1.13155,
    "score_error": 0.366567,
    "train_loss": 0.296842,
    "visited": 60.0,
    "visits": 239.0,
}
ADVICE = """
The golden metrics moved; now they are
GOLDEN = {now}

If this change was meant to alter training (other draws, another default, another order of random
numbers), check that the new numbers are no worse, paste the line above into {file}, and
say in the commit message why they moved. If it was a refactoring, a speed-up or documentation,
nothing here may move: it is a bug. A new release of jax, flax or optax may move them too: then
confirm first that the old release still gives the old numbers."""


def problem():
    rng = np.random.default_rng(20170531)
    x = rng.normal(size=(60, 5))
    label = np.argmax(x @ rng.normal(size=(5, 3)) + 0.5 * rng.normal(size=(60, 3)), axis=1)
    return {"x": jnp.float32(x), "label": jnp.asarray(label, jnp.int32)}


def loss_fn(params, model_state, batch, key):
    logits = batch["x"] @ params["w"] + params["b"][None, :]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses, model_state


def golden_run():
    data, tx = problem(), optax.sgd(0.3, momentum=0.9)
    sampler = recipes.learned_loss(
        batch_size=8, num_classes=3, history=4, optimizer=optax.adam(1e-2)
    )
    step = make_train_step(loss_fn, tx, sampler, pool_size=24)
    params = {"w": jnp.zeros((5, 3)), "b": jnp.zeros(3)}
    state = init_train_state(jax.random.key(1706), params, tx, sampler, len(data["x"]))
    history = []
    for _ in range(STEPS):
        state, metrics = step(state, data)
        history.append(metrics)
    losses, _ = loss_fn(state.params, None, data, None)
    last_ten = {
        name: float(np.mean([metrics[name] for metrics in history[-10:]]))
        for name in ("loss", "ess", "max_weight", "score_error")
    }
    return last_ten | {
        "train_loss": float(jnp.mean(losses)),
        "visited": int(jnp.sum(state.sampler.buffer.count > 0)),
        "visits": int(jnp.sum(state.sampler.buffer.count)),
    }


def test_thirty_steps_give_the_golden_metrics(compiled_as_for_users):
    now = {name: float(f"{value:.6g}") for name, value in golden_run().items()}
    assert now == pytest.approx(GOLDEN, rel=1e-3), ADVICE.format(now=now, file=__file__)
