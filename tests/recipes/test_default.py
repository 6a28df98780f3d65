"""`default` returns to uniform draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial

from isjax import recipes

N, b, STEPS, TRIALS = 40, 8, 6, 4000
KEY = jax.random.key(0)
LOSSES = np.geomspace(0.01, 10, N).astype(np.float32)


def draws_by_step(**options):
    """The draws of each step [STEPS], of many keys each, once all losses are known."""
    sampler = recipes.default(batch_size=b, **options)
    state = sampler.init(KEY, N)
    for ids in np.split(np.arange(N), N // b):  # the state's step stays 0
        draw, _ = sampler.sample(KEY, state)
        state = sampler.update(state, draw._replace(ids=jnp.int32(ids)), LOSSES[ids])

    @jax.jit
    def at(step):
        keys = jax.random.split(jax.random.fold_in(KEY, step), TRIALS)
        return jax.vmap(lambda key: sampler.sample(key, state._replace(step=step))[0])(keys)

    return [at(jnp.int32(step)) for step in range(STEPS)]


def is_uniform(draw):
    weights_are_one = np.allclose(draw.weights, 1, rtol=1e-5)
    probs_are_equal = np.allclose(draw.draw_probs, 1 / N, rtol=1e-5)
    assert weights_are_one == probs_are_equal
    if probs_are_equal:
        counts = np.bincount(np.ravel(draw.ids), minlength=N)
        # Systematic draws vary less than independent ones, for which this would hold, too.
        assert_binomial(counts, TRIALS * b, 1 / N)
    return probs_are_equal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"num_steps": STEPS}, 3),
        ({"num_steps": STEPS, "until": 0.8}, 5),
        ({"num_steps": STEPS, "until": 0}, 0),
        ({"num_steps": STEPS, "until": 1}, STEPS),
        ({"num_steps": STEPS, "smoothing": lambda step: 0.1 + 0.1 * step}, 3),
        ({}, STEPS),
    ],
    ids=["half", "share", "at once", "never", "schedule", "length unknown"],
)
def test_draws_are_uniform_from_a_share_of_the_run_on(options, first):
    found = [is_uniform(draw) for draw in draws_by_step(**options)]
    assert found == [step >= first for step in range(STEPS)]


@pytest.mark.slow
def test_scores_are_a_power_of_the_loss():
    draw = draws_by_step(exponent=0.5, smoothing=0.25)[0]
    scores = np.sqrt(LOSSES.astype(np.float64))
    probs = (scores + 0.25 * scores.mean()) / np.sum(1.25 * scores)
    np.testing.assert_allclose(draw.draw_probs, probs[np.asarray(draw.ids)], rtol=1e-4)


@pytest.mark.parametrize("until", [-0.1, 1.5])
def test_a_share_outside_of_the_run_is_refused(until):
    with pytest.raises(ValueError, match=f"until is {until}; choose a share"):
        recipes.default(batch_size=b, until=until)
