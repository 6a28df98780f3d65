import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import compiled

import isjax
from isjax import resampling, scorers, weights
from isjax.base import Scorer, ScoreTransform
from isjax.samplers import importance_sampler, make_draw

KEY = jax.random.key(0)
SCORES = np.array([0.1, 2.0, 0.7, 0.0, 1.3, 0.4, 3.0, 0.5])
SIZE = len(SCORES)


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


def fixed(scores):
    """A scorer whose scores are given, whatever the pool."""
    scores = jnp.asarray(scores, jnp.float32)
    return Scorer(lambda key: (), lambda state, rows: scores, lambda state, rows, losses: state, 1)


# A scorer whose scores are given at each draw, as `params`: one program for many scores.
GIVEN = fixed(SCORES)._replace(score=lambda state, rows: rows.params)


def with_losses(sampler, losses, count=1):
    """The sampler's state once each example has shown its loss `count` times."""
    state = sampler.init(KEY, len(losses))
    shape = state.buffer.losses.shape  # without an axis for a history of one
    history = jnp.broadcast_to(jnp.float32(losses).reshape(-1, *[1] * (len(shape) - 1)), shape)
    seen = jnp.full(len(losses), count, jnp.int32)
    return state._replace(buffer=state.buffer._replace(losses=history, count=seen))


# --- state


@pytest.mark.parametrize("history", [0, 1, 3])
def test_state_at_the_start_is_that_of_the_design(history):
    scorer = fixed(SCORES)._replace(init=lambda key: {"own": jnp.ones(2)}, history=history)
    sampler = importance_sampler(scorer, isjax.warm_up(5), batch_size=2, initial_loss=2.5)
    state = sampler.init(KEY, 8)
    assert state._fields == ("step", "span", "buffer", "scorer", "transform")
    assert state.span.size == 8 and int(state.span.first) == 0
    assert state.step.shape == () and state.step.dtype == jnp.int32 and int(state.step) == 0
    if history:
        losses, count = isjax.buffer.read(state.buffer, jnp.arange(8))
        np.testing.assert_array_equal(losses, np.full((8, history), 2.5, np.float32))
        np.testing.assert_array_equal(count, np.zeros(8, np.int32))
    else:
        assert not jax.tree.leaves(state.buffer)
    np.testing.assert_array_equal(state.scorer["own"], [1, 1])
    assert int(state.transform) == 0
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_scorer_is_initialised_by_the_samplers_key():
    scorer = fixed(SCORES)._replace(init=lambda key: jax.random.normal(key, (4,)))
    init = importance_sampler(scorer, batch_size=2).init
    one, again, other = (init(jax.random.key(seed), 8).scorer for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"batch_size": -3}, "batch_size is -3.*at least 1"),
        ({"batch_size": 2, "k": 1.5}, r"k is 1\.5.*choose k <= 1"),
        ({"batch_size": 2, "k": float("nan")}, "k is nan.*choose k <= 1"),
        ({"batch_size": 2, "k": float("inf")}, "k is inf.*choose k <= 1"),
        ({"batch_size": 2, "k": float("-inf")}, "k is -inf"),  # (-inf, 1] is open below
        ({"batch_size": 2, "k": lambda step: 3.0 - step}, r"k is 3\.0.*choose k <= 1"),
        ({"batch_size": 2, "initial_loss": float("nan")}, "initial_loss is nan; choose a finite n"),
        ({"batch_size": 2, "initial_loss": float("inf")}, "initial_loss is inf; choose a finite n"),
        ({"batch_size": 2, "initial_loss": -1e39}, r"initial_loss is -1e\+39; choose a finite"),
    ],
    ids=[
        *("empty batch", "negative batch", "k > 1", "NaN k", "inf k", "-inf k", "schedule > 1"),
        *("NaN initial loss", "infinite initial loss", "initial loss of no float32"),
    ],
)
def test_factory_refuses_by_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        importance_sampler(scorers.last_loss(), **arguments)


def test_schedule_is_checked_under_jit_too():
    def build(x):
        importance_sampler(scorers.uniform(), batch_size=1, k=optax.constant_schedule(2.0))
        return x

    with pytest.raises(ValueError, match=r"k is 2\.0"):
        jax.jit(build)(1.0)


def test_pool_smaller_than_the_batch_is_an_error():
    sampler = importance_sampler(scorers.last_loss(), batch_size=4)
    state = sampler.init(KEY, 10)
    with pytest.raises(ValueError, match="pool of 3 is smaller than the batch of 4; enlarge"):
        sampler.sample(KEY, state, jnp.arange(3))


@pytest.mark.parametrize("size", [0, -1])
def test_empty_data_set_is_an_error(size):
    sampler = importance_sampler(scorers.last_loss(), batch_size=1)
    with pytest.raises(ValueError, match=f"has {size} examples.*at least 1"):
        sampler.init(KEY, size)


def test_without_ids_buffer_and_batch_the_pool_is_the_data_set():
    sampler = compiled(importance_sampler(scorers.uniform(), batch_size=1))
    draw, _ = sampler.sample(KEY, sampler.init(KEY, 10))
    assert int(draw.pool_size) == 10 and 0 <= int(draw.ids[0]) < 10


# --- one draw


def draws_of(samplers, size, *pool):
    """One draw of each sampler, from its first state, and the state after it: one program."""

    def sample(key, states):
        return [s.sample(key, state, *pool) for s, state in zip(samplers, states, strict=True)]

    return jax.jit(sample)(KEY, [s.init(KEY, size) for s in samplers])


KS = (1.0, 0.5, 0.0, -1.0)
IDS = np.array([11, 3, 5, 2, 17, 19, 7, 13])


@pytest.fixture(scope="module")
def by_formula():
    smooth = isjax.smooth(0.25)
    each = [importance_sampler(fixed(SCORES), smooth, batch_size=6, k=k) for k in KS]
    return draws_of(each, 20, IDS)


@pytest.mark.parametrize("k", KS)
def test_draw_is_that_of_the_formulas(k, by_formula):
    ids = IDS
    draw, state = by_formula[KS.index(k)]
    p = (SCORES + 0.25) / np.sum(SCORES + 0.25)
    drawn = np.asarray(draw.index)
    np.testing.assert_array_equal(draw.ids, ids[drawn])
    np.testing.assert_allclose(draw.draw_probs, p[drawn], rtol=1e-5)
    np.testing.assert_allclose(draw.weights, (1 / (SIZE * p[drawn])) ** k, rtol=1e-5)
    np.testing.assert_array_equal(draw.scores, np.float32(SCORES)[drawn])
    np.testing.assert_allclose(draw.ess, 1 / np.sum(p**2) / SIZE, rtol=1e-5)
    assert int(draw.info.nonfinite) == 0 and int(state.step) == 1
    assert draw.ids.dtype == draw.index.dtype == jnp.int32
    assert draw.weights.dtype == draw.draw_probs.dtype == draw.scores.dtype == jnp.float32


def test_k_follows_the_samplers_step():
    schedule = optax.linear_schedule(1.0, -1.0, 4)
    sampler = importance_sampler(fixed(SCORES + 1), batch_size=3, k=schedule)
    state, sample = sampler.init(KEY, SIZE), jax.jit(sampler.sample)
    for k in (1.0, 0.5, 0.0, -0.5, -1.0, -1.0):
        draw, state = sample(KEY, state)
        np.testing.assert_allclose(draw.weights, (SIZE * draw.draw_probs) ** -k, rtol=1e-5)


RESCALED = [
    (1.0, weights.divide_by_largest),
    (0.4, weights.divide_by_largest),
    (0.5, weights.preserve_mean_score),
    (-1.0, weights.preserve_mean_score),
]


@pytest.fixture(scope="module")
def rescaled():
    """A draw at each k and with each rescale."""
    each = [importance_sampler(fixed(SCORES), batch_size=6, k=k, rescale=r) for k, r in RESCALED]
    return {way: draw for way, (draw, _) in zip(RESCALED, draws_of(each, SIZE), strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("k", [0.5, -1.0])
def test_preserve_mean_score_keeps_direction_and_the_mean_score(k, rescaled):
    draw = rescaled[k, weights.preserve_mean_score]
    drawn = np.asarray(draw.index)
    unbiased = np.sum(SCORES) / SIZE / SCORES[drawn]
    ratio = draw.weights / unbiased**k
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    want = np.sum(unbiased * SCORES[drawn])
    np.testing.assert_allclose(np.sum(draw.weights * SCORES[drawn]), want, rtol=1e-5)
    assert abs(ratio[0] - 1) > 0.01


@pytest.mark.parametrize("k", [1.0, 0.4])
def test_divide_by_largest_makes_the_largest_weight_one(k, rescaled):
    draw = rescaled[k, weights.divide_by_largest]
    unscaled = (np.sum(SCORES) / SIZE / SCORES[np.asarray(draw.index)]) ** k
    np.testing.assert_allclose(draw.weights, unscaled / unscaled.max(), rtol=1e-5)
    assert float(jnp.max(draw.weights)) == 1


def test_a_users_own_rescale_sees_the_whole_draw_as_weighted_by_k():
    def own(draw):
        return draw.weights + 100 * draw.pool_size + 1000 * draw.scores + 1e4 * draw.ids

    each = [
        importance_sampler(fixed(SCORES), batch_size=4, k=-0.5, rescale=rescale)
        for rescale in (None, own)
    ]
    (draw, _), (same, _) = draws_of(each, SIZE)
    drawn = np.asarray(draw.index)
    np.testing.assert_allclose(draw.weights, np.sqrt(SIZE * SCORES / SCORES.sum())[drawn], 1e-5)
    want = draw.weights + 800 + 1000 * SCORES[drawn] + 1e4 * drawn
    np.testing.assert_allclose(same.weights, want, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same._replace(weights=0), draw._replace(weights=0))


def test_weights_are_not_rescaled_unless_asked():
    each = [
        importance_sampler(fixed(SCORES), batch_size=4, k=0.0, rescale=rescale)
        for rescale in (weights.preserve_mean_score, None)
    ]
    (on, _), (off, _) = draws_of(each, SIZE)
    np.testing.assert_array_equal(off.weights, np.ones(4))
    assert not np.allclose(on.weights, 1)


def test_the_weights_for_the_gradient_are_the_draws_own_whatever_the_losses():
    sampler = importance_sampler(fixed(SCORES), batch_size=4, k=0.5)
    draw, state = jax.jit(sampler.sample)(KEY, sampler.init(KEY, SIZE))
    for losses in (jnp.ones(4), jnp.asarray([np.nan, 2, 1e9, 0])):
        assert sampler.weigh(state, draw, losses) is draw.weights
    assert not sampler.own_pool


def test_a_draw_states_its_pool_and_what_it_cost():
    passes = (0, 0.25, 1, 3)
    each = [importance_sampler(fixed(SCORES[:5])._replace(passes=p), batch_size=2) for p in passes]
    draws = draws_of(each, SIZE, np.array([4, 0, 7, 1, 2]))
    for number, (draw, _) in zip(passes, draws, strict=True):
        assert int(draw.pool_size) == 5 and float(draw.info.passes) == 5 * number
        assert draw.pool_size.dtype == draw.info.nonfinite.dtype == jnp.int32
        assert draw.info.passes.dtype == jnp.float32


@pytest.mark.slow
def test_sample_under_jit_draws_the_same():
    transform = isjax.chain(isjax.smooth_by_mean(0.5), isjax.mix_uniform(0.1))
    sampler = importance_sampler(scorers.last_loss(), transform, batch_size=5, k=0.3)
    state = with_losses(sampler, SCORES)
    for key in keys(3):
        draw, plain = sampler.sample(key, state)
        jitted, compiled = jax.jit(sampler.sample)(key, state)
        np.testing.assert_array_equal(draw.index, jitted.index)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), draw, jitted)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, compiled)


# --- where to look


@functools.cache
def ids_over_keys(sampler):
    def sample(key, state, pool):
        return sampler.sample(key, state, **pool)[0].ids

    return jax.jit(jax.vmap(sample, (0, None, None)))


def counts_over_keys(sampler, state, number=4000, seed=0, **pool):
    ids = ids_over_keys(sampler)(keys(number, seed), state, pool)
    return np.bincount(np.ravel(ids), minlength=SIZE)


def assert_frequencies(counts, p):
    """Counts of independent draws within five standard deviations of their expectation."""
    deviation = np.sqrt(counts.sum() * p * (1 - p))
    assert np.all(np.abs(counts - counts.sum() * p) <= 5 * deviation), counts


def test_without_ids_the_pool_is_the_whole_buffer():
    sampler = importance_sampler(scorers.last_loss(), batch_size=2, resample=resampling.categorical)
    state, p = with_losses(sampler, SCORES), SCORES / SCORES.sum()
    assert_frequencies(counts_over_keys(sampler, state), p)
    assert_frequencies(counts_over_keys(sampler, state, seed=1, ids=jnp.arange(SIZE)), p)


@pytest.mark.parametrize("size", [8, 5])
def test_without_ids_or_history_the_pool_is_the_batch(size):
    scorer = scorers.loss(lambda params, batch: batch["in"][0] * params)
    sampler = importance_sampler(scorer, batch_size=3)
    batch = {"in": (jnp.float32(SCORES[:size]), jnp.zeros((size, 2)))}
    draw, _ = jax.jit(sampler.sample)(
        KEY, sampler.init(KEY, 100), batch=batch, params=jnp.float32(2)
    )
    np.testing.assert_array_equal(draw.ids, draw.index)
    p = SCORES[:size] / SCORES[:size].sum()
    np.testing.assert_allclose(draw.draw_probs, p[draw.ids], rtol=1e-5)
    np.testing.assert_allclose(draw.scores, 2 * SCORES[draw.ids], rtol=1e-5)


def test_a_scorer_sees_the_pool_and_no_more():
    looks = []

    def look(state, rows):
        looks.append(rows)
        return jnp.ones(rows.count.shape)

    sampler = importance_sampler(fixed(SCORES)._replace(score=look), batch_size=1)
    state = with_losses(sampler, SCORES, count=3)._replace(step=jnp.int32(9))
    drawn_at = jnp.zeros(SIZE, jnp.int32).at[6].set(4)
    state = state._replace(buffer=state.buffer._replace(seen=drawn_at))

    @jax.jit
    def seen(state, ids):
        sampler.sample(KEY, state, ids, batch="batch", params="params")
        (rows,) = looks
        assert rows.batch == "batch" and rows.params == "params"
        return rows._replace(batch=None, params=None)

    rows = seen(state, np.array([6, 1]))
    np.testing.assert_array_equal(rows.history, np.float32([[3.0], [2.0]]))
    np.testing.assert_array_equal(rows.count, [3, 3])
    np.testing.assert_array_equal(rows.ids, [6, 1])
    np.testing.assert_array_equal(rows.age, [6, 9])  # draws 5 to 9 did not see it


# --- scores that are not finite

OF_GIVEN = compiled(importance_sampler(GIVEN, batch_size=8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_counted_and_never_drawn(bad):
    scores = np.where([0, 1, 0, 0, 1, 0, 0, 0], bad, SCORES + 0.5).astype(np.float32)
    state = OF_GIVEN.init(KEY, SIZE)
    draw, _ = OF_GIVEN.sample(KEY, state, params=scores)
    assert int(draw.info.nonfinite) == 2
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(draw))
    p = np.where(np.isfinite(scores), SCORES + 0.5, 0)
    np.testing.assert_allclose(draw.draw_probs, (p / p.sum())[draw.index], rtol=1e-5)
    counts = counts_over_keys(OF_GIVEN, state, number=1000, params=scores)
    assert counts[1] == counts[4] == 0 and np.all(np.delete(counts, [1, 4]) > 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pool_without_a_finite_score_is_drawn_uniformly(bad):
    scores = np.full(SIZE, bad, np.float32)
    draw, _ = OF_GIVEN.sample(KEY, OF_GIVEN.init(KEY, SIZE), params=scores)
    np.testing.assert_allclose(draw.draw_probs, 1 / SIZE, rtol=1e-6)
    assert int(draw.info.nonfinite) == SIZE


@pytest.mark.slow
@pytest.mark.parametrize(
    "transform",
    [
        isjax.identity(),
        isjax.smooth_by_mean(0.5),
        isjax.transforms.inverse_rank(),
        isjax.chain(isjax.smooth_by_mean(0.5), isjax.power(-0.5)),
    ],
    ids=["identity", "smooth", "rank", "small losses first"],
)
def test_an_example_whose_loss_was_not_finite_is_not_sought(transform):
    """It is drawn no more often than uniform draws would, whatever the transform prefers."""
    sampler = importance_sampler(scorers.last_loss(), transform, batch_size=SIZE)
    state = with_losses(sampler, SCORES + 0.5)
    draw, losses = some_draw([2, 4]), np.float32([np.nan, 1.0])

    @jax.jit
    def draws(state, keys):
        after = sampler.update(state, draw, losses)
        return jax.vmap(lambda key: sampler.sample(key, after)[0])(keys)

    drawn = draws(state, keys(20))
    mass = np.where(drawn.ids == 2, drawn.draw_probs, 0.0)
    assert mass.max() <= (1 + 1e-5) / SIZE


# --- update


def recorder(history=2):
    """A scorer whose state is what its last update was shown."""

    def init(key):
        return jnp.zeros((3, history)), jnp.zeros(3, jnp.int32), jnp.zeros(3), jnp.zeros(3)

    def update(state, rows, losses):
        return rows.history, rows.count, losses, rows.batch

    return Scorer(init, lambda state, rows: jnp.ones(rows.count.shape), update, history)


def some_draw(ids, scores=1.0):
    b = len(ids)
    ones = jnp.ones(b)
    index = jnp.asarray(ids, jnp.int32)
    scores = ones * scores
    return make_draw((), index, index, ones / b, scores=scores, pool_size=b, k=0, ess=1, mass=1)


def test_scorer_learns_from_rows_read_before_write_back():
    sampler = importance_sampler(recorder(), batch_size=3, initial_loss=7.0)
    state, update = sampler.init(KEY, 5), jax.jit(sampler.update)
    draw, batch = some_draw([4, 1, 4]), jnp.float32([8, 9, 8])
    state = update(state, draw, np.float32([1.0, 2.0, 4.0]), batch)
    history, count, losses, given = state.scorer
    np.testing.assert_array_equal(history, np.full((3, 2), 7.0))
    np.testing.assert_array_equal(count, [0, 0, 0])
    np.testing.assert_array_equal(losses, [1.0, 2.0, 4.0])
    np.testing.assert_array_equal(given, batch)
    state = update(state, draw, np.float32([5.0, 6.0, 7.0]), batch)
    np.testing.assert_array_equal(state.scorer[0], [[2.5, 7.0], [2.0, 7.0], [2.5, 7.0]])
    np.testing.assert_array_equal(state.scorer[1], [1, 1, 1])
    want = [[7, 7], [6, 2], [7, 7], [7, 7], [6, 2.5]]
    np.testing.assert_array_equal(state.buffer.losses, want)
    np.testing.assert_array_equal(state.buffer.count, [0, 2, 0, 0, 2])


def test_a_scorer_says_what_is_remembered():
    def remember(history, count, losses):
        return jnp.stack([history[:, 1] + losses, history[:, 1] * (count + 2)], axis=1)

    scorer = fixed(SCORES)._replace(history=2, remember=remember)
    sampler = importance_sampler(scorer, batch_size=4, initial_loss=3.0)
    update = jax.jit(sampler.update)
    draw = some_draw([5, 2, 5, 7])
    state = update(sampler.init(KEY, SIZE), draw, jnp.float32([1.0, 4.0, 2.0, np.nan]))
    want = np.full((SIZE, 2), 3.0)
    want[5], want[2] = [3 + 1.5, 3 * 2], [3 + 4, 3 * 2]
    np.testing.assert_allclose(state.buffer.numbers, want)
    assert state.buffer.losses is None
    state = update(state, draw, jnp.float32([1.0, np.nan, np.inf, 0.5]))
    want[5], want[7] = [6 + 1, 6 * 3], [3 + 0.5, 3 * 2]
    np.testing.assert_allclose(state.buffer.numbers, want)
    np.testing.assert_array_equal(state.buffer.count, [0, 0, 1, 0, 0, 2, 0, 1])


def test_a_scorer_sees_ids_and_ages_when_it_scores_and_when_it_learns():
    def init(key):
        return jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.int32)

    def score(state, rows):
        return 1.0 + rows.ids + 100 * rows.age

    scorer = Scorer(init, score, lambda state, rows, losses: (rows.ids, rows.age))
    sampler = importance_sampler(scorer, batch_size=3)
    sample, update = jax.jit(sampler.sample), jax.jit(sampler.update)
    state, last = sampler.init(KEY, 6), {}
    for step, key in enumerate(keys(12)):  # draws made before this one
        draw, state = sample(key, state)
        # Of the draws before, the first is draw 1.
        ages = np.array([step + 1 - last[i] if i in last else step for i in range(6)])
        want = (1 + np.arange(6) + 100 * ages)[draw.ids]
        np.testing.assert_array_equal(draw.scores, want)
        state = update(state, draw, jnp.float32([1.0, 2.0, np.nan]))
        np.testing.assert_array_equal(state.scorer[0], draw.ids)
        np.testing.assert_array_equal(state.scorer[1], ages[draw.ids])
        last |= dict.fromkeys(np.asarray(draw.ids[:2]).tolist(), step + 1)
    assert len(last) > 3


@functools.cache
def by_last_loss(batch_size=3):
    return compiled(importance_sampler(scorers.last_loss(), batch_size=batch_size))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_losses_that_are_not_finite_leave_the_buffer_alone(bad):
    sampler = by_last_loss()
    state = with_losses(sampler, SCORES, count=2)
    state = sampler.update(state, some_draw([0, 5, 6]), jnp.float32([bad, 9.0, bad]))
    want = np.float32(SCORES)
    want[5] = 9.0
    last = isjax.buffer.last_loss(state.buffer, jnp.arange(SIZE))
    np.testing.assert_array_equal(last, want)
    np.testing.assert_array_equal(state.buffer.count, [2, 2, 2, 2, 2, 3, 2, 2])


def average(state, rows, losses):
    return 0.9 * state + 0.1 * jnp.mean(losses)


AVERAGING = fixed(SCORES)._replace(init=lambda key: jnp.ones(()), update=average)
AVERAGING = compiled(importance_sampler(AVERAGING, batch_size=3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_users_scorer_is_not_poisoned_by_losses_that_are_not_finite(bad):
    state, draw = AVERAGING.init(KEY, SIZE), some_draw([0, 5, 6])
    state = AVERAGING.update(state, draw, np.float32([bad, 2.0, 1.0]))
    assert np.isfinite(state.scorer)
    state = AVERAGING.update(state, draw, np.full(3, bad, np.float32))
    assert np.isfinite(state.scorer)
    calm = AVERAGING.update(state, draw, np.full(3, 3.0, np.float32)).scorer
    np.testing.assert_allclose(calm, 0.9 * state.scorer + 0.3, rtol=1e-5)


@functools.cache
def learned_sampler():
    network = scorers.Network(
        lambda key: jnp.float32([0.1, 0.2, 0.3]),
        lambda params, rows: rows.history @ params[:2] + params[2] * rows.count,
    )
    scorer = scorers.learned(network, optax.sgd(0.5), history=2)
    return compiled(importance_sampler(scorer, batch_size=3, initial_loss=7.0))


def before_bad_losses(count):
    sampler = learned_sampler()
    state = with_losses(sampler, SCORES, count)
    history = jnp.float32(np.stack([SCORES, SCORES[::-1]], axis=1))
    state = state._replace(buffer=state.buffer._replace(losses=history))
    draw, state = sampler.sample(jax.random.key(4), state)
    return sampler, draw, state


@pytest.mark.parametrize("count", [0, 1], ids=["never seen", "seen"])
def test_learned_is_taught_nothing_by_a_batch_without_a_finite_loss(count):
    sampler, draw, state = before_bad_losses(count)
    after = sampler.update(state, draw, np.float32([np.nan, np.inf, -np.inf])).scorer.params
    np.testing.assert_allclose(after, state.scorer.params, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1], ids=["never seen", "seen"])
def test_learned_is_taught_only_by_the_finite_loss_of_a_batch(count):
    sampler, draw, state = before_bad_losses(count)
    after = sampler.update(state, draw, np.float32([np.nan, 50.0, np.nan])).scorer.params
    change = np.asarray(after - state.scorer.params, float)
    sound = draw.ids[1]
    want = np.array(
        [SCORES[sound], SCORES[::-1][sound], count]
    )  # more loss: every parameter up, along its input
    assert len(set(draw.ids.tolist())) == 3
    cosine = change @ want / np.linalg.norm(change) / np.linalg.norm(want)
    assert cosine == pytest.approx(1.0, abs=1e-4)


# --- the objective that a biased step follows

X = np.array([[1.0, 0.2], [-0.5, 1.0], [0.3, -2.0], [1.5, 1.5], [0.1, 0.1], [-1.0, 0.4]])
Y = np.array([0.5, -1.0, 2.0, 0.3, 0.2, 1.0])
W = np.array([0.4, -0.6])
CONSTANT = 0.3


def squares(params, batch):
    return 0.5 * jnp.square(batch["x"] @ params - batch["y"])


def residuals():
    return X @ W - Y


def objective_gradient(k):
    """Of sum (L + c)^(2 - k) / (2 - k)."""
    losses = 0.5 * residuals() ** 2
    return ((losses + CONSTANT) ** (1 - k) * residuals()) @ X


EXPONENTS = (1.0, 0.5, 0.0, -1.0)


@functools.cache
def biased_draws(resample, number=20_000):
    """Draws of a batch of 3 at each k, [k, number, 3]: the step picks the k."""
    sampler = importance_sampler(
        scorers.loss(squares),
        isjax.smooth(CONSTANT),
        batch_size=3,
        k=lambda step: jnp.float32(EXPONENTS)[step],
        resample=resample,
    )
    batch, params = {"x": jnp.float32(X), "y": jnp.float32(Y)}, jnp.float32(W)
    state = sampler.init(KEY, len(Y))

    def draws(step):
        now = state._replace(step=step)
        sample = jax.vmap(lambda key: sampler.sample(key, now, batch=batch, params=params)[0])
        return sample(keys(number))

    draws = jax.jit(jax.vmap(draws))(jnp.arange(len(EXPONENTS)))
    return jax.tree.map(np.asarray, draws)


def draws_at(k, resample):
    return jax.tree.map(lambda x: x[EXPONENTS.index(k)], biased_draws(resample))


@pytest.mark.parametrize("k", EXPONENTS)
def test_expected_biased_gradient_is_that_of_the_biased_objective(k):
    # Exact: the expectation over one draw, from the probabilities that the draws state.
    draws = draws_at(k, resampling.systematic)
    p, w = np.zeros(len(Y)), np.zeros(len(Y))
    p[draws.index], w[draws.index] = draws.draw_probs, draws.weights
    assert p.sum() == pytest.approx(1, abs=1e-5)
    expected, want = (p * w * residuals()) @ X, objective_gradient(k)
    scale = np.linalg.norm(expected) / np.linalg.norm(want)
    np.testing.assert_allclose(expected, scale * want, rtol=1e-4)
    if k == 1:
        assert scale == pytest.approx(1 / len(Y), rel=1e-5)


@pytest.mark.parametrize("resample", [resampling.systematic, resampling.categorical])
@pytest.mark.parametrize("k", EXPONENTS)
def test_mean_biased_gradient_over_draws_is_that_of_the_biased_objective(k, resample):
    draws = draws_at(k, resample)
    each = draws.weights[..., None] * (residuals()[:, None] * X)[draws.index]
    steps = each.mean(axis=1)
    # sum p w grad L = (sum s / B)^k / sum s * gradient of the objective
    total = np.sum(0.5 * residuals() ** 2 + CONSTANT)
    want = (total / len(Y)) ** k / total * objective_gradient(k)
    error = steps.std(axis=0) / np.sqrt(len(steps))
    assert np.all(np.abs(steps.mean(axis=0) - want) <= 5 * error)


# Resilience and misuse


def test_an_overflow_does_not_stay_in_the_state_of_a_transform():
    def overflowing():
        def update(scores, state):
            return scores, state + jnp.sum(scores * 1e30)

        return ScoreTransform(lambda: jnp.zeros(()), update)

    sampler = isjax.importance_sampler(isjax.scorers.last_loss(), overflowing(), batch_size=2)
    state = sampler.init(KEY, 4)
    state = state._replace(buffer=state.buffer._replace(losses=np.full(4, 1e30, np.float32)))
    _, after = jax.jit(sampler.sample)(KEY, state)
    assert after.transform == 0 and after.step == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((isjax.scorers.last_loss,), "scorer is last_loss, no isjax.Scorer"),
        (
            (isjax.scorers.last_loss(), isjax.mix_uniform),
            "transform is mix_uniform, no isjax.ScoreTransform",
        ),
    ],
)
def test_a_factory_that_was_not_called_is_named(arguments, named):
    with pytest.raises(TypeError, match=rf"^{named}; pass what its function returns"):
        isjax.importance_sampler(*arguments, batch_size=2)


@pytest.mark.parametrize("shape", [(), (2, 1), (3,)])
def test_losses_of_another_shape_than_the_draw_are_refused(shape):
    sampler = isjax.recipes.uniform(batch_size=2)
    draw, state = jax.eval_shape(sampler.sample, KEY, sampler.init(KEY, 4), np.arange(4))
    with pytest.raises(ValueError, match="for 2 examples; return one loss per example"):
        sampler.update(state, draw, np.zeros(shape, np.float32))


def test_a_schedule_that_leaves_the_range_of_k_stays_at_full_correction():
    sampler = isjax.importance_sampler(
        isjax.scorers.last_loss(), batch_size=2, k=lambda step: 0.5 + step
    )
    state = sampler.init(KEY, 4)._replace(step=jnp.int32(5))
    losses = np.arange(1, 5, dtype=np.float32)
    state = state._replace(buffer=state.buffer._replace(losses=losses))
    draw, _ = jax.jit(sampler.sample)(KEY, state)
    np.testing.assert_allclose(draw.weights, 1 / (4 * draw.draw_probs), rtol=1e-6)


def test_ids_may_be_numpy_or_a_list_inside_jit_too():
    sampler = importance_sampler(scorers.last_loss(), batch_size=3)
    state = sampler.init(KEY, SIZE)
    want, _ = by_last_loss().sample(KEY, state, jnp.arange(4))
    for ids in (np.arange(4), [0, 1, 2, 3]):
        draw, _ = jax.jit(lambda state, ids=ids: sampler.sample(KEY, state, ids))(state)
        np.testing.assert_array_equal(draw.ids, want.ids)


def test_no_gradient_flows_through_the_choice():
    sampler = importance_sampler(
        scorers.loss(lambda params, batch: jnp.square(batch * params)), batch_size=2
    )
    batch = jnp.float32([1.0, 2.0, 3.0, 4.0])

    def loss(params):
        draw, _ = sampler.sample(KEY, sampler.init(KEY, 4), batch=batch, params=params)
        return jnp.mean(draw.weights * batch[draw.ids] * params), draw

    gradient, draw = jax.jit(jax.grad(loss, has_aux=True))(jnp.float32(1.0))
    np.testing.assert_allclose(gradient, np.mean(draw.weights * batch[draw.ids]), rtol=1e-6)


def test_a_batch_that_is_not_the_whole_data_set_needs_ids():
    sampler = importance_sampler(scorers.last_loss(), batch_size=2)
    with pytest.raises(ValueError, match=r"a batch of 10 examples and no ids.*the 100 examples"):
        sampler.sample(KEY, sampler.init(KEY, 100), batch=jnp.zeros(10))


@pytest.mark.parametrize("name", ["default", "last_loss", "mean_error", "learned_loss"])
def test_a_sampler_that_remembers_by_id_refuses_a_stream_and_names_those_that_serve_it(name):
    sampler, pool = getattr(isjax.recipes, name)(batch_size=4), {"x": np.ones((256, 3))}
    for num_examples in (1, 4, 1000):  # whatever it was initialised for
        state = jax.eval_shape(functools.partial(sampler.init, num_examples=num_examples), KEY)
        with pytest.raises(ValueError, match=r"by their ids.*a stream, take a recipe.*biased_loss"):
            jax.eval_shape(sampler.sample, KEY, state, batch=pool)


def test_ids_of_no_example_are_counted():
    ids = np.array([-1, 0, 7, 8, 100])
    for sampler in (
        importance_sampler(scorers.last_loss(), batch_size=2),
        isjax.recipes.default(batch_size=2),
        isjax.gate(importance_sampler(scorers.last_loss(), batch_size=2), 1.5),
        isjax.epochs(importance_sampler(scorers.last_loss(), batch_size=2), 4),
    ):

        @jax.jit
        def counts(state, sampler=sampler):
            pools = (ids, ids[1:3], None)
            return [sampler.sample(KEY, state, each)[0].info.invalid_ids for each in pools]

        assert counts(sampler.init(KEY, 8)) == [3, 0, 0]


@pytest.mark.parametrize("name", ["default", "last_loss"])
@pytest.mark.parametrize("size", [8, 1_100])  # one row of the tree, and two levels
def test_ids_of_no_example_write_nothing(name, size):
    sampler = compiled(getattr(isjax.recipes, name)(batch_size=4))
    state = sampler.init(KEY, size)
    for bad in (-1, -size, size, size + 1, 128, 2**31 - 1):
        if 0 <= bad < size:
            continue
        draw, before = sampler.sample(KEY, state, jnp.arange(4))
        draw = draw._replace(ids=jnp.int32([bad, bad, 1, bad]))
        after = sampler.update(before, draw, jnp.float32([9, 9, 3, 9]))
        only = sampler.update(before, draw._replace(ids=jnp.int32([1, 1, 1, 1])), jnp.full(4, 3.0))
        jax.tree.map(np.testing.assert_array_equal, after.buffer, only.buffer)
        if name == "default":
            jax.tree.map(np.testing.assert_array_equal, after.scores, only.scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: importance_sampler(scorers.last_loss(), batch_size=4),
        lambda: isjax.recipes.default(batch_size=4),
        lambda: isjax.gate(importance_sampler(scorers.last_loss(), batch_size=4), 1.5),
        lambda: isjax.epochs(importance_sampler(scorers.last_loss(), batch_size=4), 40),
        lambda: isjax.samplers.stratified(isjax.recipes.default(batch_size=2), 2),
    ],
    ids=["pool", "tree", "gate", "epochs", "strata"],
)
def test_a_key_may_be_used_at_every_step(make):
    sampler = compiled(make())
    state, seen = sampler.init(KEY, 40), set()
    for _ in range(4):
        draw, state = sampler.sample(KEY, state)
        seen.add(tuple(draw.ids.tolist()))
    assert len(seen) == 4


def test_what_a_transform_or_a_resampler_returns_is_checked_for_its_shape():
    column = ScoreTransform(lambda: (), lambda scores, state: (scores[:, None], state))
    sampler = importance_sampler(scorers.last_loss(), column, batch_size=2)
    with pytest.raises(ValueError, match=r"the transform returned shape \(8, 1\) for 8 examples"):
        jax.eval_shape(sampler.sample, KEY, sampler.init(KEY, 8))

    def columns(key, probs, num):
        index, draw_probs = resampling.systematic(key, probs, num)
        return index, draw_probs[:, None]

    sampler = importance_sampler(scorers.last_loss(), batch_size=2, resample=columns)
    with pytest.raises(ValueError, match=r"the resampler returned shape \(2, 1\) for 2 examples"):
        jax.eval_shape(sampler.sample, KEY, sampler.init(KEY, 8))
