"""Networks, also of the learned scorer: shapes, and outputs against Flax or NumPy float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax.networks import CNN, LSTM, MLP, VGG, WideResNet, max_pool
from isjax.scorers import HistoryLSTM
from isjax.scorers._learned import UNROLL_FROM, _StackedLSTM

HISTORY, CLASSES = 6, 4
# Compiles in less time, to programs that are slower.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MAIN = (
    MLP(CLASSES),
    CNN(CLASSES),
    VGG(CLASSES, 2, 2, dropout=0.0, dense_dropout=0.0),
    WideResNet(CLASSES, 10, 1),
    LSTM(CLASSES, 5),
)


def random_params(network, *inputs):
    """Parameters of the right shapes, none of them zero; quicker than to compile `init`."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(x.dtype), shapes)


@pytest.mark.parametrize(
    "network", [MLP(7, (16, 8)), MLP(7, ()), CNN(7, (4, 8), 3, 16), CNN(7, (4, 8), 3, 16, True)]
)
@pytest.mark.parametrize("shape", [(5, 40, 1), (5, 8, 12, 3), (1, 4, 4, 1)])
def test_networks_give_one_row_of_outputs_per_example(network, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    params = random_params(network, x)
    apply = quick(network.apply)
    outputs = apply(params, x)
    assert outputs.shape == (shape[0], 7) and outputs.dtype == jnp.float32
    alone = apply(params, x[:1])
    np.testing.assert_allclose(outputs[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_pooled_cnn_reads_means_over_all_places_whatever_their_number():
    x = jax.random.normal(jax.random.key(0), (5, 8, 12, 3))
    network = CNN(7, (), hidden=16, pooled=True)
    params = random_params(network, x)
    apply = quick(network.apply)
    alone = apply(params, jnp.mean(x, axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(apply(params, x), alone, rtol=1e-4, atol=1e-5)


def test_an_mlp_is_dense_layers_with_relu_between_them():
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    network = MLP(4, (6, 5))
    params = random_params(network, jnp.asarray(x, jnp.float32))["params"]
    hidden = x.reshape(5, 6)
    for number in range(3):
        layer = params[f"Dense_{number}"]
        hidden = hidden @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        hidden = np.maximum(hidden, 0) if number < 2 else hidden
    ours = quick(network.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", MAIN, ids=lambda network: type(network).__name__)
def test_every_main_network_takes_train_and_needs_no_rng_for_it_unless_it_drops(network):
    x = jnp.zeros((2, 6) if isinstance(network, LSTM) else (2, 8, 8, 1), jnp.int32)
    x = x if isinstance(network, LSTM) else x.astype(jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    for train in (False, True):
        forward = functools.partial(network.apply, train=train, mutable=["batch_stats"])
        assert jax.eval_shape(forward, params, x)[0].shape[-1] == CLASSES
    assert jax.eval_shape(network.apply, params, x).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(3, 8, 2), (2, 6, 4, 3), (2, 4, 2, 6, 1)])
def test_max_pool_is_that_of_flax(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    window = (2,) * (len(shape) - 2)

    def pooled(pool):
        def square(x):
            out = pool(x)
            return jnp.sum(out**2), out

        return quick(jax.grad(square, has_aux=True))(x)

    gradient, ours = pooled(max_pool)
    their_gradient, theirs = pooled(lambda x: nn.max_pool(x, window, strides=window))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 4, 5, 1)])
def test_max_pool_refuses_odd_axes(shape):
    with pytest.raises(ValueError, match="odd"):
        max_pool(jnp.zeros(shape))


def histories(seed=0):
    """Histories with every count, from 0 to more than the history is long."""
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
    return quick(network.apply), random_params(network, history, count, label)


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


def gate_by_gate(params):
    """The arrays of both LSTMs of the history, as Flax's cells name them."""
    cells = [{}, {}]
    for number, cell in enumerate(cells):
        arrays = [params[f"{name}_{number}"] for name in ("kernel", "recurrent", "bias")]
        by_gate = [np.split(np.asarray(x), 4, axis=1) for x in arrays]
        for gate, kernel, recurrent, bias in zip("ifgo", *by_gate, strict=True):
            cell[f"i{gate}"] = {"kernel": kernel}
            cell[f"h{gate}"] = {"kernel": recurrent, "bias": bias[0]}
    return cells


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "rows"), [(6, 4), (1, 4), (2, UNROLL_FROM)])
def test_the_lstms_of_the_history_are_those_of_flax(steps, rows):
    """Their outputs, and their gradients by the losses and by their arrays."""
    layer = nn.RNN(nn.OptimizedLSTMCell(5))
    losses = np.random.default_rng(0).normal(size=(steps, rows)).astype(np.float32)
    params = random_params(_StackedLSTM(5), losses)["params"]

    def ours(params, losses):
        outputs = _StackedLSTM(5).apply({"params": params}, losses)
        return jnp.sum(jnp.square(outputs)), outputs

    def theirs(cells, losses):
        outputs = losses.T[:, :, None]
        for cell in cells:
            outputs = layer.apply({"params": {"cell": cell}}, outputs)
        return jnp.sum(jnp.square(outputs)), jnp.swapaxes(outputs, 0, 1)

    def with_slopes(function):
        return quick(jax.value_and_grad(function, (0, 1), has_aux=True))

    (value, outputs), slopes = with_slopes(ours)(params, losses)
    (want, expected), by_gate = with_slopes(theirs)(gate_by_gate(params), losses)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes[1], by_gate[1], rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        gate_by_gate(slopes[0]),
        by_gate[0],
    )


def numpy_prediction(params, history, count, label):
    """For one example: its observed losses, oldest first, through two LSTMs and a dense layer."""
    params = params["params"]
    cells = gate_by_gate(params["_StackedLSTM_0"])
    observed = np.asarray(history, np.float64)[:count][::-1, None]
    summary = np.zeros(5)
    if len(observed):
        summary = numpy_lstm(cells[1], numpy_lstm(cells[0], observed))[-1]
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
    # All of the history of an example never seen is filler: only the mask can keep it out.
    np.testing.assert_array_equal(apply(params, changed, count, label), before)


def test_the_gradient_of_the_lstm_ignores_it_too():
    _, params = lstm()
    history, count, label = histories()
    apply = HistoryLSTM(CLASSES, 5).apply
    gradient = quick(jax.grad(lambda h: jnp.sum(apply(params, h, count, label))))(history)
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
    assert set(params["params"]) == {"_StackedLSTM_0", "Dense_0"}
    _, params = lstm()
    assert params["params"]["Embed_0"]["embedding"].shape == (CLASSES, 5)


def wide_resnet_size(depth, width, outputs):
    """Number of parameters on RGB images, layer by layer as in the paper."""
    blocks, channels = (depth - 4) // 6, 16
    size = 9 * 3 * channels
    for wide in (16 * width, 32 * width, 64 * width):
        size += 9 * (channels * wide + wide**2) + 2 * (channels + wide)
        size += channels * wide if channels != wide else 0
        size += (blocks - 1) * (2 * 9 * wide**2 + 2 * 2 * wide)
        channels = wide
    return size + 2 * channels + channels * outputs + outputs


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(
    ("depth", "width", "millions"), [(28, 2, 1.5), (40, 1, 0.6), (16, 8, 11.0), (28, 10, 36.5)]
)
def test_wide_resnets_are_as_large_as_published(depth, width, millions, norm):
    images = jnp.zeros((2, 32, 32, 3))
    network = WideResNet(10, depth, width, norm)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert size == wide_resnet_size(depth, width, 10)
    assert round(size / 1e6, 1) == millions
    assert set(shapes) == ({"params"} if norm == "group" else {"params", "batch_stats"})


IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


@functools.cache
def wide_resnet(norm="group", train=False, dropout=0.0):
    """The jitted `apply` of WRN-16-1 to IMAGES, and variables far from their initial values."""
    network = WideResNet(CLASSES, 16, 1, norm, dropout)
    variables = random_params(network, jnp.asarray(IMAGES))
    stats = variables.get("batch_stats", {})
    for name in stats:
        stats[name]["var"] = np.abs(stats[name]["var"]) + np.float32(0.5)
    mutable = ["batch_stats"] if train else False
    return quick(functools.partial(network.apply, train=train, mutable=mutable)), variables


def numpy_convolution(x, kernel, stride):
    size = kernel.shape[0]
    edge = (size // 2, size // 2)
    x = np.pad(x, ((0, 0), edge, edge, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)


def numpy_wide_resnet(variables, x, norm, train):
    """WRN-16-1 in NumPy, and the mean and variance of each batch norm's input."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    params, stats = variables["params"], variables.get("batch_stats")
    convolutions = (params[f"Conv_{i}"]["kernel"] for i in range(15))
    numbers = iter(range(20))
    moments = []

    def activate(x):
        name = f"{norm.title()}Norm_{next(numbers)}"
        if norm == "group":
            grouped = x.reshape(*x.shape[:-1], 8, -1)
            mean = grouped.mean((1, 2, 4), keepdims=True)
            var = grouped.var((1, 2, 4), keepdims=True)
            normed = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
        else:
            moments.append((x.mean((0, 1, 2)), x.var((0, 1, 2))))
            mean, var = moments[-1] if train else (stats[name]["mean"], stats[name]["var"])
            normed = (x - mean) / np.sqrt(var + 1e-5)
        return np.maximum(normed * params[name]["scale"] + params[name]["bias"], 0)

    x = numpy_convolution(np.asarray(x, np.float64), next(convolutions), 1)
    for group in range(3):
        for block in range(2):
            stride = 2 if group and not block else 1
            active = activate(x)
            inner = activate(numpy_convolution(active, next(convolutions), stride))
            if stride == 2:
                x = numpy_convolution(active, next(convolutions), stride)
            x = x + numpy_convolution(inner, next(convolutions), 1)
    x = activate(x).mean((1, 2))
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], moments


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "train"), [("group", False), ("batch", False), ("batch", True)])
def test_a_wide_resnet_is_that_of_the_paper(norm, train):
    apply, variables = wide_resnet(norm, train)
    expected, moments = numpy_wide_resnet(variables, IMAGES, norm, train)
    ours = apply(variables, IMAGES)
    if train:
        ours, new = ours
        for number, batch in enumerate(moments):
            name = f"BatchNorm_{number}"
            for moment, value in zip(("mean", "var"), batch, strict=True):
                old = variables["batch_stats"][name][moment]
                np.testing.assert_allclose(
                    new["batch_stats"][name][moment], 0.9 * old + 0.1 * value, rtol=1e-3, atol=1e-4
                )
    assert ours.shape == (4, CLASSES) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_a_wide_resnet_takes_signals_and_odd_sizes():
    network = WideResNet(CLASSES, 10, 1)
    for shape in [(2, 40, 1), (2, 7, 9, 1)]:
        x = jnp.zeros(shape)
        outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
        assert outputs.shape == (2, CLASSES)


def test_with_group_norm_a_row_does_not_depend_on_the_batch():
    apply, variables = wide_resnet()
    np.testing.assert_allclose(
        apply(variables, IMAGES)[:1], apply(variables, IMAGES[:1]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_the_gradient_of_a_wide_resnet_is_finite_and_reaches_every_layer():
    network = WideResNet(CLASSES, 10, 1, dropout=0.3)
    images = jnp.asarray(IMAGES)
    params = random_params(network, images)

    def loss(params, key):
        outputs = network.apply(params, images, train=True, rngs={"dropout": key})
        return jnp.mean(outputs**2)

    gradient = quick(jax.grad(loss))(params, jax.random.key(0))
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


def dropped_shapes(network, x):
    """The shapes that dropout receives, in order."""
    shapes = []

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            shapes.append(args[0].shape)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        jax.eval_shape(network.init, jax.random.key(0), x)
    return shapes


@pytest.mark.slow
def test_a_wide_resnet_drops_between_the_convolutions_of_a_block_alone():
    shapes = dropped_shapes(WideResNet(CLASSES, 16, 1), jnp.asarray(IMAGES))
    assert shapes == [(4, 8, 8, 16)] * 2 + [(4, 4, 4, 32)] * 2 + [(4, 2, 2, 64)] * 2
    # Dropout zeroes its input: the network acts as without its second convolutions.
    apply, variables = wide_resnet(train=True, dropout=1 - 1e-9)
    second = {f"Conv_{number}" for number in (2, 4, 7, 9, 12, 14)}
    rest = {
        name: jax.tree.map(np.zeros_like, layer) if name in second else layer
        for name, layer in variables["params"].items()
    }
    ours, _ = apply(variables, IMAGES, rngs={"dropout": jax.random.key(0)})
    without, _ = numpy_wide_resnet({"params": rest}, IMAGES, "group", False)
    np.testing.assert_allclose(ours, without, rtol=1e-3, atol=1e-3)


def assert_drops_only_in_training(network, x):
    params = random_params(network, x)
    forward = quick(network.apply, static_argnames="train")
    evaluated = forward(params, x)
    no_dropout = quick(network.clone(dropout=0.0).apply, static_argnames="train")
    np.testing.assert_allclose(evaluated, no_dropout(params, x, train=True), rtol=1e-4, atol=1e-4)
    keys = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = (forward(params, x, train=True, rngs=key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other) and np.all(first != evaluated)


@pytest.mark.slow
def test_a_wide_resnet_drops_only_in_training():
    assert_drops_only_in_training(WideResNet(CLASSES, 10, 1, dropout=0.5), jnp.asarray(IMAGES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 27}, "depth is 27; choose 10, 16"),
        ({"depth": 4}, "depth is 4; choose 10, 16"),
        ({"norm": "layer"}, 'norm is \'layer\'; choose "group" or "batch"'),
        ({"dropout": 1.0}, r"dropout is 1.0; choose a share in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_a_wide_resnet_refuses_what_it_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(CLASSES, **options).init(jax.random.key(0), jnp.asarray(IMAGES))


SMALL_CNN = {"width": 32, "groups": 2, "hidden": (16, 16), "norm": "none"}


@pytest.mark.parametrize(
    ("options", "shape", "sizes"),
    [
        ({}, (32, 32, 3), [64, 64, 128, 128, 256, 256, 1024, 512, 10]),
        (SMALL_CNN, (28, 28, 1), [32, 32, 64, 64, 512, 512, 10]),
    ],
    ids=["cnn", "small_cnn"],
)
def test_the_layers_of_the_authors_convolutional_networks(options, shape, sizes):
    network, x = VGG(10, **options), jnp.zeros((2, *shape))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    kernels = {name: layer.get("kernel") for name, layer in shapes["params"].items()}
    convolutions = [kernels[f"Conv_{i}"].shape for i in range(len(sizes) - 3)]
    dense = [kernels[f"Dense_{i}"].shape for i in range(3)]
    assert [kernel[-1] for kernel in [*convolutions, *dense]] == sizes
    assert {kernel[:2] for kernel in convolutions} == {(3, 3)}
    norms = sum(name.startswith("BatchNorm") for name in shapes["params"])
    assert norms == (len(convolutions) if network.norm == "batch" else 0)
    # Dropout follows each pooling, .25, and each hidden dense layer, .5.
    dropped = dropped_shapes(network, x)
    pooled = [(2, shape[0] // 2**i, shape[1] // 2**i, sizes[2 * i - 1]) for i in (1, 2, 3)]
    assert dropped == [*pooled[: network.groups], *((2, size) for size in sizes[-3:-1])]
    assert (network.dropout, network.dense_dropout) == (0.25, 0.5)


def numpy_vgg(variables, x, norm, train):
    """Two convolutions, pooling and two dense layers in NumPy; moments of each norm's input."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    params, moments = variables["params"], []
    for number in range(2):
        layer = params[f"Conv_{number}"]
        x = np.maximum(numpy_convolution(x, layer["kernel"], 1) + layer["bias"], 0)
        if norm == "batch":
            name = f"BatchNorm_{number}"
            moments.append({"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))})
            used = moments[-1] if train else variables["batch_stats"][name]
            x = (x - used["mean"]) / np.sqrt(used["var"] + 1e-3)
            x = x * params[name]["scale"] + params[name]["bias"]
    x = x.reshape(4, 4, 2, 4, 2, -1).max((2, 4)).reshape(4, -1)
    x = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], moments


@pytest.mark.parametrize(("norm", "train"), [("none", False), ("batch", False), ("batch", True)])
def test_a_vgg_is_convolution_relu_norm_pool_and_dense(norm, train):
    network = VGG(CLASSES, 2, 1, (3,), norm, 0.0, 0.0)
    variables = random_params(network, jnp.asarray(IMAGES))
    for layer in variables.get("batch_stats", {}).values():
        layer["var"] = np.abs(layer["var"]) + np.float32(0.5)
    apply = quick(functools.partial(network.apply, train=train, mutable=["batch_stats"]))
    ours, new = apply(variables, IMAGES)
    expected, moments = numpy_vgg(variables, IMAGES.astype(np.float64), norm, train)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    for number, of_batch in enumerate(moments):
        old, name = variables["batch_stats"], f"BatchNorm_{number}"
        for moment, value in of_batch.items():
            wanted = 0.99 * old[name][moment] + 0.01 * value if train else old[name][moment]
            np.testing.assert_allclose(new["batch_stats"][name][moment], wanted, rtol=1e-4)


@pytest.mark.slow
def test_the_gradient_of_a_vgg_is_finite_behind_batch_norm():
    """The compiler may round batch norm's output in two ways, so that no entry is the maximum."""
    network = VGG(CLASSES, 2, 1, (3,), "batch", 0.0, 0.0)
    images = jax.random.uniform(jax.random.key(0), (6, 32, 32, 3))
    variables = random_params(network, images)

    def loss(params):
        outputs, _ = network.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(outputs**2)

    for leaf in jax.tree.leaves(quick(jax.grad(loss))(variables["params"])):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_max_pool_does_not_hide_nan(place):
    x = np.array([1.0, 2.0, -1.0, 5.0], np.float32)
    x[place] = np.nan
    assert np.isnan(max_pool(jnp.asarray(x.reshape(1, 2, 2, 1)))).all()


def test_a_vgg_drops_only_in_training():
    network = VGG(CLASSES, 2, 1, (8,), "none", dropout=0.5, dense_dropout=0.0)
    assert_drops_only_in_training(network, jnp.asarray(IMAGES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "group"}, 'norm is \'group\'; choose "batch" or "none"'),
        ({"dropout": 1.0}, r"dropout is 1.0; choose a share in \[0, 1\)"),
        ({"dense_dropout": -0.1}, "dropout is -0.1"),
        ({"groups": 4}, "has an odd one"),
    ],
)
def test_a_vgg_refuses_what_it_cannot_be(options, message):
    network = VGG(CLASSES, 2, **{"groups": 1, **options})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.asarray(IMAGES))


VOCABULARY = 11
TOKENS = np.array([[3, 0, 10, 7, 7, 2], [5, 5, 1, -1, -1, -1], [0] + [-1] * 5, [-1] * 6], np.int32)


def language_model(**options):
    return LSTM(VOCABULARY, features=5, embedding=4, **options)


@functools.cache
def apply_language_model(every_position=True):
    network = language_model(every_position=every_position)
    return quick(network.apply), random_params(network, jnp.asarray(TOKENS))


def numpy_logits(params, tokens):
    """[T, outputs] of one row of tokens without padding, through two LSTMs."""
    params = params["params"]
    x = np.asarray(params["Embed_0"]["embedding"], np.float64)[tokens]
    for number in range(2):
        x = numpy_lstm(params[f"OptimizedLSTMCell_{number}"], x)
    return x @ np.asarray(params["Dense_0"]["kernel"], np.float64) + params["Dense_0"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize("every_position", [True, False])
def test_the_language_model_is_stacked_lstms(every_position):
    apply, params = apply_language_model(every_position)
    ours = apply(params, TOKENS)
    shape = (4, 6, VOCABULARY) if every_position else (4, VOCABULARY)
    assert ours.shape == shape and ours.dtype == jnp.float32
    assert np.all(np.isfinite(ours))
    for row, tokens in zip(ours, TOKENS, strict=True):
        tokens = tokens[tokens >= 0]
        if len(tokens):
            expected = numpy_logits(params, tokens)
            row, expected = (
                (row[: len(tokens)], expected) if every_position else (row, expected[-1])
            )
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every_position", [True, False])
def test_padding_does_not_influence_the_language_model(every_position):
    apply, params = apply_language_model(every_position)
    ours = np.asarray(apply(params, TOKENS))
    np.testing.assert_array_equal(apply(params, np.where(TOKENS < 0, -9, TOKENS)), ours)
    alone = np.asarray(apply(params, TOKENS[1:2, :3]))
    with_padding = ours[1:2, :3] if every_position else ours[1:2]
    np.testing.assert_allclose(with_padding, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_language_model_drops_connections_that_are_not_recurrent():
    for options, last in [({}, (4, 6, 5)), ({"every_position": False}, (4, 5))]:
        shapes = dropped_shapes(language_model(dropout=0.5, **options), jnp.asarray(TOKENS))
        assert shapes == [(4, 6, 4), (4, 6, 5), last]
    spared = language_model(dropout=0.5, drop_embedding=False)
    assert dropped_shapes(spared, jnp.asarray(TOKENS)) == [(4, 6, 5)] * 2
    assert_drops_only_in_training(language_model(dropout=0.5), jnp.asarray(TOKENS))


def test_the_sizes_of_the_language_model():
    tokens = jnp.asarray(TOKENS)
    sizes = [
        sum(
            x.size for x in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0), tokens))
        )
        for network in (LSTM(50), LSTM(50, features=30, layers=3, embedding=20))
    ]
    assert sizes == [
        50 * 200 + 2 * (4 * 200 * 401) + 201 * 50,
        50 * 20 + 4 * 30 * 51 + 2 * (4 * 30 * 61) + 31 * 50,
    ]


def test_the_language_model_refuses_to_drop_everything():
    with pytest.raises(ValueError, match=r"dropout is 1\.5; choose"):
        language_model(dropout=1.5).init(jax.random.key(0), jnp.asarray(TOKENS))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (CNN(3, channels=16), r"CNN: channels is 16; give .*, such as \(16,\)"),
        (MLP(3, hidden=32), r"MLP: hidden is 32; give .*, such as \(32,\)"),
        (VGG(3, hidden=16), r"VGG: hidden is 16; give .*, such as \(16,\)"),
    ],
    ids=["CNN", "MLP", "VGG"],
)
def test_a_single_size_in_place_of_a_sequence_is_named(network, message):
    with pytest.raises(TypeError, match=message):
        network.init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
