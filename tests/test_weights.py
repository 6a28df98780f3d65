"""Weights against float64, and the bias they leave against the objective it should follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean, draws, probabilities, six_decades

from isjax import importance_sampler, smooth, weights
from isjax.base import Draw, Scorer
from isjax.resampling import categorical, systematic
from isjax.weights import (
    adjusted,
    biased,
    correcting,
    divide_by_largest,
    importance_weights,
    none,
    preserve_mean,
    preserve_mean_score,
)

EXPONENTS = [1.0, 0.5, 0.0, -1.0]
POOL = 48


@pytest.mark.parametrize(
    "weigh",
    [importance_weights, jax.jit(importance_weights, static_argnums=1)],
    ids=["eager", "jit"],
)
@pytest.mark.parametrize("k", [*EXPONENTS, 0.3, -2.5])
@pytest.mark.parametrize("size", [3, 1000, 60_000])
def test_weights_are_one_over_b_p_to_the_k(k, size, weigh):
    probs = probabilities(six_decades(size))
    weights = weigh(probs, size, k)
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


# --- policies and rescaling, of draws as a sampler makes them

SCORES = six_decades(20, 5) ** 0.3 + 0.05  # as predicted
TRUE = SCORES * np.random.default_rng(6).uniform(0.2, 2.5, 20)  # the losses then seen


@functools.cache
def sampled(resample=categorical, smoothing=0.0, k=0.5, batch_size=7, seed=0):
    """A draw from the pool of 20, with p = s / S unless smoothed."""
    scores = jnp.asarray(SCORES, jnp.float32)
    scorer = Scorer(lambda key: (), lambda state, rows: scores, lambda state, rows, losses: ())
    sampler = importance_sampler(
        scorer, smooth(smoothing), batch_size=batch_size, k=k, resample=resample
    )
    state = sampler.init(jax.random.key(0), 20)
    return jax.jit(lambda key: sampler.sample(key, state)[0])(jax.random.key(seed))


jitted = functools.cache(jax.jit)


def of(policy, draw, losses=None):
    losses = TRUE[np.asarray(draw.index)] if losses is None else losses
    out = jitted(policy)(draw, jnp.asarray(losses, jnp.float32))
    assert out.dtype == jnp.float32 and out.shape == draw.index.shape
    return np.asarray(out, np.float64)


def distinct(seed=0):
    """A draw in which no example comes twice, with p = s / S all the same."""
    draw = sampled()
    index = np.random.default_rng(seed).permutation(20)[:7]
    probs, scores = SCORES[index] / SCORES.sum(), SCORES[index]
    fields = (index, index, importance_weights(jnp.asarray(probs), 20, 0.5), probs, scores)
    return Draw(*(jnp.asarray(x) for x in fields), *draw[5:])


def adjusted_by_authors(index, losses, k):
    """AdjustedBiasedReweighting of their reweighting.py: N, S1 outside the batch, S2 inside."""
    outside = np.setdiff1d(np.arange(20), index)
    s1, s2, s = SCORES[outside].sum(), losses.sum(), losses
    a1, a2 = ((s1 + s2) / s) ** k / 20, (s1 + s2) / s / 20
    return a1 * (a2 @ s) / (a1 @ s)


@pytest.mark.parametrize("k", [1.0, 0.5, 0.0, -1.0])
def test_adjusted_is_the_authors_formula_where_no_example_comes_twice(k):
    policy = adjusted(k)
    for seed in range(3):
        draw = distinct(seed)
        index = np.asarray(draw.index)
        want = adjusted_by_authors(index, TRUE[index], k)
        np.testing.assert_allclose(of(policy, draw), want, rtol=1e-5)


@pytest.mark.parametrize("k", [1.0, 0.5, -1.0])
def test_adjusted_counts_each_drawn_example_once(k):
    draw = sampled()
    index = np.asarray(draw.index)
    once = np.unique(index)
    assert len(once) < len(index), "no duplicates"
    s, s1 = TRUE[index], np.delete(SCORES, once).sum()
    a2 = (s1 + TRUE[once].sum()) / s / 20
    want = a2**k * (a2 @ s) / (a2**k @ s)
    np.testing.assert_allclose(of(adjusted(k), draw), want, rtol=1e-5)


def test_adjusted_weighs_duplicates_whose_losses_differ_by_their_own_and_sums_their_mean():
    # As under augmentation: example 3 of 20 is drawn twice, once with 0.2 and once with 0.6.
    index, losses = np.array([3, 8, 3]), np.array([0.2, 1.5, 0.6])
    draw = distinct()._replace(
        index=jnp.asarray(index),
        scores=jnp.asarray(SCORES[index]),
        draw_probs=jnp.asarray(SCORES[index] / SCORES.sum()),
    )
    s1, s2 = np.delete(SCORES, [3, 8]).sum(), 0.4 + 1.5
    np.testing.assert_allclose(of(adjusted(1), draw, losses), (s1 + s2) / losses / 20, rtol=1e-5)


@pytest.mark.parametrize("k", [1.0, 0.5])
def test_adjusted_scales_smoothed_probabilities_by_how_wrong_the_scores_were(k):
    draw = sampled(smoothing=0.3)
    index = np.asarray(draw.index)
    p = (SCORES + 0.3) / np.sum(SCORES + 0.3)
    once = np.unique(index)
    r = TRUE / SCORES
    total = np.delete(p, once).sum() + (p * r)[once].sum()
    q = (p * r / total)[index]
    want = (1 / (20 * q)) ** k
    want *= (1 / (20 * q)) @ TRUE[index] / (want @ TRUE[index])
    np.testing.assert_allclose(of(adjusted(k), draw), want, rtol=1e-5)


def test_adjusted_at_the_predicted_losses_is_the_unbiased_weight():
    draw = sampled()
    index = np.asarray(draw.index)
    want = SCORES.sum() / SCORES[index] / 20
    np.testing.assert_allclose(of(adjusted(1), draw, SCORES[index]), want, rtol=1e-5)


def test_adjusted_of_the_whole_pool_needs_only_the_losses():
    draw = sampled(batch_size=20)._replace(
        index=jnp.arange(20),
        scores=jnp.asarray(SCORES),
        draw_probs=jnp.asarray(SCORES / SCORES.sum(), jnp.float32),
    )
    np.testing.assert_allclose(of(adjusted(1), draw, TRUE), TRUE.mean() / TRUE, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: adjusted(0.5), correcting])
def test_losses_and_scores_of_zero_give_finite_weights(make):
    draw = distinct()
    draw = draw._replace(scores=draw.scores.at[1].set(0.0))
    policy = make()
    for losses in (np.zeros(7), np.array([0, 0, 1e-9, 1, 2, 3, 4.0])):
        assert np.all(np.isfinite(of(policy, draw, losses)))


def biased_by_authors(index, k):
    """BiasedReweightingPolicy of their reweighting.py."""
    s = SCORES[index]
    w = SCORES.sum() / 20 / s
    return w**k * (w @ s) / (w**k @ s)


@pytest.mark.parametrize("k", [1.0, 0.5, 0.0, -1.0])
def test_biased_is_the_authors_policy_whatever_the_draw_weighed(k):
    policy = biased(k)
    for draw in (sampled(), distinct(), sampled(systematic, k=-2.0)):
        index = np.asarray(draw.index)
        want = biased_by_authors(index, k)
        np.testing.assert_allclose(of(policy, draw), want, rtol=1e-5)
        np.testing.assert_array_equal(of(policy, draw, 9 * TRUE[index]), of(policy, draw))


@pytest.mark.parametrize("policy", [adjusted, biased])
def test_a_half_is_the_exponent_unless_told_otherwise(policy):
    np.testing.assert_array_equal(of(policy(), sampled()), of(policy(0.5), sampled()))
    assert not np.allclose(of(policy(), sampled()), of(policy(1), sampled()))


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (0.5, 1.2), (0.0, np.inf), (1.0, 1.0)])
def test_correcting_weighs_by_predicted_over_true_loss_within_limits(low, high):
    draw = sampled(seed=2)
    index = np.asarray(draw.index)
    ratio = (SCORES / TRUE)[index]
    want = np.asarray(draw.weights) * np.minimum(np.maximum(ratio, low), high)
    np.testing.assert_allclose(of(correcting(low, high), draw), want, rtol=1e-5)
    if (low, high) == (0.0, 2.0):
        np.testing.assert_array_equal(of(correcting(), draw), of(correcting(low, high), draw))
        assert np.any(ratio > 2) and np.any(ratio < 1)


def test_none_weighs_one():
    np.testing.assert_array_equal(of(none(), sampled(k=-1.0)), np.ones(7))


@pytest.mark.parametrize("k", [1.0, 0.5, -1.0])
def test_preserve_mean_score_is_that_of_the_draw(k):
    draw = sampled(k=k)
    got = np.asarray(jax.jit(preserve_mean_score)(draw), np.float64)
    np.testing.assert_allclose(got, biased_by_authors(np.asarray(draw.index), k), rtol=1e-5)


@pytest.mark.parametrize("k", [1.0, 0.5, -1.0])
def test_divide_by_largest_brings_the_largest_weight_to_one(k):
    draw = sampled(k=k)
    got = jax.jit(divide_by_largest)(draw)
    want = SCORES[np.asarray(draw.index)] ** -k
    np.testing.assert_allclose(got, want / want.max(), rtol=1e-5)
    assert np.max(got) == pytest.approx(1, abs=1e-6)  # XLA may divide by a reciprocal


@pytest.mark.parametrize("policy", [adjusted, biased])
@pytest.mark.parametrize("k", [1.5, np.inf, -np.inf, np.nan])
def test_an_exponent_outside_its_range_is_refused(policy, k):
    message = rf"weights.{policy.__name__}: k is {k}; choose k <= 1, and finite"
    with pytest.raises(ValueError, match=message):
        policy(k)


@pytest.mark.parametrize("limits", [(-0.1, 2.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.nan)])
def test_limits_in_the_wrong_order_are_refused(limits):
    with pytest.raises(ValueError, match=r"correcting: \(low, high\) is .*choose 0 <= low <= high"):
        correcting(*limits)


def test_every_public_policy_is_tested_here():
    assert set(weights.__all__) == {"adjusted", "biased", "correcting", "none"}


@pytest.mark.parametrize("k", ["0.5", None, [0.5, 1.0], lambda step: jnp.ones(2)])
def test_an_exponent_that_is_no_number_is_refused(k):
    with pytest.raises(TypeError, match=r"k is .*; choose a number, or a schedule"):
        weights.exponent_schedule(k)


def test_many_exponents_at_once():
    found = jax.vmap(lambda k: weights.exponent_schedule(k)(0))(jnp.float32([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(found, [0.0, 0.5, 1.0])
