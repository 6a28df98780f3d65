import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.experiment import schedules

RATE = 0.3


def rates(schedule, steps):
    """The schedule as the optimiser calls it: traced, with an int32 count."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32)), np.float64)


def warmed(steps, warmup_steps, after):
    """Linear from zero to RATE, reached when `warmup_steps` have been taken; then `after`."""
    steps = np.asarray(steps, np.float64)
    rising = RATE * steps / max(warmup_steps, 1)
    return np.where(steps < warmup_steps, rising, after(np.maximum(steps, warmup_steps)))


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.1, 20), (0.5, 100), (0.001, 0)])
@pytest.mark.usefixtures("compiled_as_for_users")  # else it rounds to 3e-6
def test_constant_stays_after_warmup(warmup, steps):
    when = np.arange(0, 260)
    want = warmed(when, steps, lambda step: np.full(step.shape, RATE))
    got = rates(schedules.constant(RATE, 200, warmup=warmup), when)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 200])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_cosine_is_half_a_cosine_from_the_rate_to_zero(num_steps, warmup):
    start = round(warmup * num_steps)
    when = np.arange(0, num_steps + 60)  # beyond the end it stays at zero

    def after(step):
        share = np.minimum((step - start) / (num_steps - start), 1.0)
        return RATE * (1 + np.cos(np.pi * share)) / 2

    got = rates(schedules.cosine(RATE, num_steps, warmup=warmup), when)
    np.testing.assert_allclose(got, warmed(when, start, after), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got[num_steps:], 0.0, atol=1e-7)
    assert got[start] == pytest.approx(RATE) and (warmup == 0 or start == 0 or got[0] == 0)


@pytest.mark.parametrize(
    ("options", "start", "drops", "factor"),
    [
        ({}, 0, [60, 120, 160], 0.2),  # of the wide ResNets: 60, 120 and 160 of 200 epochs
        ({"warmup": 0.1}, 20, [60, 120, 160], 0.2),
        ({"boundaries": (0.5,), "factor": 0.1}, 0, [100], 0.1),
        ({"boundaries": (0.75, 0.5), "factor": 0.5}, 0, [100, 150], 0.5),
        ({"boundaries": [0.1, 0.2], "warmup": 0.1, "factor": 0.3}, 20, [20, 40], 0.3),
        ({"boundaries": ()}, 0, [], 1.0),
    ],
    ids=["default", "warmup", "one", "unsorted", "drop as warmup ends", "none"],
)
def test_step_drops_after_each_share_of_the_run(options, start, drops, factor):
    when = np.arange(0, 220)

    def after(step):
        return RATE * factor ** np.sum(step[:, None] >= np.array(drops, float)[None, :], axis=1)

    got = rates(schedules.step(RATE, 200, **options), when)
    np.testing.assert_allclose(got, warmed(when, start, after), rtol=1e-5)


def test_step_drops_as_soon_as_the_share_is_over_and_not_before():
    got = rates(schedules.step(1.0, 10, boundaries=(0.3,), factor=0.5), range(11))
    np.testing.assert_allclose(got, [1.0] * 3 + [0.5] * 8)


@pytest.mark.parametrize("name", schedules.__all__)
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_longer_run_stretches_the_schedule(name, warmup):
    """The rate is a function of the share of the run that is over, not of the steps taken."""
    make = getattr(schedules, name)
    short = rates(make(RATE, 100, warmup=warmup), np.arange(101))
    for factor in (2, 7):
        long = rates(make(RATE, 100 * factor, warmup=warmup), factor * np.arange(101))
        np.testing.assert_allclose(long, short, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", schedules.__all__)
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_warmup_that_is_no_share_is_refused(name, warmup):
    with pytest.raises(ValueError, match=rf"warmup: {warmup} is no share .*choose one in \[0, 1\)"):
        getattr(schedules, name)(RATE, 100, warmup=warmup)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_boundary_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=f"boundaries: {share} is no share"):
        schedules.step(RATE, 100, boundaries=(0.5, share))


def test_a_drop_during_warmup_is_refused():
    with pytest.raises(ValueError, match=r"boundaries \(0.1, 0.5\) begin before warmup, 0.2, has"):
        schedules.step(RATE, 100, boundaries=(0.1, 0.5), warmup=0.2)


@pytest.mark.parametrize(("boundaries", "num_steps"), [((0.5, 0.5), 100), ((0.3, 0.6, 0.8), 2)])
def test_drops_that_fall_on_one_step_multiply(boundaries, num_steps):
    """As they do in a short run of a long run's schedule."""
    rate = schedules.step(RATE, num_steps, boundaries=boundaries, factor=0.2)
    assert float(rate(0)) == pytest.approx(RATE)
    assert float(rate(num_steps + 1)) == pytest.approx(RATE * 0.2 ** len(boundaries))
