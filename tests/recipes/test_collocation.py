"""RAD and R3 against their formulas, computed in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial

from isjax.recipes import collocation

RESIDUALS = np.array([0.1, -0.2, 3.0, -1.0, 0.0, 0.7, -5.0, 0.4], np.float32)
CANDIDATES = jnp.arange(16.0).reshape(8, 2)
TRIALS = 4000


@functools.partial(jax.jit, static_argnums=1)
def places(residuals, num, k, c):
    """Rows of the candidates that RAD draws, [TRIALS, num]."""
    keys = jax.random.split(jax.random.key(0), TRIALS)
    draw = lambda key: collocation.rad(key, CANDIDATES, residuals, num, k, c)  # noqa: E731
    return jax.vmap(draw)(keys)[:, :, 0].astype(int) // 2


@pytest.mark.parametrize(("k", "c"), [(1.0, 1.0), (2.0, 0.0), (0.5, 3.0), (0.0, 1.0)])
def test_rad_draws_by_its_formula(k, c):
    drawn = np.asarray(places(RESIDUALS, 1, k, c))
    power = np.abs(RESIDUALS.astype(np.float64)) ** k
    mass = power / power.mean() + c
    for i, prob in enumerate(mass / mass.sum()):
        assert_binomial(np.sum(drawn == i), TRIALS, prob)


def test_rad_draws_no_candidate_twice():
    drawn = np.sort(np.asarray(places(RESIDUALS, 6, 1.0, 1.0)), axis=1)
    assert np.all(np.diff(drawn, axis=1) > 0)


def test_rad_is_uniform_if_all_residuals_are_zero_and_ignores_those_that_are_not_finite():
    drawn = np.asarray(places(np.zeros(8, np.float32), 1, 1.0, 0.0))
    for i in range(8):
        assert_binomial(np.sum(drawn == i), TRIALS, 1 / 8)
    broken = RESIDUALS.copy()
    broken[[2, 6]] = np.nan, np.inf
    drawn = np.asarray(places(broken, 1, 1.0, 0.0))
    assert not np.isin(drawn, [2, 4, 6]).any()


def test_rad_does_not_overflow():
    drawn = np.asarray(places(np.float32(1e30) * RESIDUALS, 1, 2.0, 0.0))
    assert_binomial(np.sum(drawn == 6), TRIALS, 25 / np.sum(RESIDUALS.astype(np.float64) ** 2))


def test_r3_retains_the_points_above_the_mean_and_replaces_the_others():
    fresh = -1 - CANDIDATES
    found = np.asarray(collocation.retain_resample(CANDIDATES, jnp.asarray(RESIDUALS), fresh))
    size = np.abs(RESIDUALS)
    for i in range(8):  # the mean is 1.3
        expected = CANDIDATES[i] if size[i] > size.mean() else fresh[i]
        np.testing.assert_array_equal(found[i], expected)


def test_r3_replaces_all_of_equal_residuals_and_those_that_are_not_finite():
    fresh, broken = -1 - CANDIDATES, jnp.asarray(RESIDUALS).at[6].set(jnp.nan)
    np.testing.assert_array_equal(
        collocation.retain_resample(CANDIDATES, jnp.ones(8), fresh), fresh
    )
    found = np.asarray(collocation.retain_resample(CANDIDATES, broken, fresh))
    mean = np.abs(np.delete(RESIDUALS, 6)).mean()
    retained = np.all(found == CANDIDATES, axis=1)
    np.testing.assert_array_equal(retained, (np.abs(RESIDUALS) > mean) & (np.arange(8) != 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collocation.rad(None, CANDIDATES, jnp.ones(8), 9), "num is 9, but there are 8"),
        (lambda: collocation.rad(None, CANDIDATES, jnp.ones((8, 1)), 4), r"shape \(8, 1\)"),
        (lambda: collocation.rad(None, CANDIDATES, jnp.ones(8), 4, c=-1.0), "0 or more"),
        (
            lambda: collocation.retain_resample(CANDIDATES, jnp.ones(8), CANDIDATES[:4]),
            "draw a fresh point for each",
        ),
        (
            lambda: collocation.retain_resample(CANDIDATES, jnp.ones(4), CANDIDATES),
            "one residual for each",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
