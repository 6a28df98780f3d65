"""A sampler written outside of isjax works in all of it: this file is all that it takes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import compiled
from jax.sharding import PartitionSpec as P
from processes import python

from isjax import buffer, conditions, resampling, weights
from isjax.base import Sampler, Span
from isjax.distributions import effective_sample_size, normalize
from isjax.experiment.checkpoints import Checkpoints
from isjax.parallel import padding, sharding
from isjax.parallel.mesh import make_mesh
from isjax.samplers import epochs, gate, lagged, make_draw, reweight, stratified
from isjax.training import init_train_state, make_loaded_step, make_train_step

N, BATCH, TX = 32, 4, optax.sgd(0.01)


class Worth(NamedTuple):
    """A number for each example."""

    values: Any

    def leading_axes(self):
        return Worth("examples")


class State(NamedTuple):
    step: Any
    span: Span
    worth: Worth


@functools.cache
def by_running_mean(batch_size, own_pool=True):
    """Draws by a running mean of each example's losses, from the whole data set or from a pool."""

    def init(key, num_examples):
        worth = Worth(jnp.ones(num_examples))
        return State(jnp.zeros((), jnp.int32), Span.of(num_examples), worth)

    def sample(key, state, ids=None, batch=None, params=None):
        ids = jnp.arange(state.span.size) if ids is None else ids  # rows beyond are no examples
        scores = state.worth.values[ids]
        probs = normalize(scores)
        index, draw_probs = resampling.systematic(key, probs, batch_size)
        draw = make_draw(
            state,
            ids[index],
            index,
            draw_probs,
            scores=scores[index],
            pool_size=ids.shape[0],
            k=0.5,
            ess=effective_sample_size(probs) / ids.shape[0],
            mass=jnp.mean(scores),
        )
        return draw, state._replace(step=state.step + 1)

    def update(state, draw, losses, batch=None):
        known = state.worth.values
        change = 0.5 * (losses - known[draw.ids]) / buffer.counts(draw.ids)  # ids may repeat
        change = jnp.where(jnp.isfinite(losses), change, 0.0)
        return state._replace(worth=Worth(known.at[draw.ids].add(change)))

    return Sampler(init, sample, update, batch_size, own_pool=own_pool)


def loss_fn(params, model_state, batch, key):
    return jnp.square(batch["x"] @ params - batch["y"]), model_state


def regression():
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    return {"x": x, "y": x @ np.float32([1, -2, 3])}


def begin(sampler, num_examples=N):
    return init_train_state(jax.random.key(0), jnp.zeros(3), TX, sampler, num_examples)


@functools.cache
def step_of(sampler, **arguments):
    return make_train_step(loss_fn, TX, sampler, with_draw=True, **arguments)


def train(sampler, state=None, data=None, steps=5, **arguments):
    """The state after some steps, and ids and weights of the draws."""
    step = step_of(sampler, **arguments)
    state = begin(sampler) if state is None else state
    data, drawn = jax.device_put(regression() if data is None else data), []
    for _ in range(steps):
        state, metrics = step(state, data)
        assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
        drawn.append((metrics["draw"].ids, metrics["draw"].weights))
    return state, *(np.stack(each) for each in zip(*drawn, strict=True))


@functools.cache
def both():
    return lagged(stratified(by_running_mean(BATCH // 2), 2), 1)


@pytest.mark.parametrize(
    ("sampler", "pool_size"),
    [
        (by_running_mean(BATCH), None),
        (by_running_mean(BATCH, own_pool=False), 16),
        (reweight(by_running_mean(BATCH), weights.correcting()), None),
        (gate(by_running_mean(BATCH, own_pool=False), conditions.after(2)), 16),
        (epochs(by_running_mean(BATCH, own_pool=False), 16), None),
        (lagged(by_running_mean(BATCH), 2), None),
        (stratified(by_running_mean(BATCH // 2), 2), None),
        (stratified(by_running_mean(BATCH // 2, own_pool=False), 2, 8), None),
        (both(), None),
    ],
    ids=[
        "whole",
        "pool",
        "reweight",
        "gate",
        "epochs",
        "lagged",
        "strata",
        "strata of pools",
        "both",
    ],
)
def test_it_trains_alone_and_in_every_wrapper(sampler, pool_size):
    state, drawn, _ = train(sampler, pool_size=pool_size)
    assert drawn.shape == (5, BATCH) and drawn.min() >= 0 and drawn.max() < N
    assert int(state.step) == 5 and int(state.sampler.step) >= 5
    assert state.sampler.span.size == N


def test_parts_draw_their_own_examples_by_their_own_numbers():
    sampler = compiled(stratified(by_running_mean(2), 4))
    state = sampler.init(jax.random.key(0), N)
    draw, state = sampler.sample(jax.random.key(1), state)
    np.testing.assert_array_equal(draw.ids // 8, np.repeat(np.arange(4), 2))
    losses = jnp.where(jnp.arange(8) == 3, 1e6, 0.0)
    state = sampler.update(state, draw, losses)
    draw_again, _ = sampler.sample(jax.random.key(2), state)
    assert set(draw_again.ids[2:4].tolist()) == {int(draw.ids[3])}


def test_padded_it_draws_as_without_padding():
    sampler = by_running_mean(BATCH)
    data = {name: x[:29] for name, x in regression().items()}
    _, drawn, weights = train(sampler, begin(sampler, 29), data)
    padded = padding.pad_state(begin(sampler, 29), 8)
    padded, found, found_weights = train(sampler, padded, padding.pad(data, 8))
    assert padded.sampler.worth.values.shape == (32,) and not padded.sampler.worth.values[29:].any()
    np.testing.assert_array_equal(found, drawn)
    np.testing.assert_array_equal(found_weights, weights)
    assert padded.sampler.span.rows == 32


def test_behind_a_gate_its_draws_have_one_structure_in_double_precision_too():
    sampler = gate(by_running_mean(BATCH, own_pool=False), conditions.after(1))
    with jax.enable_x64(True):
        state = sampler.init(jax.random.key(0), N)
        for _ in range(2):
            draw, state = jax.jit(sampler.sample)(jax.random.key(1), state, jnp.arange(N))
    assert draw.scores.dtype == jnp.float32 and draw.ids.dtype == jnp.int32


def test_on_a_mesh_its_numbers_are_divided():
    state = jax.eval_shape(lambda: begin(by_running_mean(BATCH)))
    placed = sharding.shardings(state, make_mesh(1)).sampler
    assert placed.worth.values.spec == P("data") and placed.step.spec == P()


ON_DEVICES = """
import json, jax, sys
sys.path += ["tests", "tests/samplers"]
from test_own_sampler import *
sampler, mesh = by_running_mean(BATCH), make_mesh()
with jax.set_mesh(mesh):
    state = sharding.build(lambda: padding.pad_state(begin(sampler), 2), (), mesh)
    data = sharding.place(regression(), mesh)
    state, drawn, _ = train(sampler, state, data)
print(json.dumps([drawn.tolist(), len(state.sampler.worth.values.sharding.device_set)]))
"""


@pytest.mark.slow
def test_on_two_devices_it_draws_what_it_draws_on_one():
    drawn, devices = python(ON_DEVICES, devices=2)
    assert devices == 2
    np.testing.assert_array_equal(drawn, train(by_running_mean(BATCH))[1])


@pytest.mark.slow
def test_a_checkpoint_goes_on_as_if_never_interrupted(tmp_path):
    sampler = both()
    middle, *_ = train(sampler, steps=3)
    with Checkpoints(tmp_path / "checkpoints", N) as checkpoints:
        checkpoints.save(middle, {"step": 3}, 0.0)
        restored, progress = checkpoints.restore(begin(sampler))
    assert progress["step"] == 3
    _, after, _ = train(sampler, restored, steps=2)
    np.testing.assert_array_equal(after, train(sampler)[1][3:])


def test_its_batches_are_loaded_ahead():
    sampler = lagged(by_running_mean(BATCH), 2)
    step, state = make_loaded_step(loss_fn, TX, sampler), begin(sampler)
    data = regression()
    for _ in range(3):
        ids = np.asarray(state.sampler.draws.ids[0])
        state, metrics = step(state, jax.tree.map(lambda x: x[ids], data))  # noqa: B023
        assert metrics["chosen"].shape == (BATCH,)
