"""Score transforms against NumPy, under jit, in chains, and refusing what makes no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import probabilities, six_decades
from scipy import stats

from isjax import transforms
from isjax.base import ScoreTransform
from isjax.distributions import normalize
from isjax.transforms import (
    chain,
    clip,
    exponential_rank,
    identity,
    inverse_rank,
    mix_uniform,
    percentile,
    power,
    prune_below_mean,
    smooth,
    smooth_by_mean,
    warm_up,
)
from isjax.weights import importance_weights


def halve_the_best():
    """A user's own transform."""

    def update(scores, state):
        return jnp.where(scores == jnp.max(scores), scores / 2, scores), state + 1

    return ScoreTransform(lambda: jnp.zeros((), jnp.int32), update)


TRANSFORMS = {
    "identity": identity,
    "smooth": lambda: smooth(0.3),
    "smooth_by_mean": lambda: smooth_by_mean(0.5),
    "power": lambda: power(2.0),
    "power below zero": lambda: power(-0.5),
    "mix_uniform": lambda: mix_uniform(0.1),
    "warm_up": lambda: warm_up(2),
    "clip": lambda: clip(0.01, 0.5),
    "percentile": percentile,
    "inverse_rank": inverse_rank,
    "exponential_rank": lambda: exponential_rank(lambda step: 100.0 / (step + 1)),
    "prune_below_mean": lambda: prune_below_mean(0.4),
    "the user's own": halve_the_best,
    "chain": lambda: chain(smooth_by_mean(), warm_up(1), halve_the_best(), mix_uniform(0.2)),
}
every = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def run(transform, *scores, wrap=lambda f: f):
    """Outputs of successive updates."""
    state, update, out = transform.init(), wrap(transform.update), []
    for each in scores:
        each, state = update(jnp.asarray(each, jnp.float32), state)
        out.append(np.asarray(each))
    return out


def once(transform, scores):
    return run(transform, scores)[0]


def test_every_public_transform_is_tested_here():
    assert set(TRANSFORMS) >= set(transforms.__all__)


@every
def test_jit_changes_nothing(make):
    steps = [six_decades(100, seed) for seed in range(4)]
    for eager, jitted in zip(run(make(), *steps), run(make(), *steps, wrap=jax.jit), strict=True):
        assert eager.shape == (100,) and jitted.dtype == eager.dtype == np.float32
        np.testing.assert_allclose(eager, jitted, rtol=1e-5)


@every
def test_states_keep_their_shape_and_type_from_step_to_step(make):
    transform = make()
    state = transform.init()
    _, after = jax.eval_shape(transform.update, jnp.ones(5), state)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@every
def test_scores_and_states_keep_their_type_in_double_precision(make):
    with jax.enable_x64(True):
        transform = make()
        state, scores = transform.init(), jnp.asarray([0.5, 1, 3, 2], jnp.float32)
        out, after = jax.eval_shape(transform.update, scores, state)
        types = [leaf.dtype for leaf in jax.tree.leaves((out, after))]
        assert types == [leaf.dtype for leaf in jax.tree.leaves((scores, state))]


@pytest.mark.slow
@every
@pytest.mark.parametrize("scores", [np.zeros(6), np.eye(6)[0], np.full(6, 1e-30), np.full(6, 1e15)])
def test_scores_stay_finite_and_not_negative(make, scores):
    for out in run(make(), scores, scores, scores):
        assert np.all(np.isfinite(out)) and np.all(out >= 0)


def test_identity_and_smooth_and_clip_and_power():
    scores = [0, 0.25, 1, 4]
    np.testing.assert_array_equal(once(identity(), scores), scores)
    np.testing.assert_array_equal(once(smooth(0.5), scores), [0.5, 0.75, 1.5, 4.5])
    np.testing.assert_array_equal(once(smooth(0), scores), scores)
    np.testing.assert_array_equal(once(clip(0.5, 2), scores), [0.5, 0.5, 1, 2])
    np.testing.assert_array_equal(once(clip(high=2), scores), [0, 0.25, 1, 2])
    np.testing.assert_array_equal(once(clip(low=0.5), scores), [0.5, 0.5, 1, 4])
    np.testing.assert_allclose(once(power(2), scores), [0, 0.0625, 1, 16], rtol=1e-6)
    np.testing.assert_allclose(once(power(0.5), scores), [0, 0.5, 1, 2], rtol=1e-6)
    np.testing.assert_array_equal(once(power(0), scores), np.ones(4))


def test_power_below_zero_prefers_low_scores_and_bears_zeros():
    out = once(power(-0.5), [0, 1e-9, 0.25, 4])
    np.testing.assert_allclose(out, [1000, 1000, 2, 0.5], rtol=1e-5)
    np.testing.assert_allclose(once(power(-1, floor=0.1), [0, 0.5]), [10, 2], rtol=1e-5)


def test_the_floor_of_a_power_above_zero_is_not_used():
    np.testing.assert_array_equal(once(power(2, floor=0.5), [0, 0.25]), [0, 0.0625])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("constant", [0.0, 0.5, 2.0])
def test_smooth_by_mean_adds_a_corrected_moving_average(constant, decay):
    scales = [3.0, 100.0, 0.01, 5.0, 0.0, 2.0, 7.0]
    steps = [scale * six_decades(50, seed) for seed, scale in enumerate(scales)]
    average = 0.0
    for step, (scores, out) in enumerate(
        zip(steps, run(smooth_by_mean(constant, decay), *steps), strict=True), start=1
    ):
        mean = scores.mean(dtype=np.float64)
        if average > 0:  # one huge score may not stay in the average
            mean = min(mean, 10 * average / (1 - decay ** (step - 1)))
        average = decay * average + (1 - decay) * mean
        corrected = average / (1 - decay**step)
        np.testing.assert_allclose(out, scores + constant * corrected, rtol=1e-4)


def test_smooth_by_mean_defaults_to_half_of_an_average_of_ten_steps():
    ones, threes = np.ones(4), np.full(4, 3.0)
    first, second = run(smooth_by_mean(), ones, threes)
    np.testing.assert_allclose(first, 1.5 * ones, rtol=1e-5)
    # (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81)
    np.testing.assert_allclose(second, 3 + 0.5 * 0.39 / 0.19, rtol=1e-5)


@pytest.mark.parametrize("spike", [1e3, 1e30, 3e38])
def test_an_average_recovers_from_one_huge_score_within_ten_draws(spike):
    usual, huge = np.ones(64), np.append(np.ones(63), spike)
    outs = run(smooth_by_mean(1.0), *[usual] * 20, huge, *[usual] * 10, wrap=jax.jit)
    averages = [out[0] - 1 for out in outs]
    np.testing.assert_allclose(averages[:20], 1, rtol=1e-5)
    assert 1.5 < averages[20] < 2.5 and averages[-1] < 1.4


def test_an_average_follows_scores_that_stay_higher():
    outs = run(smooth_by_mean(1.0), *[np.ones(8)] * 5, *[np.full(8, 1e6)] * 60, wrap=jax.jit)
    np.testing.assert_allclose(outs[-1], 2e6, rtol=0.05)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scores", [six_decades(1000), np.eye(1000)[3], np.zeros(1000)])
def test_mixing_bounds_the_weights(scores, share):
    mixed = once(mix_uniform(share), scores)
    uniform = np.full(1000, 1e-3)
    own = np.asarray(probabilities(scores)) if scores.any() else uniform
    np.testing.assert_allclose(mixed, (1 - share) * own + share * uniform, rtol=1e-4)
    weights = importance_weights(normalize(jnp.asarray(mixed)), 1000)
    assert np.max(weights) <= (1 + 1e-5) / share


def test_a_chain_ending_in_a_mixture_bounds_the_weights_whatever_comes_before():
    transform = chain(smooth_by_mean(0.5), power(3.0), mix_uniform(0.2))
    for out in run(transform, *(six_decades(500, seed) for seed in range(3))):
        weights = importance_weights(normalize(jnp.asarray(out)), 500)
        assert 3 < np.max(weights) <= 5 * (1 + 1e-5)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_warm_up_is_uniform_at_first(steps):
    scores = np.asarray([0.0, 1.0, 5.0])
    for step, out in enumerate(run(warm_up(steps), *[scores] * 5, wrap=jax.jit)):
        np.testing.assert_array_equal(out, np.ones(3) if step < steps else scores)


# --- by rank

TIED = np.array([0.5, -2.0, 7.0, 0.5, 0.0, 7.0, 0.5, 1e-30, -np.inf])


@pytest.mark.parametrize("scores", [TIED, TIED * -1e20, np.ones(5), six_decades(301)])
def test_percentile_is_the_share_that_scores_no_higher(scores):
    scores = np.asarray(scores, np.float32)
    want = np.mean(scores[None, :] <= scores[:, None], axis=1)
    (out,) = run(percentile(), scores, wrap=jax.jit)
    np.testing.assert_allclose(out, want, rtol=1e-6)
    assert out.max() == 1


def test_percentile_agrees_with_scipy():
    scores = np.random.default_rng(0).integers(-3, 3, 40)
    want = stats.percentileofscore(scores, scores, kind="weak") / 100
    np.testing.assert_allclose(once(percentile(), scores), want, rtol=1e-6)


def ranks(scores):
    """1 for the highest, each of equal scores another one."""
    out = np.empty(len(scores))
    out[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return out


@pytest.mark.parametrize("sign", [-1, 1])
def test_inverse_rank_is_one_over_the_rank_whatever_the_scores(sign):
    scores = sign * six_decades(200)
    (out,) = run(inverse_rank(), scores, wrap=jax.jit)
    np.testing.assert_allclose(out, 1 / ranks(scores), rtol=1e-6)
    np.testing.assert_allclose(out, 1 / stats.rankdata(-scores), rtol=1e-6)
    np.testing.assert_allclose(once(inverse_rank(), [3.0, 9, -1]), [1 / 2, 1, 1 / 3], rtol=1e-6)


def test_equal_scores_share_their_ranks_between_them():
    out = once(inverse_rank(), TIED)
    for value in np.unique(TIED):
        want = np.sort((1 / ranks(TIED))[value == TIED])
        np.testing.assert_allclose(np.sort(out[value == TIED]), want, rtol=1e-6)


@pytest.mark.parametrize("pressure", [1.0, 2.0, 100.0, 1e8])
def test_exponential_rank_is_that_of_online_batch_selection(pressure):
    scores = six_decades(60)
    (out,) = run(exponential_rank(pressure), scores, wrap=jax.jit)
    # arXiv 1511.06343: p_i proportional to 1 / exp(log(s) / N)^i, the i-th highest.
    want = np.exp(np.log(pressure) / 60) ** -ranks(scores)
    np.testing.assert_allclose(out / out.sum(), want / want.sum(), rtol=1e-5)
    assert np.ptp(out) == 0 or pressure > 1


def test_the_pressure_follows_its_schedule_by_draws():
    scores, pressures = np.array([3.0, 1.0, 2.0]), [64.0, 8.0, 1.0, 1.0]
    schedule = optax.piecewise_constant_schedule(64.0, {1: 1 / 8, 2: 1 / 8})
    outs = run(exponential_rank(schedule), *[scores] * 4, wrap=jax.jit)
    for out, pressure in zip(outs, pressures, strict=True):
        want = pressure ** (-np.array([0, 2, 1]) / 3)
        np.testing.assert_allclose(out / out[0], want, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_pruning_keeps_a_share_of_those_below_the_mean(rate):
    scores = np.array([0.0, 3.0, 1.0, 2.0, 4.0, -10.0, 0.0])
    want = np.where(scores < scores.mean(), 1 - rate, 1.0)
    assert scores.mean() == 0 and np.sum(want < 1) == (rate > 0)
    np.testing.assert_allclose(once(prune_below_mean(rate), scores), want, rtol=1e-6)
    scores = six_decades(500)
    want = np.where(scores < scores.mean(dtype=np.float64), 1 - rate, 1.0)
    (out,) = run(prune_below_mean(rate), scores, wrap=jax.jit)
    np.testing.assert_allclose(out, want, rtol=1e-6)


def test_pruning_leaves_out_half_of_those_below_the_mean_by_default():
    np.testing.assert_array_equal(once(prune_below_mean(), [1.0, 2.0, 9.0]), [0.5, 0.5, 1.0])


def test_the_mean_of_huge_scores_does_not_overflow():
    np.testing.assert_array_equal(once(prune_below_mean(), [3e38, 1e38, 2.9e38]), [1, 0.5, 1])


def test_chains_apply_from_left_to_right():
    scores = [1.0, 3.0]
    np.testing.assert_allclose(once(chain(smooth(1), power(2)), scores), [4, 16], rtol=1e-6)
    np.testing.assert_allclose(once(chain(power(2), smooth(1)), scores), [2, 10], rtol=1e-6)
    np.testing.assert_array_equal(once(chain(), scores), scores)


def test_each_link_of_a_chain_keeps_its_own_state():
    links = (warm_up(1), smooth_by_mean(1.0, 0.5), warm_up(2), halve_the_best())
    state = chain(*links).init()
    assert len(state) == 4
    for _ in range(3):
        _, state = chain(*links).update(jnp.asarray([1.0, 3.0]), state)
    assert (int(state[0]), int(state[2]), int(state[3])) == (3, 3, 3)
    # The second link sees ones, then twice [1, 3]: 0.5^3 * 1 + 0.5^2 * 2 + 0.5 * 2
    np.testing.assert_allclose(state[1].average, 1.625, rtol=1e-6)


def test_chains_nest():
    links = (smooth_by_mean(), power(2), mix_uniform(0.1))
    steps = [six_decades(20, seed) for seed in range(3)]
    flat, nested = chain(*links), chain(chain(links[0], links[1]), chain(links[2]))
    np.testing.assert_array_equal(run(flat, *steps), run(nested, *steps))


def test_a_users_own_transform_works_in_a_chain():
    out = run(chain(smooth(1), halve_the_best(), power(2)), [0, 3], [1, 0], wrap=jax.jit)
    np.testing.assert_allclose(out, [[1, 4], [1, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: smooth(-0.1), ["smooth", "constant", "-0.1", ">= 0"]),
        (lambda: smooth(np.nan), ["smooth", "constant", "nan", ">= 0"]),
        (lambda: smooth_by_mean(-2), ["smooth_by_mean", "constant", "-2", ">= 0"]),
        (lambda: smooth_by_mean(0.5, 1.0), ["smooth_by_mean", "decay", "1.0", "[0, 1)"]),
        (lambda: smooth_by_mean(0.5, -0.5), ["smooth_by_mean", "decay", "-0.5", "[0, 1)"]),
        (lambda: power(-1, floor=0), ["power", "floor", "0", "> 0"]),
        (lambda: mix_uniform(1.5), ["mix_uniform", "share", "1.5", "[0, 1]"]),
        (lambda: mix_uniform(-0.1), ["mix_uniform", "share", "-0.1", "[0, 1]"]),
        (lambda: warm_up(-3), ["warm_up", "steps", "-3", ">= 0"]),
        (lambda: exponential_rank(0.5), ["exponential_rank", "pressure", "0.5", ">= 1"]),
        (lambda: exponential_rank(np.nan), ["exponential_rank", "pressure", "nan", ">= 1"]),
        (lambda: prune_below_mean(1.0), ["prune_below_mean", "rate", "1.0", "[0, 1)"]),
        (lambda: prune_below_mean(-0.1), ["prune_below_mean", "rate", "-0.1", "[0, 1)"]),
        (lambda: clip(2, 1), ["clip", "2", "1", "low <= high"]),
        (lambda: clip(-1, 1), ["clip", "-1", "1", "0 <= low"]),
    ],
)
def test_errors_name_the_value_and_its_limit(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words)
