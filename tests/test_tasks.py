import jax
import numpy as np
import pytest

from isjax import data, networks, tasks


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    part = {"x": rng.normal(size=(6, 4)).astype(np.float32), "label": np.arange(6) % 3}
    return tasks.classification(data.from_arrays(part, part, 3), networks.MLP(3, hidden=(5,)))


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_losses_and_accuracy_equal_numpy(task):
    params, model_state = task.init(jax.random.key(0))
    batch = task.dataset.train
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    hidden = np.maximum(batch["x"] @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    logits = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    expected = -log_softmax(logits)[np.arange(6), batch["label"]]

    losses, state = task.loss_fn(params, model_state, batch, jax.random.key(1))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert state is model_state
    np.testing.assert_allclose(task.score_fn(params, model_state, batch), expected, rtol=1e-5)
    metrics = task.metrics_fn(params, model_state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], logits.argmax(axis=1) == batch["label"])
