"""Points of a domain: uniform by the chi-squared test, within bounds, and refused if unsound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SIGMAS, assert_mean
from scipy import stats

from isjax.data import domain

LOW, HIGH = [-1.0, 2.0], [1.0, 5.0]
NUM = 12_000


def points_of(sample, num=NUM, seed=0):
    return np.asarray(sample(jax.random.key(seed), num))


def assert_uniform(counts):
    """Checks counts of equal expectation by the chi-squared test, at the tail of 5 sigma."""
    assert stats.chisquare(counts).pvalue > stats.norm.sf(SIGMAS)


def test_a_box_is_filled_uniformly():
    points = points_of(domain.box(LOW, HIGH))
    assert points.shape == (NUM, 2)
    assert np.all(points >= LOW) and np.all(points < HIGH)
    assert_uniform(np.histogram2d(*points.T, bins=6, range=[[-1, 1], [2, 5]])[0].ravel())


def test_a_flat_side_stays_flat():
    points = points_of(domain.box([0.0, 3.0], [1.0, 3.0]), 10)
    assert np.all(points[:, 1] == 3.0)


def test_points_of_the_boundary_lie_on_the_faces_in_proportion_to_their_area():
    low, high = np.array([0.0, -1.0, 0.0]), np.array([1.0, 1.0, 4.0])
    points = points_of(domain.boundary(low, high))
    on_face = np.concatenate([points == low[None, :], points == high[None, :]], axis=1)
    assert np.all(on_face.sum(axis=1) == 1)
    area = np.array([8.0, 4.0, 2.0, 8.0, 4.0, 2.0])
    assert_mean(on_face, area / area.sum())
    inside = points[on_face[:, 0]]  # the face x = 0, of sides 2 and 4
    assert_uniform(np.histogram2d(*inside.T[1:], bins=4, range=[[-1, 1], [0, 4]])[0].ravel())


def test_the_boundary_of_an_interval_is_its_two_ends():
    points = points_of(domain.boundary([-1.0], [3.0]))
    assert set(np.unique(points)) == {-1.0, 3.0}
    assert_mean(points == 3.0, 0.5)


def test_a_time_slab_puts_time_first_and_independent_of_space():
    points = points_of(domain.time_slab(2.0, 3.0, domain.box([0.0], [1.0])))
    assert points.shape == (NUM, 2)
    assert_uniform(np.histogram2d(*points.T, bins=6, range=[[2, 3], [0, 1]])[0].ravel())


def test_a_time_slab_of_no_length_holds_an_initial_condition():
    points = points_of(domain.time_slab(2.0, 2.0, domain.boundary(LOW, HIGH)), 10)
    assert points.shape == (10, 3)
    assert np.all(points[:, 0] == 2.0)


def test_a_point_lies_in_its_cell_uniformly_and_ids_are_in_c_order():
    ids = np.repeat(np.arange(6), NUM // 6)
    points = np.asarray(domain.cells(LOW, HIGH, (2, 3))(jax.random.key(0), jnp.asarray(ids)))
    inside = points - np.stack(
        [np.array([-1.0, 0.0])[ids // 3], np.array([2.0, 3.0, 4.0])[ids % 3]], 1
    )
    assert np.all(inside >= 0) and np.all(inside <= 1)
    assert_uniform(np.histogram2d(*inside.T, bins=6, range=[[0, 1], [0, 1]])[0].ravel())


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample",
    [
        lambda: domain.box(LOW, HIGH),
        lambda: domain.boundary(LOW, HIGH),
        lambda: domain.time_slab(0.0, 1.0, domain.box([0.0], [1.0])),
        lambda: lambda key, num: domain.cells(LOW, HIGH, (2, 3))(key, jnp.arange(num) % 6),
    ],
)
def test_points_have_the_default_float_type(sample):
    assert sample()(jax.random.key(0), 4).dtype == jnp.float32
    with jax.enable_x64(True):
        assert sample()(jax.random.key(0), 4).dtype == jnp.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: domain.box([0.0], [1.0, 2.0]), r"box: corners are .*one length"),
        (lambda: domain.box(0.0, 1.0), r"box: corners are 0.0 and 1.0"),
        (lambda: domain.box([2.0], [1.0]), "the lower one first"),
        (lambda: domain.box([0.0], [np.inf]), "finite"),
        (lambda: domain.boundary([0.0, 1.0], [1.0, 1.0]), "flat; give each side a length"),
        (lambda: domain.time_slab(1.0, 0.0, domain.box([0.0], [1.0])), "the lower one first"),
        (lambda: domain.cells(LOW, HIGH, (4,)), r"shape is \(4,\) for a box of 2 coordinates"),
        (lambda: domain.cells(LOW, HIGH, (4, 0)), "one number of 1 or more"),
        (lambda: domain.cells(LOW, HIGH, (2**16, 2**16)), "ids are int32"),
    ],
)
def test_an_unsound_domain_is_refused_with_its_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
