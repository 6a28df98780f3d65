"""bfloat16 against float32, and what stays in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import experiment
from isjax._numerics import precision
from isjax.data.dataset import Dataset
from isjax.experiment import components
from isjax.experiment.config import ConfigError, check, default_config
from isjax.networks import CNN, LSTM, MLP, WideResNet

IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))


def dataset(size=64):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, size).astype(np.int32)
    x = rng.normal(size=(size, 8)).astype(np.float32) + np.eye(8, dtype=np.float32)[label]
    part = {"x": x, "label": label}
    return Dataset(train=part, test=part, num_classes=3)


def config(**settings):
    made = default_config()
    made.artifacts = False
    made.update({"batch_size": 16, "pool_size": 32, "num_steps": 100, "num_evals": 1, **settings})
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [MLP(10), CNN(10, channels=(8,), kernel=3), WideResNet(10, depth=10, norm="batch")]
)
def test_the_output_is_float32_and_near_what_float32_gives(network):
    exact, rounded = precision.float32(network), precision.bfloat16(network)
    variables = jax.jit(exact.init)(jax.random.key(1), IMAGES)
    wanted, output = (jax.jit(net.apply)(variables, IMAGES) for net in (exact, rounded))
    assert output.dtype == jnp.float32
    assert not np.array_equal(output, wanted)
    np.testing.assert_allclose(output, wanted, atol=0.05 * float(jnp.max(jnp.abs(wanted))))


def test_the_network_computes_in_bfloat16():
    model = precision.bfloat16(MLP(10))
    variables = jax.eval_shape(model.init, jax.random.key(1), IMAGES)
    text = str(jax.make_jaxpr(model.apply)(variables, IMAGES))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3 and all("bf16" in line for line in products)


def test_averages_of_batch_norm_stay_in_float32():
    model = precision.bfloat16(WideResNet(10, depth=10, norm="batch"))
    variables = jax.eval_shape(model.init, jax.random.key(1), IMAGES)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    _, updated = jax.eval_shape(train, variables, IMAGES)
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), variables["batch_stats"])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updated["batch_stats"]) == wanted


@pytest.mark.slow
def test_tokens_are_not_rounded():
    model = precision.bfloat16(LSTM(1000, features=4, embedding=4, layers=1))
    tokens = jnp.array([[257, 258, 999]])  # 257 and 258 are the same in bfloat16
    variables = jax.jit(model.init)(jax.random.key(1), tokens)
    assert jax.jit(model.apply)(variables, tokens).shape == (1, 3, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["learned_loss", "biased_loss"])
def test_a_run_learns_in_bfloat16_and_keeps_float32_parameters(method, tmp_path):
    one = config(precision="bfloat16", method=method, checkpoint_every=0)
    line = experiment.run(one, tmp_path, dataset())
    assert line["train_loss"] < 0.5 * np.log(3) and line["skipped"] == 0
    params, _ = jax.eval_shape(components.make_task(one, dataset()).init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="bfloat is not a precision; did you mean bfloat16"):
        check(config(precision="bfloat"))
