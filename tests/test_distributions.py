"""Probabilities and effective sample sizes against float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import six_decades

from isjax.distributions import effective_sample_size, normalize, variance_reduction

FLOAT32_MAX = 3.4028235e38
both = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


@both
@pytest.mark.parametrize("size", [1, 8, 4096, 1_000_000])
def test_probabilities_are_scores_over_their_sum(size, wrap):
    scores = six_decades(size)
    probs = wrap(normalize)(jnp.asarray(scores))
    assert probs.dtype == jnp.float32
    exact = scores / scores.sum(dtype=np.float64)
    np.testing.assert_allclose(probs, exact, rtol=1e-5)
    assert np.asarray(probs, np.float64).sum() == pytest.approx(1, abs=1e-6)


@both
@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0, 0, 0, 0], [0.25] * 4),
        ([-1, -2, -3, -4], [0.25] * 4),
        ([np.nan] * 4, [0.25] * 4),
        ([-np.inf] * 4, [0.25] * 4),
        ([1, np.nan, 3, 0], [0.25, 0, 0.75, 0]),
        ([1, -5, 3, -np.inf], [0.25, 0, 0.75, 0]),
        ([1, np.inf, 3, 0], [0, 1, 0, 0]),
        ([np.inf, np.inf, np.nan, -1], [0.5, 0.5, 0, 0]),
        ([np.inf, FLOAT32_MAX, 0, 0], [0.5, 0.5, 0, 0]),
        ([3e38, 3e38, 1.5e38, 0], [0.4, 0.4, 0.2, 0]),
        ([3e38, 1, 0, 0], [1, 0, 0, 0]),
        ([1e38, 1e38, 1e38, 1e38], [0.25] * 4),
        ([2e-38, 6e-38, 0, 0], [0.25, 0.75, 0, 0]),
    ],
)
def test_extreme_scores(scores, expected, wrap):
    probs = wrap(normalize)(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(probs, expected, rtol=1e-6, atol=1e-30)


@both
@pytest.mark.parametrize("scores", [[1e-40, 1e-40, 0], [1e-40, 3e-40, 2e-45], [1e-40, 1, 0]])
def test_denormal_scores_count_for_what_they_are_or_for_nothing(scores, wrap):
    # XLA flushes denormals to zero on some backends, and then they are scores of zero.
    scores = np.asarray(scores, np.float32)
    probs = np.asarray(wrap(normalize)(jnp.asarray(scores)))
    kept = scores / scores.sum(dtype=np.float64)
    large = np.where(scores >= np.finfo(np.float32).tiny, scores, 0)
    flushed = large / large.sum() if large.any() else np.full(3, 1 / 3)
    assert any(np.allclose(probs, wanted, rtol=1e-3, atol=1e-30) for wanted in (kept, flushed))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float16])
def test_scores_of_other_types_become_float32(dtype):
    probs = normalize(jnp.asarray([1, 2, 5], dtype))
    assert probs.dtype == jnp.float32
    np.testing.assert_allclose(probs, [0.125, 0.25, 0.625], rtol=1e-6)


def two_level(size, heavy, share):
    """`heavy` items with `share` of the mass between them, the others with the rest."""
    probs = np.full(size, (1 - share) / (size - heavy))
    probs[:heavy] = share / heavy
    return probs


CLOSED_FORMS = [
    ("one-hot", np.eye(1, 64)[0], 1.0),
    ("uniform", np.full(100, 0.01), 100.0),
    ("uniform, large", np.full(1_000_000, 1e-6), 1e6),
    ("half of them", np.repeat([0.0, 2 / 64], 32), 32.0),
    # 1 / (a^2 / m + (1 - a)^2 / (B - m)) with a = 0.9, m = 10, B = 1000
    ("two levels", two_level(1000, 10, 0.9), 1 / (0.81 / 10 + 0.01 / 990)),
]


@both
@pytest.mark.parametrize(("name", "probs", "count"), CLOSED_FORMS, ids=[c[0] for c in CLOSED_FORMS])
def test_effective_sample_size_and_variance_reduction(name, probs, count, wrap):
    probs_32 = jnp.asarray(probs, jnp.float32)
    np.testing.assert_allclose(wrap(effective_sample_size)(probs_32), count, rtol=1e-5)
    np.testing.assert_allclose(wrap(variance_reduction)(probs_32), len(probs) / count, rtol=1e-5)


def test_variance_reduction_is_the_ratio_of_second_moments():
    norms = six_decades(50).astype(np.float64)
    probs = norms / norms.sum()
    uniform = np.sum((1 / 50) * norms**2)  # E |g|^2 with weight one
    importance = np.sum(probs * (norms / (50 * probs)) ** 2)
    tau_squared = variance_reduction(jnp.asarray(probs, jnp.float32))
    np.testing.assert_allclose(tau_squared, uniform / importance, rtol=1e-5)
