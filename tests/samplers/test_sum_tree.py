"""The tree of partial sums: draws against exact probabilities, and sums that never drift."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMISED, assert_binomial, draws, probabilities, six_decades
from scipy import stats

from isjax import resampling
from isjax.samplers import sum_tree

SIZES = [1, 5, 33, 128, 129, 1_025, 16_385, 300_000]  # a row, two rows, two levels, three
KEY = jax.random.key(0)


def with_constant(key, whole, num, constant=0.0):
    """Draws with so much added to each score: ids, draw_probs, scores and the mean mass."""
    mean = sum_tree.total(whole) / whole.size
    share = jnp.where(mean > 0, constant / jnp.where(mean > 0, mean, 1.0), 1.0)
    return sum_tree.sample(key, whole, num, share)


sample = jax.jit(lambda *arguments: with_constant(*arguments)[:3], static_argnums=2)
init = jax.jit(lambda scores: sum_tree.init(jnp.asarray(scores, jnp.float32)))
update = jax.jit(sum_tree.update)


def many(scores, num, trials, constant=0.0, seed=0):
    """`trials` draws from the tree of `scores`: ids, draw_probs, scores, [trials, num] each."""
    keys = jax.random.split(jax.random.key(seed), trials)
    drawn = _over_keys(num)(keys, init(scores), jnp.float32(constant))
    return [np.asarray(each) for each in drawn]


@functools.cache
def _over_keys(num):
    draw = jax.vmap(lambda key, whole, c: with_constant(key, whole, num, c)[:3], (0, None, None))
    return jax.jit(draw, compiler_options=OPTIMISED)


def assert_counts(ids, exact):
    """Hits within 5 sigma: of each item often drawn, of stretches of ids, of ranges of scores."""
    size, total = len(exact), ids.size
    hits = np.bincount(ids.ravel(), minlength=size)
    assert len(hits) == size and np.all(hits[exact == 0] == 0)
    often = total * exact * (1 - exact) >= 100
    if often.any():
        assert_binomial(hits[often], total, exact[often])
    low, high = stats.poisson.ppf([3e-7, 1 - 3e-7], total * exact[~often].sum())
    assert low <= hits[~often].sum() <= high or size == 1
    for order in (np.arange(size), np.argsort(exact)):
        groups = [part for part in np.array_split(order, min(size, 40)) if len(part)]
        mass = np.minimum([exact[part].sum() for part in groups], 1.0)
        counts = np.array([hits[part].sum() for part in groups])
        often_group = total * mass * (1 - mass) >= 100
        if often_group.any():
            assert_binomial(counts[often_group], total, mass[often_group])


@pytest.fixture(params=["cpu", "accelerator"])
def platform(request):
    """Makes a test run with the draws of either, which a CPU makes in two stages a level."""
    if request.param == "accelerator":
        request.getfixturevalue("as_on_an_accelerator")
    return request.param


def exact_probs(scores, constant=0.0):
    mass = np.asarray(scores, np.float64) + constant
    return mass / mass.sum()


# Draws


def test_the_mean_mass_is_that_of_the_smoothed_scores():
    scores = six_decades(300)
    draw = jax.jit(sum_tree.sample, static_argnums=2)
    _, _, _, mass = draw(KEY, init(scores), 4, 0.5)
    np.testing.assert_allclose(mass, 1.5 * scores.mean(dtype=np.float64), rtol=1e-6)
    assert draw(KEY, init(np.zeros(300, np.float32)), 4, 0.5)[3] == 0


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["no constant", "half the mean"])
@pytest.mark.parametrize("size", [*SIZES[:-1], pytest.param(SIZES[-1], marks=pytest.mark.slow)])
def test_counts_and_probabilities_are_exact_over_six_decades_of_scores(size, share):
    assert_exact(size, share)


@pytest.mark.slow
def test_counts_and_probabilities_are_exact_on_an_accelerator(as_on_an_accelerator):
    for size, share in ((5, 0.5), (129, 0.0), (16_385, 0.5)):
        assert_exact(size, share)


def assert_exact(size, share):
    """Draws, their probabilities and scores, with such a share of the mean score added to each."""
    scores = six_decades(size, seed=size)
    constant = np.float32(share * scores.mean(dtype=np.float64))
    ids, draw_probs, raw = many(scores, 64, 2000, constant)
    exact = exact_probs(scores, constant)
    np.testing.assert_allclose(draw_probs, exact[ids], rtol=2e-6)
    np.testing.assert_array_equal(raw, scores[ids])
    assert_counts(ids, exact)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 129, 4097])
def test_whole_buffer_draws_agree_in_distribution_with_whole_pool_draws(size):
    scores = six_decades(size, seed=size) ** 0.5
    ids, _, _ = many(scores, 32, 4000)
    other, _ = draws(resampling.systematic, probabilities(scores), 32, 4000, seed=9)
    groups = min(size, 60)
    part = np.empty(size, np.int64)
    part[np.argsort(scores)] = np.arange(size) * groups // size
    table = np.stack([np.bincount(part[each.ravel()], minlength=groups) for each in (ids, other)])
    table = table[:, table.sum(axis=0) >= 20]
    assert stats.chi2_contingency(table).pvalue > 1e-5


@pytest.mark.slow
def test_every_node_draws_each_child_floor_or_ceil_of_its_expected_number_of_times(platform):
    """A CPU draws so each block given its node, and each child given its block."""
    size, fan, block, num = 20_000, sum_tree.FANOUT, sum_tree.BLOCK, 4096
    scores = np.random.default_rng(0).exponential(size=size)
    ids, _, _ = many(scores, num, 20, constant=0.1)
    mass = np.zeros(block * fan**2)  # whole blocks of the root; the others have no mass
    mass[:size] = scores + 0.1
    # Examples below one that is drawn, from the root.
    stages = [len(mass), fan, 1]
    if platform == "cpu":
        stages = [len(mass), block * fan, fan, block, 1]
    masses = [mass.reshape(-1, below).sum(axis=1) for below in stages]
    for trial in ids:
        above = np.array([num])
        for below, whole, parts in zip(stages[1:], masses[:-1], masses[1:], strict=True):
            counts = np.bincount(trial // below, minlength=len(parts)).reshape(len(whole), -1)
            share = parts.reshape(counts.shape) / np.where(whole > 0, whole, 1)[:, None]
            expected = above[:, None] * share
            assert np.all(counts >= np.floor(expected - 2e-3))
            assert np.all(counts <= np.ceil(expected + 2e-3))
            above = counts.ravel()


@pytest.mark.slow
def test_an_example_of_zero_mass_is_never_returned(platform):
    for size in (5, 64, 129, 16_385):
        rng = np.random.default_rng(size)
        scores = six_decades(size) * (rng.uniform(size=size) < 0.1)
        scores[size // 2] = 1e-6
        ids, draw_probs, raw = many(scores, 128, 200)
        assert np.all(scores[ids] > 0) and np.all(draw_probs > 0) and np.all(raw > 0)


@pytest.mark.slow
def test_the_only_example_of_mass_among_many_is_always_drawn(platform):
    for only in (0, 31, 32, 127, 128, 16_383, 16_384, 99_999):
        scores = np.zeros(100_000, np.float32)
        scores[only] = 1e-5
        whole = init(scores)
        ids, draw_probs, raw = sample(KEY, whole, 16)
        np.testing.assert_array_equal(ids, [only] * 16)
        np.testing.assert_array_equal(draw_probs, [1.0] * 16)
        np.testing.assert_array_equal(raw, [np.float32(1e-5)] * 16)


@pytest.mark.slow
@pytest.mark.parametrize("constant", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 129, 16_385])
def test_a_tree_without_mass_is_drawn_from_uniformly(size, constant):
    ids, draw_probs, raw = many(np.zeros(size, np.float32), 64, 500, constant)
    np.testing.assert_allclose(draw_probs, 1 / size, rtol=1e-6)
    assert np.all(raw == 0) and ids.max() < size
    assert_counts(ids, np.full(size, 1 / size))


BAD = np.float32([np.nan, -np.inf, -1.0, -1e-30, 0.0])


def test_nan_and_negative_scores_carry_no_mass():
    scores = np.tile(BAD, 20)
    scores[[7, 50]] = 1.0, 3.0
    made = init(scores)
    by_update = update(init(np.ones(100, np.float32)), np.arange(100, dtype=np.int32), scores)
    for whole in (made, by_update):
        assert sum_tree.total(whole) == 4.0
        ids, draw_probs, _ = sample(KEY, whole, 40)
        np.testing.assert_array_equal(ids, [7] * 10 + [50] * 30)
        np.testing.assert_array_equal(draw_probs, [0.25] * 10 + [0.75] * 30)


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_infinite_scores_count_as_the_largest_and_no_sum_overflows(constant):
    scores = np.zeros(5000, np.float32)
    scores[[3, 4000]] = np.inf, 3e38
    whole = init(scores)
    assert sum_tree.total(whole) == 2 * sum_tree.LARGEST
    ids, draw_probs, raw = sample(KEY, whole, 8, constant)
    np.testing.assert_array_equal(ids, [3] * 4 + [4000] * 4)
    np.testing.assert_array_equal(draw_probs, [0.5] * 8)
    np.testing.assert_array_equal(raw, [sum_tree.LARGEST] * 8)
    everything = init(np.full(300_000, np.inf, np.float32))
    assert all(np.all(np.isfinite(level)) for level in everything.levels)


@pytest.mark.parametrize("score", [1e-30, 1.2e-38, 1e-40])
def test_the_smallest_scores_are_drawn_or_count_as_zero(score):
    # As a backend may flush subnormal numbers, a tree of nothing else may count as without mass.
    scores = np.zeros(5000, np.float32)
    scores[4321] = score
    ids, draw_probs, _ = sample(KEY, init(scores), 64)
    if draw_probs[0] > 0.5:
        np.testing.assert_allclose(draw_probs, 1.0, rtol=1e-6)
        np.testing.assert_array_equal(ids, [4321] * 64)
    else:
        np.testing.assert_allclose(draw_probs, 1 / 5000, rtol=1e-6)
        assert len(np.unique(ids)) == 64


def test_a_failed_score_no_longer_counts_once_it_is_set_anew():
    whole = update(init(np.ones(70, np.float32)), np.int32([69]), np.float32([np.nan]))
    assert sum_tree.total(whole) == 69
    assert sum_tree.total(update(whole, np.int32([69]), np.float32([5]))) == 74


@pytest.mark.parametrize("constant", [0.0, 1e-3])
def test_draw_probs_are_the_closed_form_in_float64(constant):
    scores = 10 ** np.random.default_rng(3).uniform(-12, 12, 10_000).astype(np.float32)
    ids, draw_probs, _ = sample(KEY, init(scores), 2048, constant)
    exact = exact_probs(scores, np.float32(constant))
    np.testing.assert_allclose(draw_probs, exact[np.asarray(ids)], rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num", [1, 100])
def test_ids_are_int32_ascending_and_in_range(size, num):
    ids, draw_probs, raw = sample(KEY, init(six_decades(size)), num, 0.1)
    assert (ids.dtype, ids.shape) == (jnp.int32, (num,))
    assert (draw_probs.dtype, raw.dtype) == (jnp.float32, jnp.float32)
    assert draw_probs.shape == raw.shape == (num,)
    assert np.all(np.diff(ids) >= 0) and ids[0] >= 0 and ids[-1] < size


@pytest.mark.slow
def test_sampling_and_updating_are_traced_once():
    traces = []

    @jax.jit
    def step(key, whole, constant):
        traces.append(0)
        ids, _, scores, _ = sum_tree.sample(key, whole, 16, constant)
        return sum_tree.update(whole, ids, scores + 1)

    whole = init(six_decades(5000))
    for seed in range(4):
        whole = step(jax.random.key(seed), whole, jnp.float32(seed))
    assert len(traces) == 1


# Sums


def assert_sums(whole, record, ulps):
    """Leaves are those of the record, bit for bit; sums are its sums, to so many float32 ulp."""
    size = len(record)
    assert whole.size == size
    leaves = np.asarray(whole.levels[0]).ravel()
    np.testing.assert_array_equal(leaves[:size].view(np.int32), record.view(np.int32))
    for height, level in enumerate(whole.levels):
        sums = np.zeros(level.size * sum_tree.FANOUT**height)
        sums[:size] = record
        sums = sums.reshape(-1, sum_tree.FANOUT**height).sum(axis=1)
        error = np.abs(np.asarray(level, np.float64).ravel() - sums)
        assert np.max(error / np.spacing(np.maximum(sums, 1e-37).astype(np.float32))) <= ulps
    *lower, root = (level.shape for level in whole.levels)
    assert root[0] <= sum_tree.ROOT and all(rows > sum_tree.ROOT for rows, _ in lower)
    assert {fan for _, fan in [*lower, root]} == {sum_tree.FANOUT}


@pytest.mark.parametrize("size", SIZES)
def test_a_new_tree_holds_the_scores_and_their_sums(size):
    scores = six_decades(size)
    assert_sums(init(scores), scores, ulps=8)
    assert_sums(init(np.ones(size, np.float32)), np.ones(size, np.float32), ulps=0)


def after_updates(size, values, seed):
    """The tree and a NumPy record of it after updates with `values` [steps, n] of random ids."""
    steps, num = values.shape
    ids = np.random.default_rng(seed).integers(0, size, (steps, num), np.int32)
    record = np.ones(size, np.float32)
    for row, new in zip(ids, values, strict=True):
        record[row] = 0
        np.maximum.at(record, row, new)

    def run(whole, ids, values):
        return jax.lax.scan(lambda t, x: (sum_tree.update(t, *x), None), whole, (ids, values))[0]

    run = jax.jit(run, compiler_options=OPTIMISED)
    return run(init(np.ones(size, np.float32)), ids, values), record


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 100, 20_000, 300_000])
def test_sums_are_exact_after_a_million_updates_over_many_decades(size):
    values = 10 ** np.random.default_rng(size).uniform(-15, 14, (8000, 128))
    values[np.random.default_rng(0).uniform(size=values.shape) < 0.1] = 0
    assert_sums(*after_updates(size, values.astype(np.float32), seed=1), ulps=8)


def test_sums_of_whole_numbers_are_equal_after_a_million_updates():
    values = np.random.default_rng(0).integers(0, 500, (8000, 128)).astype(np.float32)
    assert_sums(*after_updates(20_000, values, seed=2), ulps=0)


def test_of_an_id_that_occurs_several_times_the_largest_score_counts():
    ids = np.int32([7, 99, 7, 7, 64, 99, 50])
    scores = np.float32([5, np.nan, 9, 6, np.nan, 0.5, 0.25])  # less than the score before, too
    whole = update(init(np.ones(100, np.float32)), ids, scores)
    record = np.ones(100, np.float32)
    record[[7, 99, 64, 50]] = 9, 0.5, 0, 0.25
    assert_sums(whole, record, ulps=0)


def test_an_update_leaves_the_scores_of_all_others():
    scores = six_decades(5000)
    whole = update(init(scores), np.int32([4999, 0]), np.float32([2, 3]))
    scores[[4999, 0]] = 2, 3
    assert_sums(whole, scores, ulps=8)
