"""Two samplers in one step: examples, and ids of another kind such as timesteps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SIGMAS, assert_mean

import isjax
from isjax import resampling, samplers, scorers

EXAMPLES, TIMESTEPS, BATCH, TRIALS = 24, 7, 16, 4000
# Fewer timesteps than the batch has examples: each comes three times in the pool.
POOL = jnp.tile(jnp.arange(TIMESTEPS, dtype=jnp.int32), 3)
LOSSES = jnp.asarray(np.random.default_rng(0).lognormal(size=(EXAMPLES, TIMESTEPS)), jnp.float32)


def drawn(timesteps):
    """Draws examples from a tree, by their mean losses, and timesteps by theirs, in one step."""
    examples = isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH)
    everyone = jnp.arange(EXAMPLES), jnp.mean(LOSSES, axis=1)
    steps = jnp.arange(TIMESTEPS), jnp.mean(LOSSES, axis=0)

    @jax.jit
    def of_trials(key):
        of_examples = samplers.set_losses(examples, examples.init(key, EXAMPLES), *everyone)
        of_timesteps = samplers.set_losses(timesteps, timesteps.init(key, TIMESTEPS), *steps)

        def trial(key):
            example_key, timestep_key = jax.random.split(key)
            one, _ = examples.sample(example_key, of_examples)
            other, _ = timesteps.sample(timestep_key, of_timesteps, POOL)
            return one.ids, other.ids, one.weights, other.weights

        return jax.vmap(trial)(jax.random.split(key, TRIALS))

    return of_trials(jax.random.key(1))


def test_the_product_of_the_weights_is_unbiased_for_the_mean_over_all_pairs():
    sampler = isjax.importance_sampler(
        scorers.last_loss(), batch_size=BATCH, resample=resampling.categorical
    )
    ids, timesteps, *weights = drawn(sampler)
    losses = LOSSES[ids, timesteps] * weights[0] * weights[1]
    assert_mean(np.mean(losses, axis=1)[:, None], float(jnp.mean(LOSSES)))


@pytest.mark.slow
def test_two_draws_in_ascending_order_are_not_independent():
    """Which is why one of them is to be drawn by `categorical`, or shuffled."""
    sampler = isjax.importance_sampler(scorers.last_loss(), batch_size=BATCH)
    ids, timesteps, *weights = drawn(sampler)
    losses = np.float64(LOSSES[ids, timesteps] * weights[0] * weights[1])
    means = losses.mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(TRIALS)
    assert abs(means.mean() - float(jnp.mean(LOSSES))) > 4 * SIGMAS * error
