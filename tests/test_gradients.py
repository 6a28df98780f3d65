"""Weighted gradients and per-example norms against NumPy and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from isjax import recipes, scorers
from isjax.base import Rows
from isjax.gradients import check_losses, per_example_grad_norms, weighted_value_and_grad
from isjax.training import init_train_state

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
W, BIAS = RNG.normal(size=3), 0.7
WEIGHTS = RNG.uniform(0.1, 4, 12)
PARAMS = {"w": jnp.asarray(W, jnp.float32), "b": jnp.asarray(BIAS, jnp.float32)}
BATCH = {"x": jnp.asarray(X, jnp.float32), "y": jnp.asarray(Y, jnp.float32)}
ONE_WEIGHT_EACH = jnp.asarray(WEIGHTS, jnp.float32)
both = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


def squared_errors(params, batch, scale=1.0):
    return scale * (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def numpy_losses_and_gradients():
    residual = X @ W + BIAS - Y
    return residual**2, 2 * residual[:, None] * X, 2 * residual


@both
@pytest.mark.parametrize("weights", [WEIGHTS, np.eye(12)[4], np.zeros(12)])
def test_value_losses_and_gradient_of_a_weighted_regression(weights, wrap):
    value_and_grad = wrap(weighted_value_and_grad(squared_errors))
    (loss, returned), grads = value_and_grad(PARAMS, BATCH, jnp.asarray(weights, jnp.float32))
    losses, by_w, by_b = numpy_losses_and_gradients()
    np.testing.assert_allclose(loss, np.mean(weights * losses), rtol=1e-5)
    np.testing.assert_allclose(returned, losses, rtol=1e-4, atol=1e-6)
    expected = np.mean(weights[:, None] * by_w, axis=0)
    np.testing.assert_allclose(grads["w"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["b"], np.mean(weights * by_b), rtol=1e-4, atol=1e-6)


@both
def test_auxiliary_data_and_extra_arguments_pass_through(wrap):
    def loss_fn(params, batch, state, scale):
        return squared_errors(params, batch, scale), {"seen": state + 1}

    value_and_grad = weighted_value_and_grad(loss_fn, has_aux=True)
    (loss, (losses, aux)), grads = wrap(value_and_grad)(PARAMS, BATCH, ONE_WEIGHT_EACH, 4, 3.0)
    expected, by_w, _ = numpy_losses_and_gradients()
    assert aux == {"seen": 5}
    np.testing.assert_allclose(losses, 3 * expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss, 3 * np.mean(WEIGHTS * expected), rtol=1e-5)
    np.testing.assert_allclose(grads["w"], 3 * np.mean(WEIGHTS[:, None] * by_w, axis=0), rtol=1e-4)


@both
@pytest.mark.parametrize("size", [7, 12])
def test_weights_of_one_give_the_plain_mean_gradient_to_the_last_bit(size, wrap):
    batch = jax.tree.map(lambda x: x[:size], BATCH)

    def plain(params, batch):
        losses = squared_errors(params, batch)
        return jnp.mean(losses), losses

    expected = wrap(jax.value_and_grad(plain, has_aux=True))(PARAMS, batch)
    ours = wrap(weighted_value_and_grad(squared_errors))(PARAMS, batch, jnp.ones(size))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@both
@pytest.mark.parametrize("has_aux", [False, True])
def test_weights_may_be_a_function_of_the_losses_without_a_gradient_of_their_own(has_aux, wrap):
    def loss_fn(params, batch):
        losses = squared_errors(params, batch)
        return (losses, {"aux": 1}) if has_aux else losses

    def weigh(losses):
        return ONE_WEIGHT_EACH / (1 + losses)

    value_and_grad = wrap(
        lambda params, batch: weighted_value_and_grad(loss_fn, has_aux)(params, batch, weigh)
    )
    (loss, out), grads = value_and_grad(PARAMS, BATCH)
    losses, by_w, by_b = numpy_losses_and_gradients()
    weights = WEIGHTS / (1 + losses)
    np.testing.assert_allclose(loss, np.mean(weights * losses), rtol=1e-5)
    np.testing.assert_allclose(out[0] if has_aux else out, losses, rtol=1e-4, atol=1e-6)
    assert not has_aux or out[1] == {"aux": 1}
    # Not the gradient of mean(w(L) L), which has a term by w' besides.
    expected = np.mean(weights[:, None] * by_w, axis=0)
    np.testing.assert_allclose(grads["w"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["b"], np.mean(weights * by_b), rtol=1e-4, atol=1e-6)


def test_a_function_of_the_losses_and_its_values_give_the_same_gradient():
    losses = squared_errors(PARAMS, BATCH)
    value_and_grad = weighted_value_and_grad(squared_errors)
    by_function = value_and_grad(PARAMS, BATCH, jnp.sqrt)
    by_values = value_and_grad(PARAMS, BATCH, jnp.sqrt(losses))
    jax.tree.map(np.testing.assert_array_equal, by_function, by_values)


@both
@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize(
    ("reduce", "shape"),
    [(jnp.mean, r"\(\)"), (lambda x: x[:, None], r"\(12, 1\)"), (lambda x: x[:5], r"\(5,\)")],
)
def test_losses_that_are_not_one_per_example_are_refused(reduce, shape, has_aux, wrap):
    def loss_fn(params, batch):
        out = reduce(squared_errors(params, batch))
        return (out, None) if has_aux else out

    message = rf"shape {shape} for 12 examples; return one loss per example, shape \(12,\)"
    with pytest.raises(ValueError, match=message):
        wrap(weighted_value_and_grad(loss_fn, has_aux))(PARAMS, BATCH, ONE_WEIGHT_EACH)


def test_losses_that_are_one_per_example_are_let_through():
    assert check_losses(ONE_WEIGHT_EACH, 12) is ONE_WEIGHT_EACH


@pytest.mark.parametrize(
    ("losses", "remedy"),
    [
        (jnp.float32(1), "leave the mean over the batch to isjax"),
        (jnp.ones((12, 2)), "take the mean over all axes but the first"),
        (jnp.ones(5), "compute them for the 12 examples given"),
    ],
    ids=["mean", "terms", "another batch"],
)
def test_the_remedy_for_wrong_losses_is_that_of_the_mistake(losses, remedy):
    with pytest.raises(ValueError, match=rf"one loss per example, shape \(12,\): {remedy}"):
        check_losses(losses, 12)


@pytest.mark.slow
def test_a_dict_of_losses_is_named_in_few_words():
    def loss_fn(params, batch):
        return {f"term_{i}": squared_errors(params, batch) for i in range(500)}

    with pytest.raises(TypeError, match=r"are a dict, \['term_0'\] float32\[12\], ") as caught:
        weighted_value_and_grad(loss_fn)(PARAMS, BATCH, ONE_WEIGHT_EACH)
    assert "and 497 more; return one array" in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(TypeError, match=r"losses that are a list, .* float"):
        check_losses([0.5] * 12, 12)


def test_a_loss_function_of_other_arguments_is_named_with_those_it_gets():
    def loss_fn(params, model_state, batch, key):
        return squared_errors(params, batch)

    message = r"loss_fn takes \(params, model_state, batch, key\), but is called with \(params, b"
    with pytest.raises(TypeError, match=message):
        weighted_value_and_grad(loss_fn)(PARAMS, BATCH, ONE_WEIGHT_EACH)


@both
def test_norms_of_single_gradients_of_a_regression(wrap):
    norms = wrap(lambda p, batch: per_example_grad_norms(squared_errors, p, batch, 3.0))
    residual = X @ W + BIAS - Y
    expected = 3 * 2 * np.abs(residual) * np.sqrt(np.sum(X**2, axis=1) + 1)
    ours = norms(PARAMS, BATCH)
    assert ours.shape == (12,) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_norms_of_half_precision_are_summed_in_float32(dtype):
    params = jnp.ones(10_000, dtype)
    norms = per_example_grad_norms(lambda p, x: x * jnp.sum(p), params, jnp.asarray([1, 4], dtype))
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, [100, 400], rtol=1e-3)  # whose squares float16 has not


@pytest.mark.parametrize("microbatch", [1, 5, 12, 100])
def test_norms_do_not_depend_on_how_many_are_held_at_once(microbatch):
    norms = jax.jit(
        lambda p, b: per_example_grad_norms(squared_errors, p, b, microbatch=microbatch)
    )
    expected = 2 * np.abs(X @ W + BIAS - Y) * np.sqrt(np.sum(X**2, axis=1) + 1)
    np.testing.assert_allclose(norms(PARAMS, BATCH), expected, rtol=1e-4)


def cross_entropy(bias, batch):
    """Of a network whose last layer is a bias on given logits."""
    log_probs = jax.nn.log_softmax(batch["logits"] + bias[None])
    return -jnp.take_along_axis(log_probs, batch["label"][:, None], axis=1)[:, 0]


def test_softmax_minus_one_hot_is_the_gradient_of_a_last_layer_of_biases():
    logits, label, bias = 3 * RNG.normal(size=(9, 5)), RNG.integers(0, 5, 9), RNG.normal(size=5)
    batch = {"logits": jnp.asarray(logits, jnp.float32), "label": jnp.asarray(label)}
    bias_32 = jnp.asarray(bias, jnp.float32)
    exponential = np.exp(logits + bias)
    softmax = exponential / exponential.sum(axis=1, keepdims=True)
    expected = np.linalg.norm(softmax - np.eye(5)[label], axis=1)
    np.testing.assert_allclose(
        per_example_grad_norms(cross_entropy, bias_32, batch), expected, rtol=1e-4
    )
    scorer = scorers.grad_norm_bound(lambda params, batch: batch["logits"] + params[None])
    rows = Rows(jnp.zeros((9, 0)), jnp.zeros(9, jnp.int32), batch, bias_32)
    np.testing.assert_allclose(
        scorer.score(scorer.init(jax.random.key(0)), rows), expected, rtol=1e-4
    )


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), ()])
def test_weights_of_another_shape_are_refused(shape):
    value_and_grad = weighted_value_and_grad(lambda params, x: jnp.square(x @ params))
    x, weights = jnp.ones((4, 1)), jnp.ones(4).reshape(shape) if shape else jnp.float32(1)
    with pytest.raises(ValueError, match=r"weights of shape .*; give one weight per example"):
        value_and_grad(jnp.ones(1), x, weights)
    with pytest.raises(ValueError, match=r"weights of shape .*; give one weight per example"):
        value_and_grad(jnp.ones(1), x, lambda losses: weights)


# --- modules with state


class NNXNetwork(nnx.Module):
    """Batch norm and dropout, whose state is a mean and a counter."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(x)))[:, 0]


def nnx_losses(network, batch):
    return jnp.square(network(batch["x"]) - batch["y"])


def test_a_module_of_nnx_is_differentiated_by_nnx_and_its_state_moves_on():
    network, copy = NNXNetwork(nnx.Rngs(0)), NNXNetwork(nnx.Rngs(0))
    ours = nnx.jit(weighted_value_and_grad(nnx_losses, value_and_grad=nnx.value_and_grad))
    (loss, losses), grads = ours(network, BATCH, ONE_WEIGHT_EACH)

    def by_hand(network, batch):
        losses = nnx_losses(network, batch)
        return jnp.mean(ONE_WEIGHT_EACH * losses), losses

    theirs = nnx.jit(nnx.value_and_grad(by_hand, has_aux=True))
    (expected_loss, expected), expected_grads = theirs(copy, BATCH)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), grads, expected_grads)
    np.testing.assert_allclose(network.norm.mean[...], 0.5 * X.mean(axis=0), rtol=1e-4)
    assert network.dropout.rngs.count[...] == 1  # the next mask is another


def test_a_module_of_equinox_is_differentiated_by_equinox():
    network = eqx.nn.MLP(3, "scalar", 4, depth=1, key=jax.random.key(0))

    def losses_of(network, batch):
        return jnp.square(jax.vmap(network)(batch["x"]) - batch["y"])

    ours = weighted_value_and_grad(losses_of, value_and_grad=eqx.filter_value_and_grad)
    (loss, losses), grads = eqx.filter_jit(ours)(network, BATCH, ONE_WEIGHT_EACH)
    params, functions = eqx.partition(network, eqx.is_inexact_array)
    split = weighted_value_and_grad(lambda p, batch: losses_of(eqx.combine(p, functions), batch))
    expected = jax.jit(split)(params, BATCH, ONE_WEIGHT_EACH)
    np.testing.assert_allclose(loss, np.mean(WEIGHTS * np.asarray(losses)), rtol=1e-6)
    ours = jax.tree.leaves(((loss, losses), grads))
    for found, wanted in zip(ours, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (NNXNetwork(nnx.Rngs(0)), r"params\.dropout\.rngs\.count.* is uint32"),
        (eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0)), r"params\.\w+ is "),
        ({"w": jnp.ones(3), "steps": 3}, r"params\['steps'\] is int, .*floats alone"),
        ({"w": jnp.ones(3), "name": "mlp"}, r"params\['name'\] is str"),
        ({"w": jnp.ones(3), "key": jax.random.key(0)}, r"params\['key'\] is key"),
    ],
    ids=["nnx", "equinox", "integer", "string", "key"],
)
def test_params_that_are_no_floats_are_named_with_the_remedy(params, named):
    value_and_grad = weighted_value_and_grad(lambda params, batch: batch["y"])
    with pytest.raises(TypeError, match=f"(?s){named}.*value_and_grad=nnx.value_and_grad"):
        value_and_grad(params, BATCH, ONE_WEIGHT_EACH)
    with pytest.raises(TypeError, match=f"(?s){named}.*nnx.split and eqx.partition"):
        sampler = recipes.uniform(batch_size=2)
        init_train_state(jax.random.key(0), params, optax.sgd(0.1), sampler, 12)
