"""Diagnostics against enumeration, NumPy and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_mean, draws, probabilities, six_decades
from scipy import stats

from isjax import epochs, importance_sampler, scorers
from isjax.base import DrawInfo
from isjax.diagnostics import (
    correlation,
    draw_metrics,
    make_gradient_quality,
    mean_absolute_error,
    mean_loss,
    unique_share,
)
from isjax.resampling import categorical, systematic, without_replacement
from isjax.samplers import make_draw
from isjax.training import init_train_state

NAN, INF = np.nan, np.inf


def a_draw(index, draw_probs, pool_size, k=1.0, **fields):
    draw_probs = jnp.asarray(draw_probs, jnp.float32)
    index = jnp.asarray(index, jnp.int32)
    info = {name: fields.pop(name) for name in DrawInfo._fields if name in fields}
    draw = make_draw(
        (),
        index,
        index,
        draw_probs,
        scores=1.0 * index,
        pool_size=pool_size,
        k=k,
        ess=0.5,
        mass=1.0,
    )
    return draw._replace(info=draw.info._replace(**info), **fields)


@pytest.mark.parametrize("k", [1.0, 0.5, 0.0, -1.0])
def test_the_mean_loss_is_unbiased_at_any_k(k):
    probs, losses = np.asarray([0.5, 0.2, 0.2, 0.08, 0.02]), np.asarray([3.0, 0.1, 7, 20, 1])
    expected = 0.0
    for pair in itertools.product(range(5), repeat=2):
        index = list(pair)
        draw = a_draw(index, probs[index], 5, k)
        estimate = mean_loss(draw, jnp.asarray(losses[index], jnp.float32))
        expected += np.prod(probs[index]) * float(estimate)
    assert expected == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("resample", [systematic, categorical, without_replacement])
def test_the_mean_loss_is_unbiased_over_draws(resample):
    losses = np.random.default_rng(0).normal(5, 1, 32)
    index, draw_probs = draws(resample, probabilities(six_decades(32) ** 0.3), 8, 10_000)
    estimate = jax.jit(jax.vmap(lambda i, q, loss: mean_loss(a_draw(i, q, 32, 0.0), loss)))
    losses_seen = jnp.asarray(losses[index], jnp.float32)
    assert_mean(estimate(index, draw_probs, losses_seen), losses.mean())


def test_the_mean_loss_leaves_out_what_is_not_finite():
    draw = a_draw([0, 1, 2, 3], [0.25] * 4, 4)
    assert mean_loss(draw, jnp.asarray([1.0, NAN, 5.0, INF])) == pytest.approx(3)
    assert mean_loss(draw, jnp.full((4,), NAN)) == 0


@pytest.mark.parametrize(
    ("ids", "share"),
    [([3, 1, 2], 1), ([7, 7, 7, 7], 0.25), ([5, 2, 5, 9, 2], 0.6), ([4], 1), ([0, 1] * 50, 0.02)],
)
def test_unique_share(ids, share):
    assert unique_share(jnp.asarray(ids)) == pytest.approx(share)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("size", [5, 1000])
def test_correlation_agrees_with_scipy_at_any_scale(size, scale):
    x, noise = np.random.default_rng(size).normal(size=(2, size))
    for slope in (-2, 0, 0.5):
        y = slope * x + noise + 1
        ours = correlation(jnp.asarray(scale * x, jnp.float32), jnp.asarray(scale * y, jnp.float32))
        assert ours == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-4)


def test_correlation_is_over_the_pairs_that_are_finite():
    x, y = np.asarray([1, 2, NAN, 4, 5.5, 3]), np.asarray([2, 1, 9, INF, 4, 8])
    both = np.isfinite(x) & np.isfinite(y)
    ours = correlation(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    assert ours == pytest.approx(stats.pearsonr(x[both], y[both]).statistic, abs=1e-5)
    assert correlation(jnp.full((4,), NAN), jnp.arange(4.0)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 2.302585, 1e6])
def test_correlation_is_zero_where_either_is_constant(value, size):
    constant, other = jnp.full((size,), value), jnp.full((size,), 0.3)
    varied = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
    for pair in ((constant, varied), (varied, constant), (constant, other), (other, constant)):
        assert correlation(*pair) == pytest.approx(0, abs=1e-4)


def test_mean_absolute_error_is_over_the_pairs_that_are_finite():
    predicted, losses = [1.0, NAN, 4, 2], [3.0, 1, INF, 1.5]
    assert mean_absolute_error(jnp.asarray(predicted), jnp.asarray(losses)) == pytest.approx(1.25)
    assert mean_absolute_error(jnp.full((2,), NAN), jnp.ones(2)) == 0


def test_the_metrics_of_a_draw():
    scores = np.asarray([1, 2, 3, 5.0])
    draw = a_draw([4, 2, 4, 0], [0.5, 0.25, 0.5, 0.125], 10, scores=jnp.asarray(scores))
    counts = {"nonfinite": jnp.asarray(2), "invalid_ids": jnp.asarray(6)}
    draw = draw._replace(info=draw.info._replace(passes=jnp.asarray(7.5), **counts))
    losses = jnp.asarray([2.0, 1, NAN, 4])
    metrics = draw_metrics(draw._replace(last_loss=jnp.asarray([1.0, 1, 1, 1])), losses)
    expected = {
        "loss": (2 / 5 + 1 / 2.5 + 4 / 1.25) / 3,
        "batch_loss": 7 / 3,
        "ess": 0.5,
        "max_weight": 1 / 1.25,
        "unique": 0.75,
        "score_correlation": stats.pearsonr(scores[[0, 1, 3]], [2, 1, 4]).statistic,
        "score_error": 1.0,
        "nonfinite": 3,
        "negative": 0,
        "invalid_ids": 6,
        "examples_forward": 11.5,
        "examples_backward": 4,
        "last_loss_error": 4 / 3,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_losses_below_zero_are_counted():
    metrics = draw_metrics(a_draw([0, 1, 2], [0.5] * 3, 4), jnp.asarray([-1.0, NAN, 0.0]))
    assert metrics["negative"] == 1


def test_the_metrics_of_a_draw_of_nothing_finite_are_finite():
    metrics = jax.jit(draw_metrics)(a_draw([0, 1], [0.5, 0.5], 4), jnp.asarray([NAN, INF]))
    assert "last_loss_error" not in metrics
    assert all(np.isfinite(value) and np.shape(value) == () for value in metrics.values())
    assert metrics["nonfinite"] == 2


# --- the numbers of make_gradient_quality are tested in test_diagnostics_quality.py


@pytest.mark.parametrize("ids", [jnp.arange(6), None], ids=["given", "none"])
def test_a_pool_of_the_samplers_own_is_refused(ids):
    """Its draws point into another pool than the one whose gradient they would be held against."""
    sampler, tx = epochs(importance_sampler(scorers.uniform(), batch_size=3), 3), optax.identity()
    state = init_train_state(jax.random.key(0), jnp.float32(1), tx, sampler, 6)
    with pytest.raises(ValueError, match="pool of its own"):
        measure = make_gradient_quality(lambda p, s, batch: p * batch, tx, sampler, num_draws=2)
        measure(jax.random.key(0), state, jnp.ones(6), ids)
