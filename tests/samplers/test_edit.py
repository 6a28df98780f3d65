"""A sampler's memory changed from outside: losses set, examples excluded, examples added."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial, compiled, innermost

from isjax import buffer, conditions, recipes, samplers, scorers, weights
from isjax.parallel import padding, sharding
from isjax.parallel.mesh import make_mesh
from isjax.samplers import (
    epochs,
    gate,
    importance_sampler,
    lagged,
    reweight,
    stratified,
    sum_tree,
    tree_sampler,
)

KEY, N, b = jax.random.key(0), 1_100, 8  # a tree of two levels
LOSSES = np.random.default_rng(0).gamma(2.0, size=N).astype(np.float32)
OUT = np.array([3, 40, 140, 199, 3])


set_losses = jax.jit(samplers.set_losses, static_argnums=0)
exclude = jax.jit(samplers.exclude)
grow = jax.jit(samplers.grow, static_argnums=(0, 3))
scores_of = jax.jit(sum_tree.scores_of)
read = jax.jit(buffer.read)


@functools.cache
def tree(smoothing=0.25, k=0.5):
    return compiled(recipes.default(batch_size=b, smoothing=smoothing, k=k))


@functools.cache
def known(sampler):
    return set_losses(sampler, sampler.init(KEY, N), jnp.arange(N), LOSSES)


def first(sampler):
    """The first state, of zeros, which is enough to be refused."""
    shapes = jax.eval_shape(lambda: sampler.init(KEY, N))
    return jax.tree.map(
        lambda x: (
            KEY if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.zeros(x.shape, x.dtype)
        ),
        shapes,
    )


# --- losses


@pytest.mark.parametrize(
    "sampler",
    [
        recipes.default(batch_size=b),
        recipes.last_loss(batch_size=b),
        reweight(recipes.default(batch_size=b), weights.correcting()),
        gate(recipes.last_loss(batch_size=b), conditions.after(0)),
        epochs(recipes.last_loss(batch_size=b), 16),
    ],
    ids=["tree", "pool", "reweight", "gate", "epochs"],
)
def test_losses_set_are_those_it_draws_by(sampler):
    sampler = compiled(sampler)
    state = set_losses(
        sampler, sampler.init(KEY, N), np.array([5, 7, 7]), np.array([4.0, 2.0, 6.0])
    )
    memory = innermost(state)
    assert int(state.step) == 0 and np.sum(memory.buffer.count) == 2
    ids = jnp.array([5, 7, 8])
    np.testing.assert_array_equal(buffer.read(memory.buffer, ids)[0], [[4], [4], [1]])
    if sampler.own_pool and hasattr(memory, "scores"):
        np.testing.assert_array_equal(scores_of(memory.scores, jnp.arange(5, 9)), [4, 1, 4, 1])


def test_draws_follow_the_losses_set():
    sampler = tree(smoothing=0.0)
    draw, _ = sampler.sample(KEY, known(tree()))
    np.testing.assert_allclose(draw.draw_probs, (LOSSES / LOSSES.sum())[draw.ids], rtol=1e-5)


def test_lists_of_ids_and_losses_can_be_set():
    state = tree().init(KEY, N)
    state = jax.jit(lambda state: samplers.set_losses(tree(), state, [5], [4.0]))(state)
    assert buffer.last_loss(state.buffer, jnp.array([5])) == 4.0


def test_losses_that_cannot_be_set_are_refused():
    sampler = tree()
    state = sampler.init(KEY, N)
    with pytest.raises(ValueError, match="2 examples"):
        set_losses(sampler, state, jnp.arange(2), jnp.ones(3))
    with pytest.raises(TypeError, match="flatnonzero"):
        set_losses(sampler, state, jnp.zeros(N, bool), jnp.ones(N))
    for wrapper in (stratified(recipes.default(batch_size=4), 2), lagged(tree(), 1)):
        with pytest.raises(ValueError, match="stratified or lagged"):
            set_losses(wrapper, first(wrapper), np.arange(2), np.ones(2))


# --- exclusion


SHARES = [0.0, 0.25, 100.0, np.inf]


@functools.cache
def by_share():
    """A tree whose smoothing is that of number `step`: one program for all."""
    return tree(lambda step: jnp.float32(SHARES)[step])


@functools.cache
def over_keys(sampler):
    return jax.jit(jax.vmap(sampler.sample, (0, None)))


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", SHARES)
def test_excluded_examples_are_never_drawn_whatever_the_smoothing(smoothing):
    sampler = by_share()
    state = exclude(known(sampler), OUT)._replace(step=jnp.int32(SHARES.index(smoothing)))
    draws, _ = over_keys(sampler)(jax.random.split(KEY, 500), state)
    assert not np.isin(draws.ids, OUT).any()
    # Probabilities and weights are those of the (N - 4) examples that are left.
    left = np.where(np.isin(np.arange(N), OUT), 0.0, LOSSES.astype(np.float64))
    constant = min(smoothing, 1e9) * left.sum() / (N - 4)
    probs = np.where(np.isin(np.arange(N), OUT), 0.0, left + constant)
    probs = probs / probs.sum()
    np.testing.assert_allclose(draws.draw_probs, probs[draws.ids], rtol=2e-5)
    np.testing.assert_allclose(draws.weights, ((N - 4) * probs[draws.ids]) ** -0.5, rtol=2e-5)
    assert np.all(draws.info.pool_size == (N - 4))
    counts = np.bincount(np.ravel(draws.ids), minlength=N)
    # Systematic draws have less variance than independent ones.
    assert_binomial(counts, 500 * b, probs)


def test_the_weighted_mean_is_unbiased_for_those_that_are_left():
    sampler = tree(k=1.0)
    state = exclude(known(tree()), OUT)
    draws, _ = over_keys(sampler)(jax.random.split(KEY, 2000), state)
    values = np.random.default_rng(2).normal(size=N)
    means = (np.asarray(draws.weights, np.float64) * values[draws.ids]).mean(axis=1)
    error = (means.mean() - np.delete(values, OUT).mean()) / (means.std() / np.sqrt(len(means)))
    assert abs(error) < 5


def test_excluded_examples_stay_so_when_losses_are_learned():
    sampler = tree()
    state = exclude(exclude(known(sampler), jnp.arange(150)), jnp.arange(140, 160))
    state = set_losses(sampler, state, jnp.arange(N), jnp.full(N, 9.0))
    scores = np.asarray(scores_of(innermost(state).scores, jnp.arange(N)))
    np.testing.assert_array_equal(scores, np.where(np.arange(N) < 160, 0, 9))
    below, root = map(np.ravel, state.scores.excluded)
    np.testing.assert_array_equal(np.flatnonzero(below), np.arange(160))
    assert below.max() == 1 and root[:2].tolist() == [128, 32] and not root[2:].any()


def test_from_a_pool_excluded_examples_are_not_drawn():
    sampler = tree()
    state = exclude(known(sampler), jnp.arange(50))
    draw, _ = sampler.sample(KEY, state, jnp.arange(40, 60))
    assert np.min(draw.ids) >= 50


@pytest.mark.parametrize("loss", [2.0, 0.0])
def test_from_a_pool_weights_are_those_of_the_examples_that_are_left(loss):
    sampler = compiled(recipes.default(batch_size=2, k=1.0))
    state = set_losses(sampler, sampler.init(KEY, 8), jnp.arange(8), jnp.full(8, loss))
    draw, _ = sampler.sample(KEY, exclude(state, jnp.arange(4)), jnp.arange(8))
    assert np.min(draw.ids) >= 4
    np.testing.assert_allclose(draw.weights, 1, rtol=1e-6)
    np.testing.assert_allclose(draw.draw_probs, 1 / 4, rtol=1e-6)
    assert draw.info.pool_size == 4 and draw.info.ess == 1
    np.testing.assert_allclose(draw.info.mass, 1.25 * loss / 1, rtol=1e-6)


@pytest.mark.slow
def test_where_all_are_excluded_it_draws_uniformly():
    sampler = tree()
    draw, _ = sampler.sample(KEY, exclude(known(sampler), jnp.arange(N)))
    assert np.all(np.isfinite(draw.weights)) and np.max(draw.ids) < N


def test_exclusion_survives_padding_and_devices():
    sampler = compiled(recipes.default(batch_size=b))
    state = exclude(sampler.init(KEY, N), OUT)
    padded = padding.pad_state(state, 8)
    draws = [sampler.sample(KEY, each)[0].ids for each in (state, padded)]
    np.testing.assert_array_equal(*draws)
    placed = sharding.shardings(padded, make_mesh(1))
    assert placed.scores.excluded[0].spec == placed.scores.levels[0].spec


def test_what_cannot_exclude_says_so():
    for sampler in (
        recipes.last_loss(batch_size=b),
        stratified(recipes.default(batch_size=4), 2),
    ):
        with pytest.raises(ValueError, match="only a tree_sampler"):
            exclude(first(sampler), np.arange(2))
    sampler = compiled(lagged(tree(), 1))  # within a wrapper it works
    state = exclude(sampler.init(KEY, N), jnp.arange(2))
    assert int(sum_tree.active(state.inner.scores)) == N - 2


def test_parts_keep_what_was_excluded():
    whole = exclude(known(tree()), jnp.arange(0, N, 2))
    parts = whole.scores.split(3, N)
    assert [int(jnp.sum(parts.excluded[-1][i])) for i in range(3)] == [184, 183, 183]


# --- growth


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: recipes.default(batch_size=b),
        lambda: recipes.last_loss(batch_size=b),
        lambda: epochs(recipes.last_loss(batch_size=b), 16),
        lambda: gate(recipes.last_loss(batch_size=b), conditions.tau(1.1)),
        lambda: lagged(recipes.default(batch_size=b), 1),
    ],
    ids=["tree", "pool", "epochs", "gate", "lagged"],
)
def test_more_examples_leave_what_is_known(make):
    sampler = compiled(make())
    draw, state = sampler.sample(KEY, sampler.init(KEY, N))
    state = sampler.update(state, draw, np.arange(1.0, b + 1, dtype=np.float32))
    grown = grow(sampler, KEY, state, N + 60)
    assert int(grown.step) == int(state.step) and grown.span.size == N + 60
    old, new = innermost(state).buffer, innermost(grown).buffer
    (before, count), (after, grown_count) = read(old, np.arange(N)), read(new, np.arange(N + 60))
    np.testing.assert_array_equal(after, np.append(before, np.ones((60, 1)), axis=0))
    np.testing.assert_array_equal(grown_count, np.pad(count, (0, 60)))
    draw, grown = sampler.sample(KEY, grown)
    sampler.update(grown, draw, np.ones(b, np.float32))


def test_a_grown_tree_is_that_of_all_scores():
    sampler = tree()
    state = exclude(known(sampler), OUT)
    size = 200_000  # a tree of three levels
    grown = grow(sampler, KEY, state, size).scores
    want = np.append(np.where(np.isin(np.arange(N), OUT), 0, LOSSES), np.ones(size - N))
    np.testing.assert_array_equal(scores_of(grown, jnp.arange(size)), want)
    np.testing.assert_allclose(sum_tree.total(grown), want.sum(), rtol=1e-6)
    assert int(sum_tree.active(grown)) == size - 4 and int(grown.size) == size


def test_new_examples_have_the_numbers_given_for_them():
    sampler = compiled(tree_sampler(scorers.given(jnp.ones(N)), batch_size=b, smoothing=0.0))
    state = sampler.init(KEY, N)
    given = np.append(np.ones(N, np.float32), np.float32(7))
    more = compiled(tree_sampler(scorers.given(given), batch_size=b, smoothing=0.0))
    state = grow(more, KEY, state, N + 1)
    assert float(scores_of(state.scores, jnp.array([N]))[0]) == 7.0
    draw, state = more.sample(KEY, state)
    state = more.update(state, draw, np.ones(b, np.float32))
    assert float(sum_tree.total(state.scores)) == N + 7


def test_an_epoch_goes_on_and_the_next_one_has_all_examples():
    sampler = compiled(epochs(importance_sampler(scorers.uniform(), batch_size=10), 10))
    state, seen = sampler.init(KEY, 40), []
    for _ in range(3):
        draw, state = sampler.sample(KEY, state)
        seen += draw.ids.tolist()
    state = grow(sampler, KEY, state, 50)
    for _ in range(2):
        draw, state = sampler.sample(KEY, state)
        seen += draw.ids.tolist()
    assert sorted(set(seen)) == list(range(50))
    after = [sampler.sample(KEY, state._replace(inner=state.inner._replace(step=jnp.int32(5))))[0]]
    assert after[0].ids.max() < 50


def test_what_cannot_grow_says_so():
    sampler = stratified(recipes.default(batch_size=4), 2)
    with pytest.raises(ValueError, match="hold other examples"):
        grow(sampler, KEY, first(sampler), 2 * N)
    with pytest.raises(ValueError, match=r"1099, but the sampler knows 1100.*exclude"):
        grow(tree(), KEY, tree().init(KEY, N), N - 1)
