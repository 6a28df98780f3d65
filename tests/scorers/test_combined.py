"""Products, mixtures and sources against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled

from isjax import scorers
from isjax.base import Rows
from isjax.samplers import importance_sampler, tree_sampler

KEY, N = jax.random.key(0), 12
GIVEN = np.random.default_rng(0).gamma(2.0, size=N).astype(np.float32)
LOSSES = jnp.float32(np.random.default_rng(1).gamma(2.0, size=4))
SOURCE = np.array([0] * 6 + [1] * 3 + [2] * 3)


def drawn_twice(sampler):
    """The state after one batch, and the ids and scores of the next draw."""
    sampler = compiled(sampler)
    draw, state = sampler.sample(KEY, sampler.init(KEY, N), jnp.arange(N))
    state = sampler.update(state, draw, LOSSES)
    last = np.ones(N)
    for i in set(draw.ids.tolist()):
        last[i] = np.mean(np.asarray(LOSSES)[np.asarray(draw.ids) == i])
    draw, _ = sampler.sample(KEY, state, jnp.arange(N))
    return np.asarray(draw.ids), np.asarray(draw.scores), last


@pytest.mark.slow
@pytest.mark.parametrize("make", [importance_sampler, tree_sampler])
def test_a_product_multiplies_and_a_mixture_adds(make):
    both = scorers.given(GIVEN), scorers.last_loss()
    ids, found, last = drawn_twice(make(scorers.product(*both), batch_size=4))
    np.testing.assert_allclose(found, (GIVEN * last)[ids], rtol=1e-6)
    ids, found, last = drawn_twice(make(scorers.mixture([0.25, 3.0], *both), batch_size=4))
    np.testing.assert_allclose(found, (0.25 * GIVEN + 3 * last)[ids], rtol=1e-6)


@pytest.mark.parametrize("make", [importance_sampler, tree_sampler])
def test_a_power_raises_the_scores(make):
    ids, found, last = drawn_twice(make(scorers.power(scorers.last_loss(), 0.5), batch_size=4))
    np.testing.assert_allclose(found, np.sqrt(last)[ids], rtol=1e-6)


def test_a_power_takes_negative_scores_for_zero_and_refuses_a_negative_exponent():
    signed = scorers.uniform()._replace(score=lambda state, rows: jnp.float32([-1.0, 4.0]))
    scorer = scorers.power(signed, 0.5)
    rows = Rows(jnp.zeros((2, 0)), jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(scorer.score((), rows), [0.0, 2.0])
    with pytest.raises(ValueError, match=r"exponent is -1\.0; choose 0 or more"):
        scorers.power(scorer, -1.0)


def test_each_scorer_reads_as_many_losses_as_it_asks_for():
    learned = scorers.learned(scorers.history_mlp(3), history=3)
    combined = scorers.product(scorers.last_loss(), learned, scorers.uniform())
    assert (combined.history, combined.passes, combined.by_id) == (3, 0, False)
    sampler = importance_sampler(combined, batch_size=4)

    def steps():
        state = sampler.init(KEY, N)
        draw, state = sampler.sample(KEY, state, jnp.arange(N))
        return sampler.update(state, draw, LOSSES)

    state = jax.eval_shape(steps)
    assert len(state.scorer) == 3 and state.buffer.losses.shape == (N, 3)


def test_costs_are_summed():
    loss = scorers.loss(lambda params, batch: batch)
    assert scorers.product(loss, scorers.given(GIVEN), loss).passes == 2


def test_scorers_that_remember_the_same_numbers_share_them():
    product = scorers.product(scorers.difficulty(), scorers.uncertainty())
    ids, found, last = drawn_twice(importance_sampler(product, batch_size=4))
    error = np.where(last == 1, np.nan, 1 - np.exp(-last))
    error = np.where(np.isnan(error), np.nanmax(error), error)
    np.testing.assert_allclose(found, (error * error * (1 - error))[ids], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scorers.product(), "no scorer; give one"),
        (lambda: scorers.product(scorers.last_loss(), scorers.difficulty()), "different numbers"),
        (lambda: scorers.mixture([1.0], scorers.uniform(), scorers.uniform()), "for 2 scorers"),
        (lambda: scorers.mixture([-1.0], scorers.uniform()), r"\[-1.0\].*0 or more"),
        (lambda: scorers.sources(SOURCE, jnp.ones(2)), r"\(2,\), but sources go up to 2"),
        (lambda: scorers.sources(SOURCE, lambda step: jnp.ones(1)), "go up to 2"),
        (lambda: scorers.sources(SOURCE - 1, jnp.ones(3)), "from -1"),
        (lambda: scorers.sources(SOURCE / 2, jnp.ones(3)), "float64"),
        (lambda: scorers.sources(SOURCE, jnp.array([1.0, -2, 1])), "0 or more"),
        (lambda: scorers.learned_sources(SOURCE - 1), "learned_sources: source is of type int64"),
        (
            lambda: scorers.learned_sources(SOURCE, floor=1.5),
            r"\(1.0, 1.5, 0.9\); choose rate >= 0",
        ),
        (lambda: scorers.learned_sources(SOURCE, decay=1.0), r"decay in \[0, 1\)"),
    ],
)
def test_what_cannot_be_combined_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [importance_sampler, tree_sampler])
def test_sources_get_their_shares(make):
    shares = np.array([1.0, 2.0, 5.0])
    arguments = {"smoothing": 0.0} if make is tree_sampler else {}
    sampler = compiled(make(scorers.sources(SOURCE, shares), batch_size=8, **arguments))
    draw, _ = sampler.sample(KEY, sampler.init(KEY, N), jnp.arange(N))
    probs = (shares / 8 / np.array([6, 3, 3]))[SOURCE]
    np.testing.assert_allclose(draw.draw_probs, probs[draw.ids], rtol=1e-6)
    # The draw has two levels, each within one of its expected number of times.
    assert np.all(np.abs(np.bincount(SOURCE[draw.ids], minlength=3) - shares) <= 2)


def test_shares_may_change_with_the_step():
    def schedule(step):
        return jnp.where(step < 1, jnp.array([1.0, 0, 0]), jnp.array([0, 0, 1.0]))

    sampler = compiled(importance_sampler(scorers.sources(SOURCE, schedule), batch_size=4))
    state, seen = sampler.init(KEY, N), []
    for _ in range(3):
        draw, state = sampler.sample(KEY, state, jnp.arange(N))
        state = sampler.update(state, draw, LOSSES)
        seen.append(set(SOURCE[draw.ids].tolist()))
    assert seen == [{0}, {2}, {2}]


def test_in_a_product_sources_set_shares_and_losses_choose_within_them():
    scorer = scorers.product(scorers.sources(SOURCE, jnp.array([1.0, 0, 1])), scorers.last_loss())
    ids, found, last = drawn_twice(importance_sampler(scorer, batch_size=4))
    weight = np.array([1.0, 0, 2.0])[SOURCE]  # share N / n_s
    np.testing.assert_allclose(found, (weight * last)[ids], rtol=1e-6)
    assert 1 not in SOURCE[ids]


def test_learned_sources_follow_the_losses_of_each_source():
    """Against NumPy: two batches, the second without source 2 and with a loss that is NaN."""
    scorer = scorers.learned_sources(SOURCE, rate=2.0, floor=0.3, decay=0.8)
    state, update = scorer.init(KEY), jax.jit(scorer.update)

    def rows(ids):
        count = jnp.zeros(len(ids), jnp.int32)
        return Rows(jnp.zeros((len(ids), 0)), count, ids=jnp.asarray(ids))

    def shares(reward):
        weight = np.exp(2.0 * np.asarray(reward, np.float64))
        return 0.7 * weight / weight.sum() + 0.1

    everything = np.arange(N)
    np.testing.assert_allclose(
        scorer.score(state, rows(everything)), (N / 3 / np.array([6, 3, 3]))[SOURCE], rtol=1e-6
    )
    state = update(state, rows([0, 5, 6, 9]), jnp.float32([1.0, 2.0, 0.5, 0.25]))
    state = update(state, rows([1, 2, 7, 8]), jnp.float32([0.5, np.nan, 1.5, 0.5]))
    reward = [0.8 * 1.5 + 0.2 * 0.5, 0.8 * 0.5 + 0.2 * 1.0, 0.25]
    np.testing.assert_allclose(state.reward, reward, rtol=1e-6)
    expected = (shares(reward) * N / np.array([6, 3, 3]))[SOURCE]
    np.testing.assert_allclose(scorer.score(state, rows(everything)), expected, rtol=1e-5)
    assert expected[0] * 6 > expected[11] * 3  # the source of the highest loss gets most
