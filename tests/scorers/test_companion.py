"""The companion. tests/recipes/test_methods.py compares its recipe with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import compiled

import isjax
from isjax import recipes, scorers

KEY = jax.random.key(0)
N = 12
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(X @ np.float32([1.0, -2.0, 0.5]))}


def losses_of(params, batch):
    return jnp.square(batch["x"] @ params - batch["y"])


def loss_fn(params, model_state, batch, key):
    """Counts the examples it was trained on, and keeps the last of its random numbers."""
    seen = {
        "number": model_state["number"] + batch["y"].shape[0],
        "random": jax.random.uniform(key),
    }
    return losses_of(params, batch), seen


def init(key):
    return jnp.zeros(3), {"number": jnp.zeros((), jnp.int32), "random": jnp.zeros(())}


def make(score_fn=lambda params, model_state, batch: losses_of(params, batch), **options):
    model = scorers.Companion(init, loss_fn, score_fn)
    return scorers.companion(model, optax.sgd(0.1), **options)


def sampler_of(scorer):
    return isjax.importance_sampler(scorer, batch_size=8)


def trained(steps, every=4):
    """States of the scorer after each step, and the ids of each batch."""
    sampler = compiled(sampler_of(make(every=every)))
    state = sampler.init(KEY, N)
    states, batches = [state.scorer], []
    for step in range(steps):
        draw, state = sampler.sample(jax.random.key(step), state, jnp.arange(N), DATA)
        batch = isjax.base.take(DATA, draw.ids)
        state = sampler.update(state, draw, jnp.ones(8), batch)
        states.append(state.scorer)
        batches.append(np.asarray(draw.ids))
    return states, batches


@pytest.mark.slow
def test_it_trains_by_plain_gradient_descent_on_one_in_every_four():
    states, batches = trained(6)
    params = np.zeros(3)
    for step, ids in enumerate(batches):
        chosen = ids[step % 4 :: 4]
        errors = X[chosen] @ params - np.asarray(DATA["y"])[chosen]
        params -= 0.1 * 2 * errors @ X[chosen] / 2
        np.testing.assert_allclose(states[step + 1].params, params, rtol=1e-4)
        assert states[step + 1].model_state["number"] == 2 * (step + 1)


def test_each_update_has_randomness_of_its_own():
    states, _ = trained(4)
    assert len({float(state.model_state["random"]) for state in states[1:]}) == 4


def test_its_scores_are_its_losses_and_it_learns_the_task():
    states, _ = trained(60, every=1)
    scorer = make()
    rows = isjax.Rows(jnp.zeros((N, 0)), jnp.zeros(N, jnp.int32), DATA)
    before, after = (scorer.score(state, rows) for state in (states[0], states[-1]))
    np.testing.assert_allclose(before, np.square(DATA["y"]), rtol=1e-6)
    assert jnp.mean(after) < 0.01 * jnp.mean(before)


def test_negative_losses_score_zero():
    scorer = make(lambda params, model_state, batch: batch["y"])
    rows = isjax.Rows(jnp.zeros((N, 0)), jnp.zeros(N, jnp.int32), DATA)
    np.testing.assert_array_equal(scorer.score(scorer.init(KEY), rows), np.maximum(DATA["y"], 0))


def test_what_makes_it_diverge_is_not_learned():
    sampler = compiled(sampler_of(make()))
    state = sampler.init(KEY, N)
    draw, state = sampler.sample(KEY, state, jnp.arange(N), DATA)
    broken = {"x": jnp.full((8, 3), jnp.nan), "y": jnp.ones(8)}
    after = sampler.update(state, draw, jnp.ones(8), broken)
    np.testing.assert_array_equal(after.scorer.params, state.scorer.params)


def test_the_cost_of_its_training_is_counted():
    model = scorers.Companion(init, loss_fn, lambda params, state, batch: batch["y"], passes=0.1)
    sampler = compiled(recipes.companion_loss(batch_size=8, companion=model, pool_size=N))
    draw, _ = sampler.sample(KEY, sampler.init(KEY, N), jnp.arange(N), DATA)
    assert float(draw.info.passes) == pytest.approx(0.1 * (N + 3 * 8 / 4))


@pytest.mark.parametrize(
    ("scorer", "batch", "message"),
    [
        (make(), None, "got no batch; pass batch="),
        (make(lambda params, state, batch: batch["x"]), DATA, r"\(12, 3\)"),
        (make(lambda params, state, batch: jnp.mean(batch["y"])), DATA, "one loss per example"),
    ],
)
def test_what_it_cannot_score_is_refused(scorer, batch, message):
    sampler = sampler_of(scorer)
    with pytest.raises(ValueError, match=message):
        sampler.sample(KEY, sampler.init(KEY, N), jnp.arange(N), batch)


@pytest.mark.slow
def test_too_small_a_batch_is_refused():
    sampler = sampler_of(make(every=9))
    draw, state = sampler.sample(KEY, sampler.init(KEY, N), jnp.arange(N), DATA)
    with pytest.raises(ValueError, match="a batch of 8 has no example in every 9"):
        sampler.update(state, draw, jnp.ones(8), isjax.base.take(DATA, draw.ids))
    with pytest.raises(ValueError, match="every is 0; choose 1 or more"):
        make(every=0)
