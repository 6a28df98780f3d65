"""Draws against exact probabilities: by counts, within 5 sigma or Poisson bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMISED, assert_binomial, assert_mean, draws, probabilities, six_decades
from scipy import stats

from isjax import resampling
from isjax.resampling import (
    categorical,
    count_draws,
    invert_cdf,
    presample,
    systematic,
    top_k,
    without_replacement,
)
from isjax.weights import importance_weights

INVERSE_CDF = [systematic, categorical]
UNBIASED = [*INVERSE_CDF, without_replacement]
ALL = [*UNBIASED, top_k]
POOLS = [(8, 4, 40_000), (8, 8, 40_000), (64, 16, 20_000), (4096, 128, 1500)]
OFTEN = 100  # a binomial count of this variance is normal enough for 5 sigma
BELOW_ONE = np.float32(1 - 2**-24)

unbiased = pytest.mark.parametrize("resample", UNBIASED)
inverse_cdf = pytest.mark.parametrize("resample", INVERSE_CDF)
every = pytest.mark.parametrize("resample", ALL)
pools = pytest.mark.parametrize(("size", "num", "trials"), POOLS)


# Unbiasedness


def race_inclusion(probs, num, rng):
    """P(item is among the first `num` to finish), item i finishing at Exp(p_i): Gumbel top-k.

    Averaged over the others' finish, given which it is 1 - exp(-p t): precise for rare items too.
    """
    size = len(probs)
    if num == size:
        return np.ones(size)
    finish = rng.exponential(size=(2_000_000 // size, size)) / probs
    ordered = np.partition(finish, (num - 1, num), axis=1)
    others = np.where(finish <= ordered[:, num - 1, None], ordered[:, num, None], 0)
    others = np.where(others == 0, ordered[:, num - 1, None], others)
    return -np.expm1(-probs * others).mean(axis=0)


def two_level_variance(probs, num):
    """Of an item's count in a systematic draw: of its block's count, and of its own given that."""
    width = int(np.ceil(np.sqrt(len(probs))))
    blocks = np.pad(probs, (0, -len(probs) % width)).reshape(-1, width)
    mean = num * blocks.sum(axis=1, keepdims=True)
    share = blocks / blocks.sum(axis=1, keepdims=True)
    more = mean % 1  # the probability that the block is drawn once more than at least
    fractions = [(np.floor(mean) + extra) * share % 1 for extra in (0, 1)]
    own = [fraction * (1 - fraction) for fraction in fractions]
    variance = share**2 * more * (1 - more) + (1 - more) * own[0] + more * own[1]
    return variance.ravel()[: len(probs)]


@functools.cache
def expected_hits(resample, size, num, trials):
    """Mean and variance of each item's hits over all trials."""
    probs = pool(size)
    if resample is systematic:
        return trials * num * probs, trials * two_level_variance(probs, num)
    if resample is categorical:
        return trials * num * probs, trials * num * probs * (1 - probs)
    inclusion = race_inclusion(probs, num, np.random.default_rng(11))
    return trials * inclusion, trials * inclusion * (1 - inclusion)


@functools.cache
def tally(resample, size, num, trials):
    """Per item: hits, their total weight at k = 1, and its total square."""
    probs = pool(size)
    index, draw_probs = draws(resample, jnp.asarray(probs, jnp.float32), num, trials)
    assert index.min() >= 0 and index.max() < len(probs)
    weights = np.asarray(importance_weights(jnp.asarray(draw_probs), len(probs)), np.float64)
    sums = [None, weights.ravel(), weights.ravel() ** 2]
    return [np.bincount(index.ravel(), each, len(probs)).astype(np.float64) for each in sums]


def pool(size):
    """Probabilities, normalised in float64 from the float32 that is drawn from."""
    return np.asarray(probabilities(six_decades(size, seed=size)), np.float64)


@pytest.mark.slow
@unbiased
@pools
def test_each_item_weighs_one_bth_on_average(resample, size, num, trials):
    probs = pool(size)
    hits, total, square = tally(resample, size, num, trials)
    _, variance = expected_hits(resample, size, num, trials)
    if resample is not without_replacement:
        square_error = variance / (size * probs) ** 2
    else:
        square_error = square - total**2 / trials
    often = variance >= OFTEN
    assert often.any() or num == size
    error = np.sqrt(np.where(often, square_error, np.inf)) / (trials * num)
    z = (total / (trials * num) - 1 / size) / error
    assert np.max(np.abs(z)) < 5
    # Every item, however rare, in one bounded statistic: sum_i p_i, which is one.
    mass, spread = np.sum(total * probs), np.sqrt(np.sum(square * probs**2))
    assert abs(mass - trials * num / size) < 5 * spread
    assert hits.sum() == trials * num


@unbiased
@pools
def test_rare_items_are_drawn_as_often_as_they_should(resample, size, num, trials):
    hits, _, _ = tally(resample, size, num, trials)
    rate, _ = expected_hits(resample, size, num, trials)
    events = hits
    if resample is without_replacement:  # or as often left out
        events = np.where(rate > trials / 2, trials - hits, hits)
        rate = np.minimum(rate, trials - rate)
    rare = rate < OFTEN
    assert not rare.any() or np.all(events[rare] <= stats.poisson.isf(1e-6 / size, rate[rare]))
    low, high = stats.poisson.ppf([3e-7, 1 - 3e-7], rate[rare].sum())
    assert low <= events[rare].sum() <= high
    assert np.all(events >= 0)


@unbiased
def test_the_weighted_mean_of_anything_is_the_pools_mean(resample):
    probs, values = pool(64), np.random.default_rng(5).normal(3, 1, 64)
    index, draw_probs = draws(resample, jnp.asarray(probs**0.3 / np.sum(probs**0.3)), 16, 20_000)
    assert_mean(np.mean(values[index] / (64 * draw_probs), axis=1), values.mean())


# Contract


@pytest.mark.slow
@every
@pytest.mark.parametrize(("size", "num"), [(8, 4), (8, 8), (100, 7), (4096, 128)])
def test_jit_draws_the_same_and_types_are_as_promised(resample, size, num):
    probs, jitted = probabilities(six_decades(size)), jax.jit(resample, static_argnums=2)
    for seed in range(2):
        key = jax.random.key(seed)
        index, draw_probs = resample(key, probs, num)
        jit_index, jit_probs = jitted(key, probs, num)
        assert (index.shape, index.dtype) == ((num,), jnp.int32)
        assert (draw_probs.shape, draw_probs.dtype) == ((num,), jnp.float32)
        np.testing.assert_array_equal(index, jit_index)
        np.testing.assert_allclose(draw_probs, jit_probs, rtol=1e-5)


@pytest.mark.slow
@inverse_cdf
@pytest.mark.parametrize("size", [5, 70_000])
def test_draw_probs_are_the_probabilities_and_num_may_exceed_the_pool(resample, size):
    probs = probabilities(six_decades(size))
    index, draw_probs = draws(resample, probs, 40, 10)
    np.testing.assert_array_equal(draw_probs, np.asarray(probs, np.float64)[index])


@pytest.mark.parametrize("resample", [without_replacement, top_k])
def test_more_distinct_items_than_the_pool_has_are_refused(resample):
    with pytest.raises(
        ValueError, match=rf"{resample.__name__}.* 9 distinct examples from a pool of 8"
    ):
        resample(jax.random.key(0), jnp.full((8,), 0.125), 9)


@pytest.mark.slow
@pytest.mark.parametrize("resample", [without_replacement, top_k])
@pools
def test_items_are_distinct_where_they_must_be(resample, size, num, trials):
    index, _ = draws(resample, probabilities(six_decades(size)), num, min(trials, 500))
    ordered = np.sort(index, axis=1)
    assert np.all(ordered[:, 1:] > ordered[:, :-1])


@pytest.mark.parametrize(("size", "num"), [(8, 4), (8, 8), (4096, 128)])
def test_top_k_takes_the_most_probable_items_at_weight_one_whatever_the_key(size, num):
    probs = probabilities(six_decades(size))
    index, draw_probs = draws(top_k, probs, num, 20)
    assert set(index[0]) == set(np.argsort(np.asarray(probs))[size - num :])
    np.testing.assert_array_equal(index, np.broadcast_to(index[0], index.shape))
    weights = importance_weights(jnp.asarray(draw_probs), size)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_without_replacement_takes_all_that_has_mass_when_that_is_too_little():
    probs = jnp.asarray([0, 0.7, 0, 0, 0.3, 0, 0, 0], jnp.float32)
    index, draw_probs = draws(without_replacement, probs, 5, 200)
    assert np.all(np.any(index == 1, axis=1)) and np.all(np.any(index == 4, axis=1))
    np.testing.assert_allclose(draw_probs, 1 / 5, rtol=1e-6)


def test_without_replacement_knows_that_the_last_items_with_mass_are_certain():
    probs = jnp.asarray([0, 0.7, 0, 0, 0.299999, 1e-6, 0, 0], jnp.float32)
    index, draw_probs = draws(without_replacement, probs, 3, 200)
    np.testing.assert_array_equal(np.sort(index, axis=1), np.broadcast_to([1, 4, 5], (200, 3)))
    np.testing.assert_allclose(draw_probs, 1 / 3, rtol=1e-6)


# Zero mass and rounding


def zeros_at(where, size):
    scores = six_decades(size, seed=1)
    part = {
        "first": slice(0, size // 3),
        "last": slice(-(size // 3), None),
        "middle": slice(size // 3, 2 * size // 3),
        "every other": slice(0, None, 2),
    }
    if where == "mostly":
        keep = np.random.default_rng(2).choice(size, size // 8, replace=False)
        return np.where(np.isin(np.arange(size), keep), scores, 0)
    scores[part[where]] = 0
    return scores


@unbiased
@pytest.mark.parametrize("where", ["first", "last", "middle", "every other", "mostly"])
@pytest.mark.parametrize(("size", "num", "trials"), [(64, 4, 5000), (4096, 128, 100)])
def test_zero_mass_is_never_drawn(resample, where, size, num, trials):
    probs = probabilities(zeros_at(where, size))
    index, draw_probs = draws(resample, probs, num, trials)
    assert np.all(np.asarray(probs)[index] > 0)
    assert np.all(draw_probs > 0)


@pytest.mark.slow
@inverse_cdf
@pytest.mark.parametrize("where", ["first", "last", "middle", "every other", "mostly"])
def test_zero_mass_is_never_drawn_in_two_levels(resample, where):
    probs = probabilities(zeros_at(where, 65_537))
    index, _ = draws(resample, probs, 1024, 6)
    assert index.min() >= 0 and index.max() < 65_537
    assert np.all(np.asarray(probs)[index] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["first", "last", "middle", "every other", "mostly"])
@pytest.mark.parametrize("seed", [0, 1])
def test_zero_mass_is_never_drawn_where_a_float32_cumulative_sum_falls(where, seed):
    scores = np.random.default_rng(seed).exponential(size=60_000)
    scores = np.where(zeros_at(where, 60_000) > 0, scores, 0)
    probs = probabilities(scores)
    index, _ = draws(systematic, probs, 1 << 14, 4)
    assert index.max() < 60_000
    assert np.all(np.asarray(probs)[index] > 0)


@pytest.mark.slow
@inverse_cdf
@pytest.mark.parametrize("size", [3, 60_000, 70_000])
def test_points_at_either_end_fall_on_items_with_mass(resample, size, monkeypatch):
    scores = six_decades(size)
    scores[0] = scores[-1] = 0
    probs = probabilities(scores)

    @jax.jit
    def draw(point):
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape=(), dtype=None: jnp.full(shape, point)
        )
        return resample(jax.random.key(0), probs, 1000)[0]

    for uniform in (0.0, BELOW_ONE, 1.0):
        index = draw(jnp.float32(uniform))
        assert index.min() > 0 and index.max() < size - 1, f"at {uniform}"


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 128, 1000])
@pytest.mark.parametrize("size", [1, 8, 64, 4096])
def test_systematic_draws_each_block_and_each_item_in_it_floor_or_ceil_of_its_share(size, num):
    probs = np.asarray(probabilities(six_decades(size, seed=num)), np.float64)
    index, _ = draws(systematic, jnp.asarray(probs, jnp.float32), num, 30)
    counts = np.stack([np.bincount(row, minlength=size) for row in index])
    width = int(np.ceil(np.sqrt(size)))
    padding = -size % width
    blocks = np.pad(probs, (0, padding)).reshape(-1, width)
    counts = np.pad(counts, ((0, 0), (0, padding))).reshape(30, -1, width)
    mass, number = blocks.sum(axis=1), counts.sum(axis=2)
    slack = 2e-6 * num  # float32 may move a boundary by so much
    assert np.all(number >= np.floor(num * mass - slack))
    assert np.all(number <= np.ceil(num * mass + slack))
    share = number[:, :, None] * (blocks / mass[:, None])
    assert np.all(counts >= np.floor(share - slack))
    assert np.all(counts <= np.ceil(share + slack))


# In distribution


def test_categorical_counts_pass_a_chi_square_test():
    probs = np.arange(1, 41) / 820
    index, _ = draws(categorical, jnp.asarray(probs, jnp.float32), 64, 2000)
    hits = np.bincount(index.ravel(), minlength=40)
    assert stats.chisquare(hits, 64 * 2000 * probs).pvalue > 1e-5


@pytest.mark.parametrize(("one", "other"), [(0, 1), (3, 7), (0, 15)])
def test_categorical_draws_are_independent_of_each_other(one, other):
    probs = np.arange(1, 7) / 21
    index, _ = draws(categorical, jnp.asarray(probs, jnp.float32), 16, 20_000)
    pairs = np.bincount(index[:, one] * 6 + index[:, other], minlength=36)
    assert stats.chisquare(pairs, 20_000 * np.outer(probs, probs).ravel()).pvalue > 1e-5


def test_categorical_counts_have_the_variance_of_a_multinomial():
    probs, num = np.arange(1, 7) / 21, 32
    index, _ = draws(categorical, jnp.asarray(probs, jnp.float32), num, 20_000)
    counts = np.stack([np.bincount(row, minlength=6) for row in index]) - num * probs
    products = counts[:, :, None] * counts[:, None, :]
    assert_mean(products, num * (np.diag(probs) - np.outer(probs, probs)))


@pytest.mark.slow
@pytest.mark.parametrize("num", [16, 64])
def test_systematic_draws_vary_no_more_than_categorical_ones(num):
    # In one order of the pool the shift may chance upon a pattern; over orders it gains.
    rng, spread = np.random.default_rng(1), {resample: [] for resample in INVERSE_CDF}
    values, weights = rng.normal(size=64), six_decades(64) ** 0.3
    for _ in range(20):
        order = rng.permutation(64)
        probs = probabilities(weights[order])
        for resample in INVERSE_CDF:
            index, draw_probs = draws(resample, probs, num, 1000)
            mean = np.mean(values[order][index] / (64 * draw_probs), axis=1)
            spread[resample].append(np.var(mean))
    probs = weights / weights.sum()
    exact = (np.sum(values**2 / probs) / 64**2 - values.mean() ** 2) / num
    assert np.mean(spread[categorical]) == pytest.approx(exact, rel=0.05)
    assert np.mean(spread[systematic]) < exact


# Large pools

LARGE = [1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)]


def large_pool(size):
    """Exponential scores, a twentieth of them zero."""
    rng = np.random.default_rng(size)
    return probabilities(rng.exponential(size=size) * (rng.uniform(size=size) > 0.05))


@pytest.fixture(scope="module", params=LARGE)
def large(request):
    probs = large_pool(request.param)
    exact = np.asarray(probs, np.float64)
    by_score = np.argsort(exact)
    return probs, exact / exact.sum(), by_score


def masses_and_counts(exact, index, order, groups):
    """Mass of each of `groups` equal parts of the items in that order, and its draws."""
    part = np.empty(len(exact), np.int64)
    part[order] = np.arange(len(exact)) * groups // len(exact)
    counts = np.bincount(part[index], minlength=groups)
    return np.bincount(part, exact, groups), counts


@pytest.mark.slow
@inverse_cdf
def test_large_pools_are_drawn_from_in_proportion(resample, large):
    probs, exact, by_score = large
    draw = jax.jit(resample, static_argnums=2, compiler_options=OPTIMISED)
    index = [np.asarray(draw(jax.random.key(seed), probs, 1024)[0]) for seed in range(12)]
    index = np.concatenate(index)
    assert index.min() >= 0 and index.max() < len(exact)
    assert np.all(exact[index] > 0)
    for order, groups in ((np.arange(len(exact)), 50), (by_score, 20)):
        mass, counts = masses_and_counts(exact, index, order, groups)
        assert_binomial(counts, index.size, mass)
        assert np.all(counts[mass == 0] == 0)


@pytest.mark.slow
@inverse_cdf
def test_large_pools_tell_the_items_of_one_block_apart(resample):
    scores = np.zeros(1_000_000)
    block = np.random.default_rng(0).exponential(size=1000)
    scores[500_000:501_000] = block
    index, _ = draws(resample, probabilities(scores), 1024, 32)
    assert index.min() >= 500_000 and index.max() < 501_000
    rate = index.size * block / block.sum()
    hits = np.bincount(index.ravel() - 500_000, minlength=1000)
    often = rate >= 5
    statistic = np.sum((hits[often] - rate[often]) ** 2 / rate[often])
    assert stats.chi2.sf(statistic, often.sum()) > 1e-5
    low, high = stats.poisson.ppf([1e-6, 1 - 1e-6], rate[~often].sum())
    assert low <= hits[~often].sum() <= high


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.slow
def test_hardly_an_item_of_a_block_is_beyond_the_reach_of_a_float32_number(size):
    width = int(np.sqrt(size - 1)) + 1
    scores = np.random.default_rng(0).exponential(size=width) / size  # as in a pool of that size
    every_uniform = jnp.arange(1 << 23, dtype=jnp.float32) / (1 << 23)
    masses = jnp.asarray(scores, jnp.float32)
    points = every_uniform.reshape(-1, 1 << 13)  # in turn: all at once need more memory
    index = np.asarray(jax.lax.map(lambda some: invert_cdf(masses[None], some), points))
    reached = np.bincount(index.ravel(), minlength=width) / (1 << 23)
    assert np.mean(reached == 0) <= 1e-3
    assert np.abs(reached - scores / scores.sum()).sum() / 2 < 1e-4


# Counts of draws, whose number may be traced

count = jax.jit(count_draws)


@pytest.mark.parametrize("size", [1, 3, 1000, 20_000])
@pytest.mark.parametrize("where", ["first", "middle", "mostly"])
def test_counts_are_those_of_systematic_draws(size, where):
    """At each level floor or ceil of the expected number, and none without mass."""
    weights = zeros_at(where, size) * six_decades(size) if size > 3 else six_decades(size)
    exact = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    for num in (1, size // 3 + 1, 5 * size):
        counts = np.asarray(count(jax.random.key(num), jnp.float32(weights), jnp.int32(num)))
        assert counts.sum() == num and counts.min() >= 0 and counts.dtype == np.int32
        assert np.all(counts[exact == 0] == 0)
        assert np.all(np.abs(counts - num * exact) < (2 if size > 1000 else 1) + 1e-5 * num * exact)


def test_counts_have_the_expected_mean():
    weights = jnp.float32([0.0, 3.0, 0.5, 0.0, 1.25, 0.25, 0.0])
    draw = jax.jit(jax.vmap(lambda key: count_draws(key, weights, jnp.int32(3))))
    counts = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    drawn = np.asarray(weights) > 0
    assert_mean(counts[:, drawn], 3 * np.asarray(weights)[drawn] / 5)


# The pool itself

SIZES = [(10, 3), (7, 7), (5, 1), (1, 1), (1000, 64), (101, 100)]


def presamples(num_examples, size, trials):
    keys = jax.random.split(jax.random.key(num_examples), trials)
    ids = jax.jit(jax.vmap(lambda key: presample(key, num_examples, size)))(keys)
    assert ids.dtype == jnp.int32 and ids.shape == (trials, size)
    return np.asarray(ids, np.int64)


@pytest.mark.slow
@pytest.mark.parametrize(("num_examples", "size"), SIZES)
def test_pools_are_distinct_in_range_and_every_id_is_equally_likely(num_examples, size):
    ids = presamples(num_examples, size, 20_000)
    assert ids.min() >= 0 and ids.max() < num_examples
    ids = np.sort(ids, axis=1)
    gaps = np.diff(np.concatenate([ids, ids[:, :1] + num_examples], axis=1), axis=1)
    assert gaps.min() > 0
    assert gaps.max() < 2 * -(-num_examples // size)  # spread evenly over sorted data
    hits = np.bincount(ids.ravel(), minlength=num_examples)
    assert_binomial(hits, 20_000, size / num_examples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_examples", "size"), [(2**31 - 1, 1), (2**31 - 1, 1024), (2**31 - 2, 3), (2**30 + 1, 3)]
)
def test_pools_of_the_largest_data_sets_do_not_overflow(num_examples, size):
    ids = presamples(num_examples, size, 1000)
    assert ids.min() >= 0 and ids.max() < num_examples
    assert np.all(np.diff(np.sort(ids, axis=1), axis=1) > 0)
    first = ids[:, 0] * 16 // num_examples
    assert stats.chisquare(np.bincount(first, minlength=16)).pvalue > 1e-6
    assert_binomial(np.bincount(ids.ravel() * 16 // num_examples, minlength=16), ids.size, 1 / 16)


def test_pools_are_the_same_under_jit_and_differ_between_keys():
    keys = jax.random.split(jax.random.key(0), 2)
    one, other = (presample(key, 50_000, 1024) for key in keys)
    jitted = jax.jit(presample, static_argnums=(1, 2))(keys[0], 50_000, 1024)
    np.testing.assert_array_equal(one, jitted)
    assert np.mean(np.isin(one, other)) < 0.1


@pytest.mark.parametrize(("num_examples", "size"), [(10, 0), (10, -1), (10, 11), (0, 1), (0, 0)])
def test_impossible_pools_are_refused_by_name(num_examples, size):
    with pytest.raises(ValueError, match=rf"pool of {size} .* {num_examples} examples"):
        presample(jax.random.key(0), num_examples, size)


def test_a_pool_of_more_than_there_are_is_refused_for_numpy_sizes_too():
    with pytest.raises(ValueError, match="a pool of 8 cannot be drawn from 5 examples"):
        presample(jax.random.key(0), np.int64(5), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", resampling.__all__)
def test_draws_do_not_depend_on_double_precision(name):
    sizes = (1, 2) if name == "presample" else 2
    draw = jax.jit(getattr(resampling, name), static_argnums=sizes)
    first = 40 if name == "presample" else probabilities(six_decades(40))
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            drawn = draw(jax.random.key(1), first, 8)
            found.append(drawn if name == "presample" else drawn[0])
    np.testing.assert_array_equal(*found)
    assert found[0].dtype == found[1].dtype == jnp.int32


def test_fewer_items_with_mass_than_draws_make_no_nan_on_the_way():
    probs = probabilities([1.0, 1.0, 1.0, 0, 0, 0, 0, 0])
    with jax.debug_nans(True):
        index, draw_probs = resampling.without_replacement(jax.random.key(0), probs, 5)
    assert {0, 1, 2} <= set(index.tolist()) and len(set(index.tolist())) == 5
    np.testing.assert_allclose(draw_probs, 1 / 5)
