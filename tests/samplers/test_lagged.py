import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean, compiled

import isjax
from isjax import recipes, samplers, scorers, weights
from isjax.samplers import pending

SIZE, BATCH = 50, 4


@functools.cache
def lagged(*arguments, **named):
    """The sampler, its functions jitted once for all tests."""
    return compiled(samplers.lagged(*arguments, **named))


@functools.cache
def by_tree(k=1.0):
    return isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH, k=k, smoothing=0.2)


@functools.cache
def pooled():
    return isjax.importance_sampler(
        scorers.last_loss(), isjax.smooth_by_mean(0.5), batch_size=BATCH, k=0.5
    )


def trained(sampler, steps, state=None, start=0):
    """What is drawn and what is pending after each step; the loss of example i is i + 1."""
    state = sampler.init(jax.random.key(0), SIZE) if state is None else state
    sample, update = sampler.sample, sampler.update
    drawn, ahead = [], []
    for number in range(start, start + steps):
        draw, state = sample(jax.random.key(number), state)
        state = update(state, draw, draw.ids + 1.0)
        drawn.append(draw)
        ahead.append(pending(state))
    assert sample._cache_size() == update._cache_size() == 1
    return drawn, ahead, state


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 3])
def test_what_is_drawn_is_what_was_pending_in_its_order(lag):
    for sampler in (lagged(by_tree(0.5), lag, None), lagged(pooled(), lag, 16)):
        first = pending(sampler.init(jax.random.key(0), SIZE))
        drawn, ahead, _ = trained(sampler, 12)
        assert first.shape == (lag + 1, BATCH)
        planned = np.concatenate([first, *(ids[-1:] for ids in ahead)])
        np.testing.assert_array_equal(np.stack([draw.ids for draw in drawn]), planned[:12])
        for ids, more in itertools.pairwise(ahead):
            np.testing.assert_array_equal(more[:-1], ids[1:])


@pytest.mark.slow
@pytest.mark.parametrize("pool_size", [None, 16])
def test_without_lag_a_draw_knows_all_that_the_sampler_would(pool_size):
    """The draws of the sampler itself, of the same keys, taught by the same losses."""
    sampler = by_tree(0.5) if pool_size is None else pooled()
    drawn, _, _ = trained(lagged(sampler, 0, pool_size), 6)
    plain = compiled(sampler)
    key, init_key = jax.random.split(jax.random.key(0))
    state = plain.init(init_key, SIZE)
    for number, one in enumerate(drawn):
        pool_key, draw_key = jax.random.split(jax.random.fold_in(key, number))
        ids = pool_size and isjax.resampling.presample(pool_key, SIZE, pool_size)
        draw, state = plain.sample(draw_key, state, ids)
        state = plain.update(state, draw, draw.ids + 1.0)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), one, draw)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 2])
def test_a_draw_knows_what_was_known_when_it_was_made(lag):
    """After d + 1 steps the mass is that of examples whose loss became known at the first."""
    sampler = lagged(isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH, smoothing=1e-4), lag)
    state, scores = sampler.init(jax.random.key(0), SIZE), []
    for _ in range(lag + 2):
        draw, state = sampler.sample(jax.random.key(1), state)
        state = sampler.update(state, draw, jnp.full(BATCH, 1e6))
        scores.append(np.asarray(draw.scores))
    np.testing.assert_array_equal(scores[: lag + 1], np.ones((lag + 1, BATCH)))
    np.testing.assert_array_equal(scores[-1], np.full(BATCH, 1e6))


@pytest.mark.slow
def test_weights_are_unbiased_whatever_the_lag():
    sampler = lagged(by_tree(), 2)
    _, _, state = trained(sampler, 30)
    values = np.random.default_rng(0).normal(1, 1, SIZE).astype(np.float32)

    def one(key):
        later = state._replace(key=key)
        for _ in range(4):  # the fourth is the first that this key chooses
            draw, later = sampler.sample(key, later)
            later = sampler.update(later, draw, jnp.float32(values)[draw.ids] ** 2)
        return jnp.mean(draw.weights * jnp.asarray(values)[draw.ids])

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(9), 20_000))
    assert_mean(found, values.astype(np.float64).mean())


def through_the_host(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(np.array(jax.random.key_data(x))))
    return jnp.asarray(np.array(x))


@pytest.mark.slow
def test_nothing_is_lost_or_drawn_twice_when_a_state_is_kept_and_gone_on_with():
    sampler = lagged(by_tree(0.5), 3, None)
    whole, _, end = trained(sampler, 20)
    _, _, state = trained(sampler, 9)
    state = jax.tree.map(through_the_host, state)  # as a checkpoint keeps it
    rest, _, again = trained(sampler, 11, state, start=9)
    for draw, one in zip(rest, whole[9:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, draw, one)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(end), strict=True):
        assert jnp.array_equal(x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((by_tree(), -1), "lag is -1"),
        ((by_tree(), 2, 16), "leave pool_size out"),
        ((pooled(), 2), "give pool_size"),
        ((isjax.gate(pooled(), 1.5), 2, 16), "put reweight outside"),
    ],
)
def test_what_cannot_be_lagged_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lagged(*arguments)


def test_who_needs_the_data_or_the_model_is_refused():
    model = recipes.biased_loss(batch_size=BATCH, loss_fn=lambda params, batch: batch)
    with pytest.raises(ValueError, match=r"cannot draw by its buffer alone .*default"):
        lagged(model, 2, 16).init(jax.random.key(0), SIZE)
    by_class = recipes.learned_loss(batch_size=BATCH, num_classes=3)
    with pytest.raises(ValueError, match="reads classes from the batch, but got none"):
        lagged(by_class, 2, 16).init(jax.random.key(0), SIZE)
    with pytest.raises(ValueError, match="pool_size is 51, but there are 50"):
        lagged(pooled(), 2, 51).init(jax.random.key(0), SIZE)


@pytest.mark.slow
def test_the_baselines_can_be_chosen_ahead():
    sampler = lagged(recipes.reshuffled(batch_size=10), 1)
    drawn, _, _ = trained(sampler, 5)
    assert sorted(np.concatenate([draw.ids for draw in drawn])) == list(range(SIZE))
    drawn, _, _ = trained(lagged(recipes.uniform(batch_size=BATCH), 1, 16), 5)
    assert len(np.unique(np.concatenate([draw.ids for draw in drawn]))) > BATCH


def test_pending_is_found_and_asked_in_vain():
    sampler = isjax.reweight(lagged(by_tree(), 1), weights.correcting(high=10))
    assert pending(sampler.init(jax.random.key(0), SIZE)).shape == (2, BATCH)
    with pytest.raises(ValueError, match="no batches pending"):
        pending(by_tree().init(jax.random.key(0), SIZE))


def test_ids_are_refused():
    sampler = lagged(by_tree(), 1)
    with pytest.raises(ValueError, match="pass no ids"):
        sampler.sample(jax.random.key(0), sampler.init(jax.random.key(0), SIZE), jnp.arange(9))
