"""Networks: shapes, pooling against Flax, and the history LSTM against NumPy float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.networks import CNN, MLP, HistoryLSTM, max_pool

HISTORY, CLASSES = 6, 4


def random_params(network, *inputs):
    """Of the right shapes, none of them zero, without the time it takes to compile `init`."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(x.dtype), shapes)


@pytest.mark.parametrize("network", [MLP(7, (16, 8)), MLP(7, ()), CNN(7, (4, 8), 3, 16)])
@pytest.mark.parametrize("shape", [(5, 40, 1), (5, 8, 12, 3), (1, 4, 4, 1)])
def test_networks_give_one_row_of_outputs_per_example(network, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    params = random_params(network, x)
    outputs = network.apply(params, x)
    assert outputs.shape == (shape[0], 7) and outputs.dtype == jnp.float32
    alone = network.apply(params, x[:1])
    np.testing.assert_allclose(outputs[:1], alone, rtol=1e-4, atol=1e-5)


def test_an_mlp_is_dense_layers_with_relu_between_them():
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    network = MLP(4, (6, 5))
    params = random_params(network, jnp.asarray(x, jnp.float32))["params"]
    hidden = x.reshape(5, 6)
    for number in range(3):
        layer = params[f"Dense_{number}"]
        hidden = hidden @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        hidden = np.maximum(hidden, 0) if number < 2 else hidden
    ours = network.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8, 2), (2, 6, 4, 3), (2, 4, 2, 6, 1)])
def test_max_pool_is_that_of_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    window = (2,) * (len(shape) - 2)
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, window, strides=window))
    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) ** 2))(x)
        for pool in (max_pool, lambda x: nn.max_pool(x, window, strides=window))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 4, 5, 1)])
def test_max_pool_refuses_odd_axes(shape):
    with pytest.raises(ValueError, match="odd"):
        max_pool(jnp.zeros(shape))


def histories(seed=0):
    """Every count from never seen to more often than the history is long."""
    rng = np.random.default_rng(seed)
    count = np.arange(HISTORY + 3)
    history = rng.exponential(size=(len(count), HISTORY)).astype(np.float32)
    return history, count, rng.integers(0, CLASSES, len(count))


@functools.cache
def lstm(num_classes=CLASSES):
    """The network's jitted `apply`, and parameters."""
    network = HistoryLSTM(num_classes, 5)
    history, count, label = map(jnp.asarray, histories())
    label = None if num_classes is None else label
    return jax.jit(network.apply), random_params(network, history, count, label)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(cell, inputs):
    """Outputs [T, features] of one sequence [T, inputs], as Flax's LSTM cells define them."""
    cell = jax.tree.map(lambda x: np.asarray(x, np.float64), cell)
    c = h = np.zeros(cell["hi"]["bias"].shape)
    outputs = []
    for x in inputs:
        gate = {
            name: x @ cell[f"i{name}"]["kernel"]
            + h @ cell[f"h{name}"]["kernel"]
            + cell[f"h{name}"]["bias"]
            for name in "ifgo"
        }
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        outputs.append(h)
    return np.asarray(outputs)


def numpy_prediction(params, history, count, label):
    """For one example: its observed losses, oldest first, through two LSTMs and a dense layer."""
    params = params["params"]
    features = params["OptimizedLSTMCell_0"]["hi"]["bias"].shape[0]
    observed = np.asarray(history, np.float64)[:count][::-1, None]
    summary = np.zeros(features)
    if len(observed):
        inner = numpy_lstm(params["OptimizedLSTMCell_0"], observed)
        summary = numpy_lstm(params["OptimizedLSTMCell_1"], inner)[-1]
    if label is not None:
        summary = np.concatenate([summary, params["Embed_0"]["embedding"][label]])
    return (summary @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])[0]


@pytest.mark.parametrize("num_classes", [CLASSES, None])
def test_the_lstm_reads_observed_losses_oldest_first(num_classes):
    apply, params = lstm(num_classes)
    history, count, label = histories(seed=4)
    label = None if num_classes is None else label
    ours = apply(params, history, count, label)
    labels = [None] * len(count) if label is None else label
    rows = zip(history, count, labels, strict=True)
    expected = [numpy_prediction(params, *row) for row in rows]
    assert ours.shape == (len(count),) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("filler", [-7.0, 1e30, np.nan])
def test_the_lstm_ignores_what_was_never_observed(filler):
    apply, params = lstm()
    history, count, label = histories()
    masked = np.arange(HISTORY)[None] >= count[:, None]
    changed = np.where(masked, np.float32(filler), history)
    before = apply(params, history, count, label)
    # An example never seen has nothing else to be read: the mask itself must keep it out.
    np.testing.assert_array_equal(apply(params, changed, count, label), before)


def test_the_gradient_of_the_lstm_ignores_it_too():
    apply, params = lstm()
    history, count, label = histories()
    gradient = jax.grad(lambda h: jnp.sum(apply(params, h, count, label)))(history)
    np.testing.assert_array_equal(gradient != 0, np.arange(HISTORY)[None] < count[:, None])


def test_the_lstm_tells_classes_and_orders_apart():
    apply, params = lstm()
    history, count, label = histories()
    before = np.asarray(apply(params, history, count, label))
    other_class = np.asarray(apply(params, history, count, (label + 1) % CLASSES))
    turned = np.asarray(apply(params, history[:, ::-1], count, label))
    assert np.all(before != other_class)
    assert np.all((before != turned) == (count > 0))


def test_the_lstm_has_no_classes_to_embed_without_labels():
    _, params = lstm(None)
    assert set(params["params"]) == {"OptimizedLSTMCell_0", "OptimizedLSTMCell_1", "Dense_0"}
    _, params = lstm()
    assert params["params"]["Embed_0"]["embedding"].shape == (CLASSES, 5)
