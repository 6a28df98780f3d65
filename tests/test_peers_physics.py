"""benchmarks/peers_physics.py: DeepXDE solves the problem of examples/burgers.py, step by step."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
RATE, STEPS = 1e-2, 4


@pytest.fixture(scope="module")
def peers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDE_BACKEND", "jax")
        pytest.importorskip("deepxde", reason="pip install '.[peers]'")
        patch.syspath_prepend(BENCHMARKS)
        module = importlib.import_module("peers_physics")
        patch.setattr(module, "RAD_PERIOD", 2)
        patch.setattr(module, "RAD_CANDIDATES", 64)
        yield module


@pytest.fixture(scope="module")
def runs(peers):
    return peers.Peers(batch=16, points=64, width=4)


@pytest.mark.slow
def test_deepxde_trains_as_the_example_does(peers, runs):
    trained = runs.train("deepxde fixed", 0, RATE, STEPS)
    model, residual_of = runs.model(RATE, STEPS)
    points = jnp.asarray(model.data.train_x)[:, ::-1]  # (x, t) to (t, x)
    assert points.shape == (16, 2)

    params = runs.init(jax.random.split(jax.random.key(0), 4)[0])
    tx = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    opt_state = tx.init(params)
    grad = jax.jit(jax.grad(lambda params: jnp.mean(runs.problem.loss_fn(params, points))))
    for _ in range(STEPS):
        updates, opt_state = tx.update(grad(params), opt_state)
        params = optax.apply_updates(params, updates)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(trained), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        residual_of(model.net.params, model.data.train_x),
        runs.problem.residual(trained, points),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.slow
def test_deepxde_replaces_its_points(peers, runs):
    def points_after(method):
        runs.train(method, 1, RATE, STEPS)
        return runs.model(RATE, STEPS)[0].data.train_x

    fixed, resampled, rad = map(
        points_after, ["deepxde fixed", "deepxde resample 2", "deepxde rad"]
    )
    for points in (resampled, rad):
        assert points.shape == (16, 2) and not np.any(np.all(points == fixed, axis=1))
        assert np.all((points >= [-1, 0]) & (points <= 1))


@pytest.mark.slow
def test_a_seed_starts_from_the_same_weights(runs):
    by_deepxde = runs.train("deepxde fixed", 3, 0.0, STEPS)
    by_isjax = runs.train("uniform", 3, 0.0, STEPS)
    jax.tree.map(np.testing.assert_array_equal, by_deepxde, by_isjax)
