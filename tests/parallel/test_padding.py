import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import innermost

import isjax
from isjax import buffer, scorers
from isjax.experiment import draw_statistics
from isjax.parallel import padding
from isjax.samplers import sum_tree
from isjax.training import init_train_state, make_train_step


def test_data_get_rows_of_zeros_up_to_a_multiple():
    padded = padding.pad({"x": jnp.ones((5, 2)), "y": jnp.arange(5)}, 4)
    np.testing.assert_array_equal(padded["x"], np.pad(np.ones((5, 2)), ((0, 3), (0, 0))))
    np.testing.assert_array_equal(padded["y"], [0, 1, 2, 3, 4, 0, 0, 0])


def test_what_divides_stays():
    np.testing.assert_array_equal(padding.pad(jnp.arange(8), 4), np.arange(8))


def test_of_a_state_that_alone_is_padded_which_is_by_example():
    sampler = isjax.tree_sampler(scorers.last_loss(), batch_size=2)
    size = 21 * sum_tree.FANOUT + 1
    state = {
        "sampler": sampler.init(jax.random.key(0), size),
        "record": draw_statistics.init(size, kept=7),
        "params": jnp.ones((5, 3)),
    }
    padded = padding.pad_state(state, 4)
    assert padded["sampler"].buffer.losses.shape == (size + 3,)
    assert padded["record"].count.shape == (size + 3,) and padded["record"].scores.shape == (7,)
    assert padded["params"].shape == (5, 3)
    scores = padded["sampler"].scores
    assert [level.shape for level in scores.levels] == [(24, sum_tree.FANOUT), (1, sum_tree.FANOUT)]
    assert int(scores.size) == size


def run(sampler, data, size, pool_size, parts):
    """60 steps of a linear model, on data and state padded for so many parts."""

    def loss_fn(params, model_state, batch, key):
        return jnp.square(batch["x"] @ params - batch["y"]), model_state

    tx = optax.sgd(0.01)
    step = make_train_step(loss_fn, tx, sampler, pool_size=pool_size, with_draw=True)
    state = init_train_state(jax.random.key(0), jnp.zeros(3), tx, sampler, size)
    state, data, drawn = padding.pad_state(state, parts), padding.pad(data, parts), []
    for _ in range(60):
        state, metrics = step(state, data)
        drawn.append(metrics["draw"].ids)
    return np.stack(drawn), state


@pytest.mark.slow
def test_a_padded_run_draws_what_one_without_padding_draws():
    size = 9 * sum_tree.FANOUT + 5
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    data = {"x": jnp.asarray(x), "y": jnp.asarray(x @ np.float32([1, -2, 3]))}
    pooled = isjax.importance_sampler(
        scorers.last_loss(), isjax.transforms.smooth_by_mean(0.5), batch_size=8, k=0.5
    )
    by_tree = isjax.tree_sampler(scorers.last_loss(), batch_size=8, k=0.5, refresh=3)
    cases = [(pooled, 64), (pooled, None), (by_tree, None)]
    cases.append((isjax.recipes.reshuffled(batch_size=8), None))
    cases.append((isjax.recipes.cached(batch_size=8), None))
    for sampler, pool_size in cases:
        ids, state = run(sampler, data, size, pool_size, parts=1)
        padded_ids, padded = run(sampler, data, size, pool_size, parts=8)
        np.testing.assert_array_equal(padded_ids, ids)
        np.testing.assert_array_equal(padded.params, state.params)
        whole, more = innermost(state.sampler).buffer, innermost(padded.sampler).buffer
        if buffer.size(whole):
            np.testing.assert_array_equal(more.losses[:size], whole.losses)
            assert not np.any(more.count[size:])


def test_data_and_state_are_padded_alike():
    sampler = isjax.recipes.reshuffled(batch_size=8)
    state = init_train_state(jax.random.key(0), jnp.zeros(3), optax.sgd(0.1), sampler, 13)
    step = make_train_step(lambda p, s, batch, key: (batch["x"] @ p, s), optax.sgd(0.1), sampler)
    with pytest.raises(ValueError, match="13 examples in 13 rows, but the data set has 16"):
        step(state, {"x": jnp.ones((16, 3))})


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 20, 33, 128, 129])
def test_a_small_data_set_is_drawn_from_alike_however_it_is_padded(size):
    sampler = isjax.recipes.default(batch_size=8)
    state = sampler.init(jax.random.key(0), size)
    draw, _ = sampler.sample(jax.random.key(1), state)
    padded, _ = sampler.sample(jax.random.key(1), padding.pad_state(state, 8))
    np.testing.assert_array_equal(padded.ids, draw.ids)
