"""Token selection against NumPy: the top share, draws, masks, and the scale of the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMISED, assert_binomial, assert_mean

import isjax

B, T = 4, 9
RNG = np.random.default_rng(0)
LOSSES = RNG.exponential(size=(B, T)).astype(np.float32)
REFERENCE = RNG.exponential(size=(B, T)).astype(np.float16)
MASK = np.arange(T)[None, :] < np.array([9, 5, 1, 0])[:, None]


@functools.cache
def selector(**options):
    return jax.jit(
        lambda losses, reference, mask, key: isjax.select_tokens(
            losses, reference, mask=mask, key=key, **options
        )
    )


def probabilities(smoothing=0.0, mask=MASK):
    """By the formula of the docstring, in float64."""
    excess = np.maximum(LOSSES.astype(np.float64) - REFERENCE, 0) * mask
    scores = np.where(mask, excess + smoothing * excess.sum() / mask.sum(), 0.0)
    return scores / scores.sum()


@pytest.mark.parametrize("keep", [0.01, 0.6, 1.0])
def test_the_top_share_has_the_highest_excess_and_the_scale_of_the_mean(keep):
    weights = np.asarray(selector(keep=keep)(LOSSES, REFERENCE, MASK, None))
    excess = LOSSES.astype(np.float64) - REFERENCE
    total = MASK.sum()
    number = max(1, round(keep * total))
    lowest_kept = np.sort(excess[MASK])[-number]
    expected = np.where(MASK & (excess >= lowest_kept), total / number, 0.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights.dtype == np.float32 and weights.sum() == pytest.approx(total, rel=1e-6)
    mean = (weights * LOSSES).sum() / total
    assert mean == pytest.approx(LOSSES[MASK & (excess >= lowest_kept)].mean(), rel=1e-5)


def test_equal_excess_keeps_the_exact_number():
    weights = selector(keep=0.5)(np.ones((2, 5), np.float32), 1.0, None, None)
    assert np.sort(np.asarray(weights).ravel()).tolist() == [0.0] * 5 + [2.0] * 5


@pytest.mark.parametrize(("k", "smoothing"), [(1.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
def test_drawn_weights_have_the_expectation_of_the_docstring(k, smoothing):
    total, number = MASK.sum(), round(0.4 * MASK.sum())
    probs = probabilities(smoothing)
    once = total / number * np.where(MASK, total * np.where(probs > 0, probs, 1), 1) ** -k
    draw = jax.vmap(selector(keep=0.4, k=k, smoothing=smoothing), in_axes=(None, None, None, 0))
    keys = jax.random.split(jax.random.key(1), 4000)
    found = np.asarray(jax.jit(draw, compiler_options=OPTIMISED)(LOSSES, REFERENCE, MASK, keys))
    counts = found / once
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)  # whole numbers of draws
    np.testing.assert_array_equal(np.round(counts).sum(axis=(1, 2)), number)
    assert np.all(np.abs(counts - number * probs) < 1 + 1e-3)  # systematic: floor or ceil
    assert np.all(found[:, probs == 0] == 0)
    mean = (found * LOSSES).sum(axis=(1, 2)) / total
    expected = (number * probs * once * LOSSES).sum() / total
    assert_mean(mean[:, None], expected)
    if k == 1.0:  # unbiased for the mean over the tokens that can be drawn, here all
        assert expected == pytest.approx(LOSSES[MASK].mean(), rel=1e-6)
    if k == 0.0:
        np.testing.assert_allclose(found.sum(axis=(1, 2)), total, rtol=1e-5)


def test_of_a_million_tokens_those_without_excess_are_never_drawn_and_others_in_proportion():
    """A float32 cumulative sum of all would have some of them drawn, and others never."""
    rng = np.random.default_rng(1)
    losses, reference = rng.exponential(size=(2, 1000, 1000)).astype(np.float32)
    weights = selector(keep=0.6, k=0.0)(losses, reference, None, jax.random.key(0))
    counts = np.asarray(weights, np.float64).ravel() * 0.6
    excess = np.maximum(losses.astype(np.float64) - reference, 0).ravel()
    assert np.all(counts[excess == 0] == 0)
    assert counts.sum() == pytest.approx(600_000, rel=1e-6)
    assert np.all(np.abs(counts - 600_000 * excess / excess.sum()) < 2)
    for order in (np.arange(10**6), np.argsort(excess)):  # by place, and by excess
        shares = excess[order].reshape(20, -1).sum(axis=1) / excess.sum()
        assert_binomial(np.round(counts[order].reshape(20, -1).sum(axis=1)), 600_000, shares)


def test_losses_that_are_not_finite_are_not_chosen():
    losses = LOSSES.copy()
    losses[0, :3] = np.nan, np.inf, -np.inf
    for key in (None, jax.random.key(0)):
        weights = np.asarray(selector(keep=1.0, smoothing=1.0)(losses, REFERENCE, MASK, key))
        assert np.isfinite(weights).all() and np.all(weights[0, :3] == 0) and weights.sum() > 0


@pytest.mark.parametrize("drawn", [False, True])
def test_where_nothing_counts_or_exceeds(drawn):
    key = jax.random.key(0) if drawn else None
    nothing = selector(keep=0.5)(LOSSES, REFERENCE, np.zeros((B, T), bool), key)
    np.testing.assert_array_equal(nothing, 0)
    below = np.asarray(selector(keep=0.5)(LOSSES, LOSSES + 1, MASK, key))  # uniform if drawn
    assert np.count_nonzero(below) == round(0.5 * MASK.sum())
    assert below.sum() == pytest.approx(MASK.sum(), rel=1e-6) and np.all(below[~MASK] == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep is 0.0; choose a share above 0, at most 1"),
        ({"keep": 1.5}, "keep is 1.5; choose"),
        ({"k": 2.0}, "select_tokens: k is 2.0; choose k <= 1"),
        ({"smoothing": -1.0}, "smoothing is -1.0; choose at least 0"),
        ({"reference": np.zeros((B, T - 1))}, r"reference has shape \(4, 8\), but the losses have"),
        ({"mask": np.ones(B, bool)}, r"mask has shape \(4,\), but the losses have \(4, 9\)"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        isjax.select_tokens(jnp.asarray(LOSSES), **{"reference": 0.0, "keep": 0.5} | options)
