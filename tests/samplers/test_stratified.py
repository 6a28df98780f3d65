import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean, compiled

import isjax
from isjax import recipes, samplers, scorers, transforms, weights
from isjax.parallel import padding
from isjax.parallel.mesh import take_by_part

SIZE, STRATA, BATCH, POOL = 61, 4, 3, 8  # the last part has 13 examples, the others 16


@functools.cache
def stratified(*arguments):
    """The sampler, its functions jitted once for all tests."""
    return compiled(samplers.stratified(*arguments))


@functools.cache
def pooled(k=1.0, batch_size=BATCH, scorer=None):
    return isjax.importance_sampler(
        scorer or scorers.last_loss(), transforms.smooth(0.1), batch_size=batch_size, k=k
    )


@functools.cache
def by_tree(k=1.0, batch_size=BATCH):
    return isjax.tree_sampler(scorers.last_loss(), batch_size=batch_size, k=k, smoothing=0.2)


def observed(sampler, losses):
    """The state after one batch has told the losses of all examples."""
    state = sampler.init(jax.random.key(0), len(losses))
    rows = -(-len(losses) // STRATA)
    ids = np.arange(STRATA * rows) % rows + np.repeat(np.arange(STRATA) * rows, rows)
    ids = np.minimum(ids, len(losses) - 1)
    draw, state = sampler.sample(jax.random.key(1), state)
    draw = draw._replace(ids=jnp.asarray(ids, jnp.int32))
    return sampler.update(state, draw, jnp.asarray(losses[ids]))


def estimates(sampler, state, values, trials=20_000):
    """Weighted means of the values [N] over draws, [trials]; and the ids drawn."""

    def one(key):
        draw, _ = sampler.sample(key, state)
        return jnp.mean(draw.weights * values[draw.ids]), draw.ids

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), trials))


def losses_by_part(seed=0):
    """Parts that differ much in mass."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.1, 1, SIZE) * np.repeat([1, 8, 0.5, 3], 16)[:SIZE]).astype(np.float32)


@pytest.mark.parametrize("make", [pytest.param(pooled, marks=pytest.mark.slow), by_tree])
def test_weights_are_unbiased_for_the_mean_of_the_data_set(make):
    sampler = stratified(make(), STRATA, POOL if make is pooled else None)
    state = observed(sampler, losses_by_part())
    values = np.random.default_rng(3).normal(2, 1, SIZE).astype(np.float32)
    found, ids = estimates(sampler, state, jnp.asarray(values))
    assert_mean(found, values.astype(np.float64).mean())
    assert set(np.unique(ids)) == set(range(SIZE))  # every example, and no row of the padding


@pytest.mark.parametrize("make", [pooled, by_tree])
def test_the_probabilities_of_a_draw_give_its_unbiased_weights(make):
    sampler = stratified(make(), STRATA, POOL if make is pooled else None)
    draw, _ = sampler.sample(jax.random.key(1), observed(sampler, losses_by_part()))
    np.testing.assert_allclose(1 / (draw.pool_size * draw.draw_probs), draw.weights, rtol=1e-5)
    policy = isjax.reweight(sampler, weights.biased(1.0))
    weighed = policy.weigh(None, draw, draw.scores)
    np.testing.assert_allclose(weighed, draw.weights, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("k", [0.5, 0.0, -1.0])
def test_biased_weights_follow_the_objective_of_a_draw_from_the_whole(k):
    sampler = stratified(by_tree(k), STRATA)
    losses = losses_by_part()
    state = observed(stratified(by_tree(), STRATA), losses)  # whatever the k
    values = np.random.default_rng(3).normal(2, 1, SIZE)
    found, _ = estimates(sampler, state, jnp.asarray(values, jnp.float32))
    # By hand: p is proportional to s + c mean(s) of the part; w as the docstring has it.
    losses, rows = losses.astype(np.float64), 16
    parts = [losses[i * rows : (i + 1) * rows] for i in range(STRATA)]
    masses = np.concatenate([part + 0.2 * part.mean() for part in parts])
    assert_mean(found, np.mean((masses / masses.mean()) ** (1 - k) * values))


@pytest.mark.slow
def test_of_one_part_it_is_the_sampler_itself():
    sampler, plain = stratified(by_tree(0.5), 1), compiled(by_tree(0.5))
    state, expected = sampler.init(jax.random.key(0), 50), plain.init(jax.random.key(0), 50)
    for number in range(5):
        key = jax.random.key(number)
        draw, state = sampler.sample(key, state)
        key = jax.random.split(jax.random.fold_in(key, number), 1)[0]
        one, expected = plain.sample(key, expected)
        for found, want in zip(jax.tree.leaves(draw), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-6)
        losses = jnp.linspace(0.1, 3, BATCH)
        state, expected = (
            sampler.update(state, draw, losses),
            plain.update(expected, one, losses),
        )


def test_each_part_gives_its_share_of_the_batch():
    sampler = stratified(pooled(), STRATA, POOL)
    draw, _ = sampler.sample(jax.random.key(1), observed(sampler, losses_by_part()))
    np.testing.assert_array_equal(draw.ids // 16, np.repeat(np.arange(STRATA), BATCH))
    np.testing.assert_array_equal(draw.index // POOL, np.repeat(np.arange(STRATA), BATCH))
    assert draw.pool_size == STRATA * POOL


def test_what_is_drawn_is_taken_from_the_padded_data():
    sampler = stratified(pooled(), STRATA, POOL)
    data = {"x": jnp.arange(SIZE * 2.0).reshape(SIZE, 2), "y": jnp.arange(SIZE)}
    draw, _ = sampler.sample(jax.random.key(1), observed(sampler, losses_by_part()))
    batch = take_by_part(padding.pad(data, STRATA), draw.ids, sampler.parts)
    np.testing.assert_array_equal(batch["y"], draw.ids)
    np.testing.assert_array_equal(batch["x"][:, 0], 2 * draw.ids)


def test_losses_are_written_to_their_examples():
    sampler = stratified(pooled(), STRATA, POOL)
    state = sampler.init(jax.random.key(0), SIZE)
    draw, state = sampler.sample(jax.random.key(1), state)
    state = sampler.update(state, draw, draw.ids.astype(jnp.float32))
    seen = np.unique(draw.ids)
    remembered = state.inner.buffer
    assert remembered.losses.shape == (STRATA, 16)
    np.testing.assert_array_equal(np.flatnonzero(remembered.count), seen)
    np.testing.assert_array_equal(remembered.losses.ravel()[seen], seen)


def test_rows_of_large_parts_fill_the_tiles_of_a_tpu():
    inner = isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH)
    state = jax.eval_shape(lambda: stratified(inner, 2).init(jax.random.key(0), 5000)).inner
    assert state.span.size == 2500 and state.buffer.losses.shape == (2, 3072)
    assert [level.shape for level in state.scores.levels] == [(2, 24, 128), (2, 1, 128)]


@pytest.mark.slow
def test_one_scorer_learns_from_all_parts():
    sampler = stratified(recipes.learned_loss(batch_size=BATCH), STRATA, POOL)
    state = sampler.init(jax.random.key(0), SIZE)
    shapes = jax.tree.map(jnp.shape, state.inner.scorer)
    draw, state = sampler.sample(jax.random.key(1), state)
    learned = sampler.update(state, draw, jnp.linspace(0, 5, STRATA * BATCH))
    assert jax.tree.map(jnp.shape, learned.inner.scorer) == shapes
    assert int(learned.inner.scorer.step) == 1
    before, after = state.inner.scorer.params, learned.inner.scorer.params
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), before, after)
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_scorer_sees_the_ids_of_the_whole_data_set():
    worth = jnp.zeros(SIZE).at[jnp.array([3, 20, 40, 60])].set(1.0)
    given = isjax.importance_sampler(scorers.given(worth), batch_size=BATCH)
    sampler = stratified(given, STRATA, 13)
    state = sampler.init(jax.random.key(0), SIZE)
    drawn = set()
    for number in range(40):
        draw, state = sampler.sample(jax.random.key(number), state)
        ids = np.asarray(draw.ids).reshape(STRATA, BATCH)
        for part in ids:  # a pool without any that is worth something is drawn from uniformly
            drawn |= set(part.tolist()) if set(part.tolist()) & {3, 20, 40, 60} else set()
    assert drawn == {3, 20, 40, 60}


def test_equal_scores_weigh_exactly_one():
    sampler = stratified(recipes.uniform(batch_size=BATCH), STRATA, POOL)
    draw, _ = sampler.sample(jax.random.key(0), sampler.init(jax.random.key(0), 64))
    np.testing.assert_array_equal(draw.weights, 1.0)
    assert draw.ess == 1


def test_the_parts_costs_are_summed():
    cheap = scorers.last_loss()._replace(passes=0.25)
    sampler = stratified(pooled(scorer=cheap), STRATA, POOL)
    draw, _ = sampler.sample(jax.random.key(0), sampler.init(jax.random.key(0), SIZE))
    assert float(draw.info.passes) == 0.25 * POOL * STRATA and draw.info.passes.dtype == jnp.float32


@pytest.mark.slow
def test_it_compiles_once():
    sampler = stratified(by_tree(), STRATA)
    state, sample = sampler.init(jax.random.key(0), SIZE), jax.jit(sampler.sample)
    update = jax.jit(sampler.update)
    for number in range(3):
        draw, state = sample(jax.random.key(number), state)
        state = update(state, draw, jnp.ones(STRATA * BATCH))
    assert sample._cache_size() == update._cache_size() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((pooled(), 0, POOL), "strata is 0"),
        ((pooled(), 2), "give pool_size"),
        ((by_tree(), 2, POOL), "leave pool_size out"),
        ((isjax.gate(pooled(), 1.5), 2, POOL), "put that outside"),
    ],
)
def test_what_cannot_be_stratified_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        stratified(*arguments)


def test_parts_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="fewer than its pool of 8; choose fewer strata"):
        stratified(pooled(), 4, 8).init(jax.random.key(0), 30)
    with pytest.raises(ValueError, match="leave 0 to the last"):
        stratified(by_tree(), 8).init(jax.random.key(0), 10)


def test_epochs_need_parts_of_one_size():
    sampler = stratified(recipes.reshuffled(batch_size=BATCH), STRATA)
    with pytest.raises(ValueError, match="61 examples are not a multiple of 4 parts"):
        sampler.init(jax.random.key(0), SIZE)
    draw, _ = sampler.sample(jax.random.key(0), sampler.init(jax.random.key(0), 64))
    assert len(set(draw.ids.tolist())) == STRATA * BATCH


def test_ids_are_refused():
    sampler = stratified(pooled(), STRATA, POOL)
    with pytest.raises(ValueError, match="pass no ids"):
        sampler.sample(jax.random.key(0), sampler.init(jax.random.key(0), SIZE), jnp.arange(4))
