"""`second_moment` against NumPy, with the weights of improved diffusion (arXiv 2102.09672)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled

import isjax
from isjax import scorers

KEY = jax.random.key(0)


def test_it_draws_by_the_root_of_the_mean_square_of_the_last_losses():
    """The record is kept here once more: the mean of duplicates counts once, the oldest leaves."""
    num, batch_size, history = 20, 16, 3
    transform = isjax.mix_uniform(0.001)
    sampler = compiled(
        isjax.importance_sampler(scorers.second_moment(history), transform, batch_size=batch_size)
    )
    rng = np.random.default_rng(0)
    state, record = sampler.init(KEY, num), [[] for _ in range(num)]
    for step in range(30):
        draw, state = sampler.sample(jax.random.fold_in(KEY, step), state)
        last = [seen[-history:] or [1.0] for seen in record]  # initial_loss is 1
        root = np.array([np.sqrt(np.mean(np.square(losses))) for losses in last])
        known = np.array([len(seen) >= history for seen in record])
        root = np.where(known, root, root.max())
        probs = 0.999 * root / root.sum() + 0.001 / num
        np.testing.assert_allclose(draw.draw_probs, probs[draw.ids], rtol=1e-5)
        np.testing.assert_allclose(draw.weights, 1 / (num * probs[draw.ids]), rtol=1e-5)
        losses = rng.lognormal(sigma=2.0, size=batch_size).astype(np.float32)
        state = sampler.update(state, draw, jnp.asarray(losses))
        for i in set(np.asarray(draw.ids).tolist()):
            record[i].append(losses[np.asarray(draw.ids) == i].mean(dtype=np.float64))
    assert min(map(len, record)) >= history and max(map(len, record)) > 2 * history


@pytest.mark.parametrize(("initial", "unknown"), [(1.0, 5.0), (9.0, 9.0)])
def test_an_id_seen_too_few_times_scores_as_the_highest(initial, unknown):
    history = jnp.asarray([[3.0, initial], [initial, initial], [7.0, 1.0], [2.0, 2.0]])
    rows = isjax.Rows(history, jnp.asarray([1, 0, 2, 5], jnp.int32))
    out = jax.jit(scorers.second_moment(2).score)((), rows)
    np.testing.assert_allclose(out, [unknown, unknown, 5.0, 2.0], rtol=1e-6)


def test_it_needs_a_history():
    with pytest.raises(ValueError, match="history is 0; choose 1 or more"):
        scorers.second_moment(0)
