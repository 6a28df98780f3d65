"""Conditions against the whole pool's value in float64, alone and behind a gate."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_mean, innermost, with_innermost

from isjax import conditions, scorers
from isjax.conditions import after, error_rate, mean_loss, tau, total_variation, until
from isjax.samplers import gate, importance_sampler

KEY = jax.random.key(0)
NAN, INF = np.nan, np.inf


def error_of(losses):
    """1 - p(true class), for which a loss of cross-entropy stands."""
    return -jnp.expm1(-losses)


def pool_mean(losses):
    return np.mean(losses)


def pool_error(losses):
    return np.mean(losses > np.log(2))


def pool_variation(losses):
    return 0.5 * np.sum(np.abs(losses / np.sum(losses) - 1 / len(losses)))


def pool_tau(losses):
    share = losses / np.sum(losses)
    return np.sqrt(len(losses) * np.sum(share**2))


def pool_tau_of_errors(losses):
    return pool_tau(1 - np.exp(-losses))


# Each with what it makes of the losses of a pool, where its average starts and which way it opens.
STATISTICS = {
    "error_rate": (error_rate, pool_error, None, np.greater),
    "mean_loss": (mean_loss, pool_mean, None, np.less),
    "total_variation": (total_variation, pool_variation, 0.0, np.greater),
    "tau": (tau, pool_tau, 1.0, np.greater),
    "tau of errors": (
        functools.partial(tau, importance=error_of),
        pool_tau_of_errors,
        1.0,
        np.greater,
    ),
}
every = pytest.mark.parametrize("name", STATISTICS)


@functools.cache
def compiled(make, *arguments):
    condition = make(*arguments)
    return condition, jax.jit(condition.update), jax.jit(condition.is_open)


def weighted_batch(seed):
    """Losses of a pool, and a batch in which example i comes n_i times, drawn by p_i = n_i / b."""
    rng = np.random.default_rng(seed)
    losses, times = rng.exponential(size=12) ** 2, rng.integers(1, 5, 12)
    index = np.repeat(np.arange(12), times)
    share = 1 / (times / times.sum())[index]
    return losses, jnp.float32(losses[index]), jnp.float32(share / share.sum())


def test_every_public_condition_is_tested_here():
    assert set(conditions.__all__) == {"after", "until"} | set(STATISTICS) - {"tau of errors"}


@every
def test_without_memory_the_value_is_that_of_the_whole_pool(name):
    make, of_pool, _, _ = STATISTICS[name]
    condition, update, _ = compiled(make, 0.5, 0.0)
    state = condition.init()
    for seed in range(3):
        losses, drawn, share = weighted_batch(seed)
        state = update(state, drawn, share)
        assert float(state) == pytest.approx(of_pool(losses), rel=1e-5)
        assert abs(of_pool(np.asarray(drawn, np.float64)) / of_pool(losses) - 1) > 0.001
    assert state.shape == () and state.dtype == jnp.float32


@pytest.mark.slow
@every
def test_the_value_is_a_moving_average_and_the_gate_opens_on_its_side_of_it(name):
    make, of_pool, start, opens = STATISTICS[name]
    decay, average, values = 0.75, start, []
    condition, update, _ = compiled(make, 0.5, decay)
    state = condition.init()
    for seed in range(5):
        losses, drawn, share = weighted_batch(seed)
        state, now = update(state, drawn, share), of_pool(losses)
        average = now if average is None else decay * average + (1 - decay) * now
        assert float(state) == pytest.approx(average, rel=1e-5)
        values.append(average)
    # Judged by thresholds on both sides of it, and at the value itself: closed.
    for value in values:
        for threshold in (0.9 * value, 1.1 * value):
            is_open = make(threshold, decay).is_open(jnp.float32(value), 3)
            assert bool(is_open) == opens(value, threshold)
        exact = float(np.float32(value))
        assert not make(exact, decay).is_open(jnp.float32(value), 3)


@every
def test_the_default_remembers_ten_batches(name):
    make, _, _, _ = STATISTICS[name]
    _, drawn, share = weighted_batch(5)
    condition, update, _ = compiled(make, 0.5)
    other, update_other, _ = compiled(make, 0.5, 0.9)
    state, same = condition.init(), other.init()
    for scale in (1.0, 0.1):
        state, same = update(state, scale * drawn, share), update_other(same, scale * drawn, share)
    assert float(state) == float(same)


@pytest.mark.parametrize("name", ["total_variation", "tau"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_what_compares_losses_does_not_depend_on_their_scale(name, scale):
    make, of_pool, _, _ = STATISTICS[name]
    condition, update, _ = compiled(make, 0.5, 0.0)
    losses, drawn, share = weighted_batch(1)
    value = float(update(condition.init(), scale * drawn, share))
    assert value == pytest.approx(of_pool(losses), rel=1e-4)


@every
@pytest.mark.parametrize(
    ("losses", "want"),
    [
        ([0.0] * 4, {"error_rate": 0, "mean_loss": 0, "total_variation": 0, "tau": 1}),
        ([2.0] * 4, {"error_rate": 1, "mean_loss": 2, "total_variation": 0, "tau": 1}),
        (
            [0.0, 8.0, 0.0, 0.0],
            {"error_rate": 0.25, "mean_loss": 2, "total_variation": 0.75, "tau": 2},
        ),
    ],
    ids=["nothing left to lose", "all alike", "one has it all"],
)
def test_extremes_are_finite_and_in_closed_form(name, losses, want):
    condition, update, _ = compiled(STATISTICS[name][0], 0.5, 0.0)
    value = float(update(condition.init(), jnp.float32(losses), jnp.full(4, 0.25)))
    assert value == pytest.approx(want[name.removesuffix(" of errors")], abs=1e-6)


# --- the start


def test_the_mean_loss_is_closed_until_a_first_batch_which_counts_whole():
    condition, update, is_open = compiled(mean_loss, 1.0, 0.9)
    state, share = condition.init(), jnp.full(4, 0.25)
    assert not is_open(state, 0)
    state = update(state, jnp.float32([0, 1, 2, 0]), share)
    assert float(state) == 0.75 and is_open(state, 1)
    state = update(state, jnp.float32([4, 4, 4, 4]), share)
    assert float(state) == pytest.approx(0.9 * 0.75 + 0.4) and not is_open(state, 2)


def test_the_error_rate_counts_the_first_batch_whole_and_closes_at_its_threshold():
    condition, update, is_open = compiled(error_rate, 0.25, 0.5)
    state, share = condition.init(), jnp.full(4, 0.25)
    assert is_open(state, 0)
    state = update(state, jnp.float32([0, 1, 0, 0.69]), share)  # log 2 is 0.693
    assert float(state) == 0.25 and not is_open(state, 1)
    state = update(state, jnp.float32([0, 1, 0, 0.7]), share)
    assert float(state) == 0.375 and is_open(state, 2)


@pytest.mark.parametrize(("make", "start"), [(total_variation, 0.0), (tau, 1.0)])
def test_what_compares_losses_starts_at_what_equal_losses_have(make, start):
    condition, update, is_open = compiled(make, start, 0.9)
    state = condition.init()
    assert float(state) == start and not is_open(state, 0)
    equal = update(state, jnp.full(4, 3.0), jnp.full(4, 0.25))
    assert float(equal) == pytest.approx(start, abs=1e-7)
    assert is_open(update(state, jnp.float32([0, 0, 0, 1]), jnp.full(4, 0.25)), 1)


# --- by the number of draws


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_after_and_until_split_the_draws_between_them(steps):
    opened_by = {after: [s >= steps for s in range(6)], until: [s < steps for s in range(6)]}
    for make, want in opened_by.items():
        condition, update, is_open = compiled(make, steps)
        state = condition.init()
        for step in range(6):
            assert bool(is_open(state, jnp.int32(step))) == want[step]
            state = update(state, jnp.float32([NAN, 1.0]), jnp.float32([0.5, 0.5]))
        assert state == ()


# --- behind a gate


@functools.cache
def gated(make, *arguments):
    sampler = gate(importance_sampler(scorers.last_loss(), batch_size=8), make(*arguments))
    return helpers.compiled(sampler)


@pytest.mark.slow
@every
def test_behind_a_gate_what_is_not_finite_is_left_out_and_negative_losses_are_zero(name):
    make, of_pool, start, _ = STATISTICS[name]
    sampler = gated(make, 0.5, 0.5)
    draw, state = sampler.sample(KEY, sampler.init(KEY, 40))
    losses = np.array([3.0, NAN, -1.0, 0.5, INF, -INF, 0.0, 1.5])
    state = sampler.update(state, draw, jnp.float32(losses))
    now = of_pool(np.array([3.0, 0.0, 0.5, 0.0, 1.5]))
    want = now if start is None else 0.5 * start + 0.5 * now
    assert float(state.condition) == pytest.approx(want, rel=1e-5)
    after_bad = state
    for bad in (NAN, INF, -INF):
        after_bad = sampler.update(after_bad, draw, jnp.full(8, bad))
        assert float(after_bad.condition) == float(state.condition)
    sound = sampler.update(after_bad, draw, jnp.arange(8.0))
    want = 0.5 * want + 0.5 * of_pool(np.arange(8.0))
    assert float(sound.condition) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
@every
def test_behind_a_gate_a_start_without_a_finite_loss_is_no_start(name):
    make, _, start, _ = STATISTICS[name]
    sampler = gated(make, 0.5, 0.5)
    draw, state = sampler.sample(KEY, sampler.init(KEY, 40))
    state = sampler.update(state, draw, jnp.full(8, NAN))
    assert float(state.condition) == (INF if start is None else start)


@functools.cache
def estimates(is_open):
    """Of each statistic from one batch of 200 among 400, over many draws by stale losses."""
    rng = np.random.default_rng(3)
    losses = rng.exponential(size=400)
    stale = jnp.float32(losses * rng.uniform(0.5, 2.0, size=400) + 0.5)

    def by(name):
        condition = STATISTICS[name][0](1.0, 0.0)
        condition = condition._replace(is_open=lambda state, step: is_open)
        sampler = gate(importance_sampler(scorers.last_loss(), batch_size=200), condition)
        state = sampler.init(KEY, 400)
        known = {"losses": stale, "count": jnp.ones(400, jnp.int32)}
        state = with_innermost(state, buffer=innermost(state).buffer._replace(**known))

        def one(key):
            draw, drawn = sampler.sample(key, state)
            return sampler.update(drawn, draw, jnp.float32(losses)[draw.ids]).condition

        return one

    every_one = {name: by(name) for name in STATISTICS}
    together = jax.vmap(lambda key: {name: one(key) for name, one in every_one.items()})
    return losses, jax.jit(together)(jax.random.split(KEY, 400))


@pytest.mark.slow
@every
@pytest.mark.parametrize("is_open", [False, True], ids=["uniform draws", "importance-sampled"])
def test_the_pools_value_is_estimated_from_either_kind_of_draw(name, is_open):
    losses, estimated = estimates(is_open)
    values, want = np.asarray(estimated[name], np.float64), STATISTICS[name][1](losses)
    error = values.std() / np.sqrt(len(values))
    assert error < 0.01 * want
    assert abs(values.mean() - want) <= 5 * error + 0.005 * want  # ratios are biased by O(1 / b)


@pytest.mark.slow
def test_the_mean_of_few_losses_is_estimated_without_bias_by_uniform_draws():
    losses, estimated = estimates(False)
    assert_mean(np.asarray(estimated["mean_loss"])[:, None], losses.mean())


# --- errors


@pytest.mark.parametrize("make", [error_rate, mean_loss, total_variation, tau])
@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, NAN])
def test_a_decay_outside_its_range_is_refused(make, decay):
    with pytest.raises(ValueError, match=rf"decay is {decay}.*in \[0, 1\)"):
        make(1.2, decay)
