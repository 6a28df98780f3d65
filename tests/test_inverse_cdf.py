"""One level of a draw: inverse CDF against NumPy in float64, and systematic draws of children."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial, assert_mean, six_decades
from scipy import stats

from isjax.resampling import Ranks, at_root, draw_children, invert_cdf

BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
EDGES = np.array([0, np.finfo(np.float32).tiny, 2**-24, 0.5, 1 - 2**-23, BELOW_ONE, 1], np.float32)

invert = jax.jit(invert_cdf)


def inverse(masses, points):
    """NumPy's, in float64."""
    cdf = np.cumsum(np.asarray(masses, np.float64))
    return np.searchsorted(cdf / cdf[-1], points, side="right")


def ranks_of(nodes):
    """Ranks of draws among those of their nodes, from the ascending numbers of the nodes."""
    first = np.searchsorted(nodes, nodes)
    count = np.searchsorted(nodes, nodes, side="right") - first
    return Ranks(jnp.int32(np.arange(len(nodes)) - first), jnp.int32(count))


@jax.jit
def children(keys, ranks, masses):
    """[trials, num] children drawn, and their ranks."""

    def draw(key):
        return draw_children(jax.random.uniform(key, ranks.rank.shape), ranks, masses)

    return jax.vmap(draw)(keys)


def sparse_rows(num, width, seed):
    """Rows of many decades, most items without mass, at least one with some."""
    rng = np.random.default_rng(seed)
    masses = 10 ** rng.uniform(-12, 12, (num, width)) * (rng.uniform(size=(num, width)) < 0.2)
    masses[np.arange(num), rng.integers(width, size=num)] = 1.0
    return masses.astype(np.float32)


# The inverse CDF


@pytest.mark.parametrize("width", [1, 2, 3, 64, 128, 1000])
def test_an_item_of_zero_mass_is_never_drawn_at_any_point(width):
    masses = sparse_rows(300, width, seed=width)
    rng = np.random.default_rng(0)
    for points in (*EDGES, *rng.uniform(size=8)):
        index = np.asarray(invert(masses, jnp.full(300, points, jnp.float32)))
        assert index.min() >= 0 and index.max() < width
        assert np.all(masses[np.arange(300), index] > 0)


@pytest.mark.parametrize("point", EDGES)
@pytest.mark.parametrize("only", [0, 1, 31, 63])
@pytest.mark.parametrize("mass", [1e-37, 1.0, 1e37])
def test_the_only_item_of_mass_is_drawn_at_every_point(point, only, mass):
    masses = np.zeros((1, 64), np.float32)
    masses[0, only] = mass
    assert invert(masses, jnp.float32([point])) == only


def test_point_zero_draws_the_first_item_of_mass_and_the_last_point_the_last():
    masses = np.float32([[0, 0, 1, 2, 0, 3, 0]])
    np.testing.assert_array_equal(invert(masses, jnp.float32([0, BELOW_ONE, 1])), [2, 5, 5])


def test_a_share_holds_its_lower_edge_and_not_its_upper_one():
    masses = np.float32([[1, 0, 2, 1]])
    points = np.float32([0.25, 0.75])
    edges = np.stack([np.nextafter(points, np.float32(0)), points], axis=1).ravel()
    np.testing.assert_array_equal(invert(masses, edges), [0, 2, 2, 3])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 64, 1000])
def test_draws_agree_with_numpys_in_float64(width):
    masses = six_decades(width, seed=width)
    points = np.random.default_rng(1).uniform(size=100_000).astype(np.float32)
    index, want = np.asarray(invert(masses[None], points)), inverse(masses, points)
    assert (index.dtype, index.shape) == (np.int32, (100_000,))
    # They may differ only where float32's sum cannot tell on which side of an edge a point is.
    cdf = np.cumsum(masses.astype(np.float64)) / masses.sum(dtype=np.float64)
    other = index != want
    edge = np.minimum(index, want)[other]
    assert np.all(np.abs(cdf[edge] - points[other]) < 1e-5)
    assert np.mean(other) < 1e-5 * width


@pytest.mark.parametrize("width", [1, 7, 64])
def test_draws_of_whole_numbers_are_exactly_numpys(width):
    masses = np.random.default_rng(width).integers(0, 9, (500, width))
    masses[:, -1] += 2**14 - masses.sum(axis=1)  # of a sum by which scaling is exact
    points = np.random.default_rng(2).integers(0, 2**20, 500) / np.float32(2**20)
    want = [inverse(*pair) for pair in zip(masses, points, strict=True)]
    np.testing.assert_array_equal(invert(jnp.float32(masses), points), want)


def test_one_row_for_all_points_is_as_good_as_a_copy_for_each():
    masses = six_decades(50)[None]
    points = np.random.default_rng(0).uniform(size=1000).astype(np.float32)
    copies = np.repeat(masses, 1000, axis=0)
    np.testing.assert_array_equal(invert(masses, points), invert(copies, points))
    keys = jax.random.split(jax.random.key(0), 3)
    child, draws = children(keys, at_root(1000), masses)
    others, other_draws = children(keys, at_root(1000), copies)
    np.testing.assert_array_equal(child, others)
    np.testing.assert_array_equal(draws, other_draws)


# Draws of children


@pytest.mark.slow
@pytest.mark.parametrize("width", [20, 128])
def test_a_node_drawn_n_times_draws_each_child_floor_or_ceil_of_its_share(width):
    rng = np.random.default_rng(0)
    times = np.array([1, 2, 3, 7, 40, 150, 300])
    draws = ranks_of(np.repeat(np.arange(len(times)), times))
    shape = len(times), width
    masses = rng.exponential(size=shape) * (rng.uniform(size=shape) < 0.7)
    share = masses / masses.sum(axis=1, keepdims=True)
    of_each = jnp.asarray(np.repeat(masses, times, axis=0), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 500)
    child = np.asarray(children(keys, draws, of_each)[0])
    assert child.dtype == np.int32
    spans = zip(np.cumsum(times) - times, np.cumsum(times), strict=True)
    for node, (start, stop) in enumerate(spans):
        own = child[:, start:stop]
        assert np.all(np.diff(own, axis=1) >= 0)
        counts = np.sum(own[:, :, None] == np.arange(width), axis=1)
        expected = times[node] * share[node]
        assert np.all(counts >= np.floor(expected - 1e-4))
        assert np.all(counts <= np.ceil(expected + 1e-4))
        often = expected % 1 * (1 - expected % 1) * 500 > 10
        if often.any():
            assert_mean(counts[:, often], expected[often])


def test_children_are_drawn_in_proportion_to_their_masses():
    draws = ranks_of(np.array([3, 3, 8]))
    masses = np.float32([[1, 2, 3, 4], [1, 2, 3, 4], [5, 0, 0, 15]])
    keys = jax.random.split(jax.random.key(1), 40_000)
    child = np.asarray(children(keys, draws, masses)[0])
    for columns, probs in (([0, 1], masses[0] / 10), ([2], masses[2] / 20)):
        hits = np.bincount(child[:, columns].ravel(), minlength=4)
        assert_binomial(hits, hits.sum(), probs)


def test_different_nodes_are_drawn_from_independently():
    masses = jnp.ones((2, 4))
    keys = jax.random.split(jax.random.key(2), 20_000)
    draws = ranks_of(np.array([0, 1]))
    child = np.asarray(children(keys, draws, masses)[0])
    pairs = np.bincount(child[:, 0] * 4 + child[:, 1], minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-5


@pytest.mark.parametrize("mass", [1e-30, 1.0, 1e30])
def test_rows_of_one_child_draw_it(mass):
    draws = ranks_of(np.array([0, 0, 4, 9]))
    for rows in (1, 4):
        child, below = draw_children(jnp.zeros(4), draws, jnp.full((rows, 1), mass))
        np.testing.assert_array_equal(child, [0, 0, 0, 0])
        np.testing.assert_array_equal(below, draws)


def test_children_without_mass_are_never_drawn_however_often_their_node_is():
    masses = jnp.asarray([[0, 1e-6, 0, 1, 0, 1e6, 0]], jnp.float32)
    keys = jax.random.split(jax.random.key(3), 300)
    child, _ = children(keys, at_root(512), masses)
    assert set(np.unique(child)) <= {1, 3, 5}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 3, 64, 128, 1000])
def test_the_draws_of_the_children_are_counted_as_they_were_drawn(width):
    """A level below relies on it: rank and number, recounted from the children themselves."""
    rng = np.random.default_rng(width)
    nodes = np.sort(rng.integers(0, 40, 500))
    masses = sparse_rows(40, width, seed=width)[nodes]
    keys = jax.random.split(jax.random.key(4), 8)
    child, draws = children(keys, ranks_of(nodes), masses)
    for row, rank, count in zip(np.asarray(child), *map(np.asarray, draws), strict=True):
        counted = ranks_of(nodes * width + row)
        np.testing.assert_array_equal(rank, counted.rank)
        np.testing.assert_array_equal(count, counted.count)


@pytest.mark.slow
@pytest.mark.parametrize("point", EDGES[:-1])
def test_a_shift_at_either_end_draws_as_inverse_cdf_of_its_points_does(point):
    """Whole numbers of a sum that divides by the draws: floating point is exact."""
    masses = np.float32([[3, 0, 1, 0, 4, 8]])
    child, draws = draw_children(jnp.full(32, point, jnp.float32), at_root(32), masses)
    want = inverse(masses[0], (np.arange(32) + np.float64(point)) / 32)
    np.testing.assert_array_equal(child, want)
    np.testing.assert_array_equal(draws, ranks_of(want))


@pytest.mark.slow
def test_a_level_is_traced_once_and_jit_draws_the_same():
    traces = []

    def traced(*args):
        traces.append(0)
        return draw_children(*args)

    step, draws, masses = jax.jit(traced), ranks_of(np.array([0, 0, 2])), jnp.ones((3, 5))
    for seed in range(3):
        points = jax.random.uniform(jax.random.key(seed), (3,))
        for jitted, plain in zip(
            jax.tree.leaves(step(points, draws, masses)),
            jax.tree.leaves(draw_children(points, draws, masses)),
            strict=True,
        ):
            np.testing.assert_array_equal(jitted, plain)
    assert len(traces) == 1
