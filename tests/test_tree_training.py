"""Training steps with `tree_sampler` and scores learned by `HistoryMLP`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isjax import scorers
from isjax.base import Rows
from isjax.samplers import tree_sampler
from isjax.scorers import HistoryMLP
from isjax.training import init_train_state, make_train_step

N, b = 300, 8
KEY = jax.random.key(0)


# Training steps


def regression_loss(params, model_state, batch, key):
    return 0.5 * jnp.square(batch["x"] @ params["w"] - batch["label"]), model_state


def regression():
    x = np.random.default_rng(0).normal(size=(N, 3))
    return {"x": jnp.float32(x), "label": jnp.arange(N) % 3}


def trainer():
    scorer = scorers.learned(scorers.history_mlp(3, num_classes=3), history=3, train_every=4)
    sampler = tree_sampler(scorer, batch_size=b, refresh=16, k=optax.linear_schedule(1.0, 0.5, 5))
    tx = optax.sgd(0.05)
    step = make_train_step(regression_loss, tx, sampler, with_draw=True)
    return step, init_train_state(KEY, {"w": jnp.zeros(3)}, tx, sampler, N)


@pytest.mark.slow
def test_a_training_step_compiles_once_donates_its_state_and_copies_nothing_from_the_host():
    step, state = trainer()
    data, first = regression(), state
    with jax.transfer_guard("disallow"):
        for _ in range(6):
            state, metrics = step(state, data)
    assert step._cache_size() == 1
    assert first.sampler.buffer.losses.is_deleted()
    assert all(level.is_deleted() for level in first.sampler.scores.levels)
    assert state.sampler.step == 6 and state.sampler.next == 6 * 16
    assert np.all(np.isfinite(metrics["draw"].weights))


@pytest.mark.slow
def test_training_on_draws_from_the_tree_lowers_the_loss():
    step, state = trainer()
    data = regression() | {"label": jnp.arange(N) % 1}
    state = state._replace(params={"w": jnp.ones(3)})
    for _ in range(200):
        state, _ = step(state, data)
    assert jnp.mean(regression_loss(state.params, None, data, None)[0]) < 1e-2


def changed(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return any(np.any(np.asarray(one) != np.asarray(two)) for one, two in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4])
def test_learned_trains_at_the_first_update_of_every_few(every):
    scorer = scorers.learned(scorers.history_mlp(2), history=2, train_every=every)
    state, update = scorer.init(KEY), jax.jit(scorer.update)
    ones = jnp.ones(4, jnp.int32)
    rows = Rows(jnp.ones((4, 2)), 2 * ones, ids=jnp.arange(4), age=ones)
    for step in range(9):
        new = update(state, rows, jnp.full((4,), 3.0))
        assert changed(new[:2], state[:2]) == (step % every == 0)
        assert new.step == step + 1
        state = new


def test_learned_refuses_to_train_less_than_never():
    with pytest.raises(ValueError, match="train_every is 0; choose 1 or more"):
        scorers.learned(train_every=0)


# HistoryMLP


def mlp_output(history, count, age, label, params=None):
    network = HistoryMLP(num_classes=3)
    args = (jnp.asarray(history, jnp.float32), *(jnp.asarray(x) for x in (count, age, label)))
    params = network.init(jax.random.key(2), *args) if params is None else params
    return np.asarray(network.apply(params, *args)), params


@pytest.mark.parametrize("never", [0.0, 1e6, -3.0, np.nan, np.inf])
def test_history_mlp_ignores_what_was_never_observed(never):
    count, ones = np.array([0, 1, 2, 3, 9]), np.ones(5, np.int32)
    history = np.random.default_rng(0).exponential(size=(5, 3))
    want, params = mlp_output(history, count, ones, ones)
    other = np.where(np.arange(3) < count[:, None], history, never)
    np.testing.assert_array_equal(mlp_output(other, count, ones, ones, params)[0], want)


def test_history_mlp_depends_on_every_loss_and_on_class_count_and_age():
    history, ones = np.full((1, 3), 0.5), np.ones(1, np.int32)
    base, params = mlp_output(history, 3 * ones, ones, ones)
    others = [(history, n * ones, ones, ones) for n in (2, 4, 100)]
    others += [(history, 3 * ones, age * ones, ones) for age in (2, 1000)]
    others += [(history, 3 * ones, ones, label * ones) for label in (0, 2)]
    others += [(history + 0.3 * np.eye(3)[i], 3 * ones, ones, ones) for i in range(3)]
    outputs = [mlp_output(*other, params)[0][0] for other in others]
    assert len({float(base[0]), *map(float, outputs)}) == len(others) + 1


def test_history_mlp_is_finite_for_losses_of_any_size():
    history = np.array([[0, 0, 0], [1e30, 1e-30, 0], [-1, -1, -1], [3e38, 3e38, 3e38]])
    fours = np.array([4, 4, 4, 2**31 - 1], np.int32)
    assert np.all(np.isfinite(mlp_output(history, fours, fours, 0 * fours)[0]))
