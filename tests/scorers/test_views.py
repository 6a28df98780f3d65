"""Cheaper views of the main model against NumPy, and their picks against the model's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import compiled
from scipy import stats

from isjax import buffer, data, networks, recipes, scorers, tasks
from isjax.base import Rows
from isjax.scorers.views import PASSES, __all__, half_resolution, in_bfloat16
from isjax.training import init_train_state, make_train_step

KEY = jax.random.key(0)
CLASSES = 4
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}


def images(number, size=16, seed=0):
    """Images of bytes: a wave in one of four directions, of random strength, and noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, number).astype(np.int32)
    place = np.arange(size) / size
    angle = np.pi * label / CLASSES
    across = np.cos(angle)[:, None, None] * place[None, :, None]
    wave = np.sin(2 * np.pi * (across + np.sin(angle)[:, None, None] * place[None, None, :]))
    strength = rng.uniform(0, 40, (number, 1, 1))
    x = 128 + strength * wave + rng.normal(0, 25, (number, size, size))
    return {"x": np.clip(x, 0, 255).astype(np.uint8)[..., None], "label": label}


def halved(x):
    return (
        x.astype(np.float64)
        .reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1)
        .mean(axis=(2, 4))
    )


class Brightest(nn.Module):
    """Logits from the brightest pixel: for images of any size, and different at each size."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(jnp.max(x, axis=(1, 2)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_half_resolution_averages_the_pixels_and_leaves_the_rest(dtype):
    batch = images(6)
    batch["x"] = batch["x"].astype(dtype)
    seen = []

    def loss_fn(params, batch):
        seen.append(batch)
        return jnp.max(batch["x"], axis=(1, 2, 3)) * params

    losses = half_resolution(loss_fn)(2.0, batch)
    assert seen[0]["x"].dtype == jnp.float32 and seen[0]["label"] is batch["label"]
    np.testing.assert_allclose(seen[0]["x"], halved(batch["x"]), rtol=1e-6)
    np.testing.assert_allclose(losses, 2 * halved(batch["x"]).max(axis=(1, 2, 3)), rtol=1e-6)


def test_averages_of_bytes_are_standardised_as_bytes_are():
    part = images(50)
    task = tasks.classification(data.from_arrays(part, part, CLASSES), Brightest())
    params, _ = jax.jit(task.init)(KEY)
    view = half_resolution(lambda params, batch: task.score_fn(params, None, batch))
    losses = jax.jit(view)(params, part)
    x = part["x"].astype(np.float64)
    z = (halved(part["x"]).max(axis=(1, 2)) - x.mean()) / x.std()
    z = z @ np.asarray(params["Dense_0"]["kernel"], np.float64)
    want = np.log(np.exp(z).sum(axis=1)) - z[np.arange(50), part["label"]]
    np.testing.assert_allclose(losses, want, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 7, 8, 1), (3, 8, 5, 1), (3, 8, 8), (3, 8)])
def test_half_resolution_refuses_what_it_cannot_halve(shape):
    with pytest.raises(ValueError, match=rf"even H and W, but got shape \({shape[0]}, .*crop"):
        half_resolution(lambda params, batch: batch["x"])(None, {"x": jnp.zeros(shape)})


@pytest.mark.parametrize("pooled", [True, False])
def test_a_network_for_one_size_alone_is_refused_with_its_own_words(pooled):
    part = images(4)
    network = networks.CNN(CLASSES, (4, 8), 3, 16, pooled)
    task = tasks.classification(data.from_arrays(part, part, CLASSES), network)
    params, _ = jax.eval_shape(task.init, KEY)
    view = half_resolution(lambda params, batch: task.score_fn(params, None, batch))
    if pooled:
        assert jax.eval_shape(view, params, part).shape == (4,)
    else:
        with pytest.raises(ValueError, match=r"\(8, 8, 1\) in place of \(16, 16, 1\).*any size"):
            jax.eval_shape(view, params, part)


def test_bfloat16_rounds_parameters_state_and_examples_alone():
    seen = []

    def loss_fn(variables, batch):
        seen.append((variables, batch))
        return jnp.sum(batch["x"] * variables[0]["w"], axis=1)

    variables = {"w": jnp.full((1, 2), 1.001)}, {"mean": jnp.ones(3), "count": jnp.int32(7)}
    batch = {"x": jnp.full((5, 2), 1.001), "label": jnp.full(5, 257, jnp.int32)}
    losses = in_bfloat16(loss_fn)(variables, batch)
    assert losses.dtype == jnp.float32
    np.testing.assert_array_equal(losses, 2.0)  # 1.001 is 1 there
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(seen[0])]
    assert sorted(map(str, dtypes)) == ["bfloat16", "bfloat16", "bfloat16", "int32", "int32"]
    in_bfloat16(loss_fn)(variables, {"x": np.arange(256, dtype=np.uint8).reshape(128, 2)})
    bytes_ = seen[1][1]["x"]
    assert bytes_.dtype == jnp.bfloat16
    np.testing.assert_array_equal(bytes_.astype(jnp.float32).ravel(), np.arange(256))


@pytest.fixture(scope="module")
def trained():
    """A loss function (params, batch) -> [B] of a small network, and its params when trained."""
    part = images(2000)
    network = networks.CNN(CLASSES, (8, 16), 3, 16, pooled=True)
    task = tasks.classification(data.from_arrays(part, part, CLASSES), network)
    sampler = recipes.uniform(batch_size=64)
    tx = optax.adam(1e-2)
    state = jax.jit(lambda: init_train_state(KEY, task.init(KEY)[0], tx, sampler, 2000))()
    step = make_train_step(task.loss_fn, tx, sampler, pool_size=64)
    step = step.lower(state, part).compile(compiler_options=QUICK_TO_COMPILE)
    for _ in range(150):
        state, metrics = step(state, part)
    assert metrics["loss"] < 0.6 * np.log(CLASSES)
    return lambda params, batch: task.score_fn(params, None, batch), state.params


VIEWS = {  # least rank correlation, and least share of the 64 hardest of 512 that both pick
    "half_resolution": (half_resolution, 0.75, 0.5),
    "in_bfloat16": (in_bfloat16, 0.98, 0.9),
    "both": (lambda loss_fn: in_bfloat16(half_resolution(loss_fn)), 0.75, 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_picks_what_the_model_picks(name, trained):
    loss_fn, params = trained
    view, least, share = VIEWS[name]
    pool = images(512, seed=1)
    exact, cheap = (np.asarray(jax.jit(f)(params, pool)) for f in (loss_fn, view(loss_fn)))
    assert stats.spearmanr(exact, cheap).statistic > least
    hardest = [set(np.argsort(losses)[-64:].tolist()) for losses in (exact, cheap)]
    assert len(hardest[0] & hardest[1]) > share * 64
    assert not np.array_equal(exact, cheap)


@pytest.mark.slow
def test_bfloat16_losses_are_near_those_of_float32(trained):
    loss_fn, params = trained
    pool = images(512, seed=1)
    exact, cheap = (np.asarray(jax.jit(f)(params, pool)) for f in (loss_fn, in_bfloat16(loss_fn)))
    np.testing.assert_allclose(cheap, exact, rtol=0.1, atol=0.03)


def test_a_task_computes_in_bfloat16_by_that_view(trained):
    loss_fn, params = trained
    text = str(jax.make_jaxpr(in_bfloat16(loss_fn))(params, images(4)))
    products = [line for line in text.splitlines() if "dot_general" in line or "conv_gen" in line]
    assert len(products) == 4 and all("bf16" in line for line in products)


@pytest.mark.slow
@pytest.mark.parametrize("view", [None, *PASSES])
def test_a_stream_is_charged_for_the_view_keeps_no_buffer_and_compiles_once(view, trained):
    loss_fn, params = trained
    sampler, tx = recipes.biased_loss(batch_size=8, loss_fn=loss_fn, view=view), optax.sgd(0.01)
    state = jax.jit(lambda params: init_train_state(KEY, params, tx, sampler, 1))(params)
    step = make_train_step(lambda p, s, batch, key: (loss_fn(p, batch), s), tx, sampler)
    for seed in range(3):
        state, metrics = step(state, images(64, seed=seed))
        assert float(metrics["examples_forward"]) == 8 + 64 * PASSES.get(view, 1.0)
    assert buffer.size(state.sampler.buffer) == 0
    assert step._cache_size() == 1


def test_every_view_says_what_it_costs():
    assert set(PASSES) == set(__all__)


def test_biased_loss_by_a_view_draws_by_its_scores(trained):
    loss_fn, params = trained
    pool = images(64, seed=2)
    sampler = recipes.biased_loss(
        batch_size=8, loss_fn=loss_fn, view="half_resolution", smoothing=0.0
    )
    sampler = compiled(sampler)
    draw, _ = sampler.sample(KEY, sampler.init(KEY, 1), None, pool, params)
    scores = np.asarray(jax.jit(half_resolution(loss_fn))(params, pool), np.float64)
    np.testing.assert_allclose(draw.scores, scores[draw.index], rtol=1e-5)
    np.testing.assert_allclose(draw.draw_probs, scores[draw.index] / scores.sum(), rtol=1e-4)
    with pytest.raises(ValueError, match="view is 'half'; choose one of half_resolution, in_bf"):
        recipes.biased_loss(batch_size=8, loss_fn=loss_fn, view="half")


def test_a_cheap_view_is_of_the_readers_own_making():
    """A view is any function of params and batch: here the first of two layers, at its cost."""
    scorer = scorers.loss(lambda params, batch: batch["x"] @ params[0], passes=0.5)
    rows = Rows(
        jnp.zeros((3, 0)), jnp.zeros(3, jnp.int32), {"x": jnp.eye(3)}, (jnp.arange(3.0), None)
    )
    np.testing.assert_array_equal(scorer.score((), rows), [0, 1, 2])
    assert scorer.passes == 0.5
