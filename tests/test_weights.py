"""Weights against float64, and the bias they leave against the objective it should follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean, draws, probabilities, six_decades

from isjax.resampling import categorical, systematic
from isjax.weights import importance_weights, preserve_mean

EXPONENTS = [1.0, 0.5, 0.0, -1.0]
POOL = 48


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("k", [*EXPONENTS, 0.3, -2.5])
@pytest.mark.parametrize("size", [3, 1000, 60_000])
def test_weights_are_one_over_b_p_to_the_k(k, size, wrap):
    probs = probabilities(six_decades(size))
    weights = wrap(lambda p, k: importance_weights(p, size, k))(probs, k)
    exact = (1 / (size * np.asarray(probs, np.float64))) ** k
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, exact, rtol=2e-5)


def test_weights_are_unbiased_unless_told_otherwise():
    np.testing.assert_allclose(importance_weights(jnp.asarray([0.5, 0.1]), 4), [0.5, 2.5])


@pytest.mark.parametrize("k", [0, 0.0, jnp.zeros(())], ids=["int", "float", "array"])
def test_weights_are_exactly_one_at_zero(k):
    probs = probabilities(six_decades(3000))
    for size in range(1, 3000, 7):
        assert np.all(np.asarray(importance_weights(probs[:50], size, k)) == 1.0)


@pytest.mark.parametrize("k", EXPONENTS)
def test_preserve_mean_keeps_the_weighted_mean_score_and_the_direction(k):
    scores = six_decades(64)
    index = np.arange(0, 64, 2)
    probs = probabilities(scores)[index]
    unbiased, biased = importance_weights(probs, 64), importance_weights(probs, 64, k)
    kept = np.asarray(preserve_mean(biased, unbiased, jnp.asarray(scores[index])), np.float64)
    wanted = np.sum(np.asarray(unbiased, np.float64) * scores[index])
    assert np.sum(kept * scores[index]) == pytest.approx(wanted, rel=1e-5)
    ratio = kept / np.asarray(biased)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_preserve_mean_leaves_weights_alone_where_all_scores_are_zero():
    weights = jnp.asarray([1.0, 2.0])
    kept = preserve_mean(weights, 3 * weights, jnp.zeros(2))
    np.testing.assert_array_equal(kept, weights)


class Regression:
    """Squared errors of a linear model: losses, gradients and the biased objective in float64."""

    smoothing = 0.3

    def __init__(self):
        rng = np.random.default_rng(3)
        self.x = rng.normal(size=(POOL, 3))
        self.y = rng.normal(size=POOL) * 10 ** rng.uniform(-2, 1, POOL)
        self.theta = rng.normal(size=3)

    def losses(self, theta):
        return (self.x @ theta - self.y) ** 2

    def gradients(self):
        return 2 * (self.x @ self.theta - self.y)[:, None] * self.x

    def scores(self):
        return self.losses(self.theta) + self.smoothing

    def objective_gradient(self, k, step=1e-5):
        """Central differences of sum (L + c)^(2 - k) / (2 - k)."""

        def objective(theta):
            return np.sum((self.losses(theta) + self.smoothing) ** (2 - k) / (2 - k))

        shifts = step * np.eye(3)
        pairs = [(objective(self.theta + s), objective(self.theta - s)) for s in shifts]
        return np.asarray([(up - down) / (2 * step) for up, down in pairs])


@pytest.mark.parametrize("k", [*EXPONENTS, 0.25, -3.0])
def test_the_expected_gradient_follows_the_biased_objective(k):
    task = Regression()
    probs = probabilities(task.scores())
    weights = np.asarray(importance_weights(probs, POOL, k), np.float64)
    expected = np.sum((np.asarray(probs) * weights)[:, None] * task.gradients(), axis=0)
    factor = POOL**-k * task.scores().sum() ** (k - 1)
    np.testing.assert_allclose(expected, factor * task.objective_gradient(k), rtol=1e-4)


def test_the_expected_gradient_is_that_of_the_mean_loss_when_corrected():
    task = Regression()
    factor = POOL**-1 * task.scores().sum() ** 0
    wanted = task.gradients().mean(axis=0)
    np.testing.assert_allclose(factor * task.objective_gradient(1.0), wanted, rtol=1e-6)


@pytest.mark.parametrize("resample", [systematic, categorical])
@pytest.mark.parametrize("k", EXPONENTS)
def test_batches_drawn_follow_the_biased_objective_on_average(k, resample):
    task = Regression()
    index, draw_probs = draws(resample, probabilities(task.scores()), num=6, trials=20_000)
    weights = np.asarray(importance_weights(jnp.asarray(draw_probs), POOL, k))
    batches = np.mean(weights[:, :, None] * task.gradients()[index], axis=1)
    factor = POOL**-k * task.scores().sum() ** (k - 1)
    assert_mean(batches, factor * task.objective_gradient(k))
