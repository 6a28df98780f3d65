import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean

import isjax
from isjax import recipes, scorers
from isjax.lagged import lagged, pending

SIZE, BATCH = 50, 4


def by_tree(k=1.0):
    return isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH, k=k, smoothing=0.2)


def pooled():
    return isjax.importance_sampler(
        scorers.last_loss(), isjax.smooth_by_mean(0.5), batch_size=BATCH, k=0.5
    )


def trained(sampler, steps, state=None, start=0):
    """What is drawn and what is pending after each step; the loss of example i is i + 1."""
    state = sampler.init(jax.random.key(0), SIZE) if state is None else state
    sample, update = jax.jit(sampler.sample), jax.jit(sampler.update)
    drawn, ahead = [], []
    for number in range(start, start + steps):
        draw, state = sample(jax.random.key(number), state)
        state = update(state, draw, draw.ids + 1.0)
        drawn.append(draw)
        ahead.append(pending(state) if hasattr(state.transform, "draws") else None)
    assert sample._cache_size() == update._cache_size() == 1
    return drawn, ahead, state


@pytest.mark.parametrize("lag", [1, 3])
def test_what_is_drawn_is_what_was_pending_in_its_order(lag):
    for sampler in (lagged(by_tree(), lag), lagged(pooled(), lag, pool_size=16)):
        first = pending(sampler.init(jax.random.key(0), SIZE))
        drawn, ahead, _ = trained(sampler, 12)
        assert first.shape == (lag, BATCH)
        planned = np.concatenate([first, *(ids[-1:] for ids in ahead)])
        np.testing.assert_array_equal(np.stack([draw.ids for draw in drawn]), planned[:12])
        for ids, more in itertools.pairwise(ahead):
            np.testing.assert_array_equal(more[:-1], ids[1:])


def test_without_lag_it_is_the_sampler_itself():
    drawn, _, state = trained(lagged(by_tree(0.5), 0), 6)
    plain = by_tree(0.5)
    key, *_ = jax.random.split(jax.random.key(0), 1)
    expected, _, known = trained(plain, 6, plain.init(key, SIZE))
    for draw, one in zip(drawn, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, draw, one)
    jax.tree.map(np.testing.assert_array_equal, state.buffer, known.buffer)


def test_a_draw_knows_what_was_known_when_it_was_made():
    """After d steps the draws are those of a sampler that learned d steps later."""
    plain = isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH, smoothing=1e-4)
    lag, sampler = 2, lagged(plain, 2)
    state = sampler.init(jax.random.key(0), SIZE)
    draw, state = sampler.sample(jax.random.key(1), state)
    before = state.transform.draws.scores[-1]
    np.testing.assert_array_equal(before, 1.0)  # drawn when no loss was known
    state = sampler.update(state, draw, jnp.full(BATCH, 1e6))
    draws = []
    for number in range(lag + 1):
        draw, state = sampler.sample(jax.random.key(2 + number), state)
        draws.append(draw)
    assert max(np.max(draw.scores) for draw in draws[:lag]) == 1.0
    assert np.all(draws[lag].scores == 1e6)  # the mass is theirs


def test_weights_are_unbiased_whatever_the_lag():
    sampler = lagged(by_tree(), 2)
    _, _, state = trained(sampler, 30)
    values = np.random.default_rng(0).normal(1, 1, SIZE).astype(np.float32)

    def one(key):
        later = state
        for draw_key in jax.random.split(key, 3):
            draw, later = sampler.sample(draw_key, later)
            later = sampler.update(later, draw, jnp.float32(values)[draw.ids] ** 2)
        return jnp.mean(draw.weights * jnp.asarray(values)[draw.ids])

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(9), 20_000))
    assert_mean(found, values.astype(np.float64).mean())


def test_nothing_is_lost_or_drawn_twice_when_a_state_is_kept_and_gone_on_with():
    sampler = lagged(by_tree(0.5), 3)
    whole, _, end = trained(sampler, 20)
    _, _, state = trained(sampler, 9)
    kept = [np.array(x) for x in jax.tree.leaves(state)]  # as a checkpoint keeps it
    state = jax.tree.unflatten(jax.tree.structure(state), map(jnp.asarray, kept))
    rest, _, again = trained(sampler, 11, state, start=9)
    for draw, one in zip(rest, whole[9:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, draw, one)
    jax.tree.map(np.testing.assert_array_equal, again, end)


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


def test_who_remembers_nothing_or_needs_the_model_is_refused():
    model = recipes.biased_loss(batch_size=BATCH, loss_fn=lambda params, batch: batch)
    with pytest.raises(ValueError, match="remembers nothing"):
        lagged(model, 2, 16).init(jax.random.key(0), SIZE)
    by_class = recipes.learned_loss(batch_size=BATCH, num_classes=3)
    with pytest.raises(ValueError, match="reads classes from the batch, but got none"):
        lagged(by_class, 2, 16).init(jax.random.key(0), SIZE)


def test_ids_are_refused():
    sampler = lagged(by_tree(), 1)
    with pytest.raises(ValueError, match="pass no ids"):
        sampler.sample(jax.random.key(0), sampler.init(jax.random.key(0), SIZE), jnp.arange(9))
