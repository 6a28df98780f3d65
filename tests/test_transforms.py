"""Score transforms against NumPy, under jit, in chains, and refusing what makes no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import probabilities, six_decades

from isjax import transforms
from isjax.base import ScoreTransform
from isjax.distributions import normalize
from isjax.transforms import (
    chain,
    clip,
    identity,
    mix_uniform,
    power,
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
    _, after = transform.update(jnp.ones(5), state)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


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
        average = decay * average + (1 - decay) * scores.mean(dtype=np.float64)
        corrected = average / (1 - decay**step)
        np.testing.assert_allclose(out, scores + constant * corrected, rtol=1e-4)


def test_smooth_by_mean_defaults_to_half_of_an_average_of_ten_steps():
    ones, threes = np.ones(4), np.full(4, 3.0)
    first, second = run(smooth_by_mean(), ones, threes)
    np.testing.assert_allclose(first, 1.5 * ones, rtol=1e-5)
    # (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81)
    np.testing.assert_allclose(second, 3 + 0.5 * 0.39 / 0.19, rtol=1e-5)


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
        (lambda: clip(2, 1), ["clip", "2", "1", "low <= high"]),
        (lambda: clip(-1, 1), ["clip", "-1", "1", "0 <= low"]),
    ],
)
def test_errors_name_the_value_and_its_limit(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words)
