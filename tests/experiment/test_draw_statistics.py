import collections

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import pytest

import isjax
from isjax.experiment import draw_statistics
from isjax.experiment.compiled_steps import compile_steps
from isjax.samplers import make_draw
from isjax.training import init_train_state, make_train_step

N, B, b = 12, 6, 4
RINGS = ("scores", "losses", "probs")
# Options of `jax.jit`: not as conftest has it, under which XLA may round alike programs apart.
KNOWN = jaxlib.version.__version_info__[:2] == (0, 10)
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True} if KNOWN else {}


def a_draw(rng, size=b, pool_size=B, **fields):
    draw = make_draw(
        state=(),
        ids=jnp.asarray(rng.integers(0, N, size), jnp.int32),
        index=jnp.zeros(size, jnp.int32),
        draw_probs=jnp.asarray(rng.uniform(0.01, 0.5, size), jnp.float32),
        scores=jnp.asarray(rng.normal(size=size), jnp.float32),
        pool_size=pool_size,
        k=0.0,
        ess=1.0,
        mass=1.0,
    )
    return draw._replace(**fields), jnp.asarray(rng.normal(size=size), jnp.float32)


def sorted_rows(columns):
    """The draws in an order of their own: `latest` promises none."""
    return sorted(zip(*(np.asarray(columns[name]).tolist() for name in RINGS), strict=True))


def test_nothing_is_known_before_the_first_draw():
    record = draw_statistics.init(N, kept=5)
    assert record.count.shape == (N,) and record.count.dtype == jnp.int32
    assert not record.count.any() and record.place.shape == ()
    assert {x.shape for x in (record.scores, record.losses, record.probs)} == {(5,)}
    assert {name: len(values) for name, values in draw_statistics.latest(record).items()} == {
        name: 0 for name in RINGS
    }


@pytest.mark.parametrize("kept", [b, 10, 16, 100], ids=lambda kept: f"kept{kept}")
def test_counts_and_the_last_draws_are_those_of_numpy(kept):
    """Whether the ring was filled once, several times, just so, or never; duplicates count each."""
    rng = np.random.default_rng(kept)
    record, count = draw_statistics.init(N, kept), np.zeros(N, int)
    last = collections.deque(maxlen=kept)
    for _ in range(9):
        draw, losses = a_draw(rng)
        record = draw_statistics.observe(record, draw, losses)
        np.add.at(count, np.asarray(draw.ids), 1)
        probs = np.asarray(draw.draw_probs) * np.float32(B)
        last.extend(zip(draw.scores.tolist(), losses.tolist(), probs.tolist(), strict=True))
        np.testing.assert_array_equal(record.count, count)
        assert sorted_rows(draw_statistics.latest(record)) == sorted(last)
    assert count.max() > 1 and len(last) == min(kept, 9 * b)


@pytest.mark.parametrize("kept", [1, 3])
def test_of_more_draws_than_are_kept_the_first_are(kept):
    rng = np.random.default_rng(0)
    record = draw_statistics.init(N, kept)
    for _ in range(3):
        draw, losses = a_draw(rng)
        record = draw_statistics.observe(record, draw, losses)
    assert int(record.count.sum()) == 3 * b  # all of them are counted
    latest = draw_statistics.latest(record)
    assert sorted(latest["scores"].tolist()) == sorted(draw.scores[:kept].tolist())
    assert sorted(latest["losses"].tolist()) == sorted(losses[:kept].tolist())


def test_uniform_draws_have_the_probability_one():
    rng = np.random.default_rng(0)
    draw, losses = a_draw(rng, draw_probs=jnp.full(b, 1 / B))
    record = draw_statistics.observe(draw_statistics.init(N, 8), draw, losses)
    np.testing.assert_allclose(draw_statistics.latest(record)["probs"], np.ones(b), rtol=1e-6)


def test_what_is_not_finite_is_kept_as_it_is():
    rng = np.random.default_rng(0)
    draw, _ = a_draw(rng, scores=jnp.array([np.nan, np.inf, 1.0, 2.0]))
    losses = jnp.array([3.0, np.nan, -np.inf, 4.0])
    latest = draw_statistics.latest(
        draw_statistics.observe(draw_statistics.init(N, 8), draw, losses)
    )
    np.testing.assert_array_equal(np.sort(latest["scores"]), [1, 2, np.inf, np.nan])
    np.testing.assert_array_equal(np.sort(latest["losses"]), [-np.inf, 3, 4, np.nan])


def test_low_precision_is_recorded_in_float32_and_counts_go_to_the_last_of_int32():
    rng = np.random.default_rng(0)
    draw, losses = a_draw(rng, ids=jnp.array([0, 0, 1, 2], jnp.int32))
    record = draw_statistics.init(N, 8)
    record = record._replace(count=record.count.at[0].set(2**31 - 3))
    record = draw_statistics.observe(record, draw, losses.astype(jnp.bfloat16))
    assert record.losses.dtype == jnp.float32
    assert record.count[:4].tolist() == [2**31 - 1, 1, 1, 0]


def trained(kept, with_draw=False):
    """A recorded step of linear regression by the loss last seen, its state and data."""
    rng = np.random.default_rng(1)
    data = {"x": jnp.float32(rng.normal(size=(N, 3))), "y": jnp.float32(rng.normal(size=N))}

    def loss_fn(params, model_state, batch, key):
        return jnp.square(batch["x"] @ params - batch["y"]), model_state

    tx, sampler = optax.sgd(0.1), isjax.recipes.last_loss(batch_size=b)
    state = init_train_state(jax.random.key(0), jnp.zeros(3), tx, sampler, N)
    if kept:
        state = state._replace(record=draw_statistics.init(N, kept))
    step = make_train_step(loss_fn, tx, sampler, pool_size=B, with_draw=kept > 0 or with_draw)
    return draw_statistics.record_draws(step, with_draw=with_draw), state, data


@pytest.mark.slow
def test_a_step_records_what_it_draws_and_keeps_it_to_itself_unless_asked():
    told, state, data = trained(10, with_draw=True)
    silent, same, _ = trained(10)
    count, last = np.zeros(N, int), collections.deque(maxlen=10)
    for _ in range(5):
        state, metrics = told(state, data)
        same, fewer = silent(same, data)
        draw = metrics["draw"]
        np.add.at(count, np.asarray(draw.ids), 1)
        last.extend(draw.scores.tolist())
        assert metrics.keys() - fewer.keys() == {"draw"} and "losses" not in metrics
        assert all(np.ndim(value) == 0 for value in fewer.values())
    np.testing.assert_array_equal(state.record.count, count)
    assert sorted(draw_statistics.latest(state.record)["scores"].tolist()) == sorted(last)
    jax.tree.map(np.testing.assert_array_equal, state.record, same.record)


@pytest.mark.slow
def test_losses_recorded_are_those_of_the_batch_before_the_update():
    step, state, data = trained(100, with_draw=True)
    for _ in range(4):
        params = np.asarray(state.params, np.float64)
        state, metrics = step(state, data)
        ids = np.asarray(metrics["draw"].ids)
        by_hand = (np.asarray(data["x"])[ids] @ params - np.asarray(data["y"])[ids]) ** 2
        place = (int(state.record.place) - 1 - np.arange(b)[::-1]) % 100
        np.testing.assert_allclose(state.record.losses[place], by_hand, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("with_draw", [False, True])
def test_without_a_record_nothing_is_recorded(with_draw):
    step, state, data = trained(0, with_draw)
    state, metrics = step(state, data)
    assert state.record is None and "losses" not in metrics
    assert ("draw" in metrics) == with_draw


@pytest.mark.slow
def test_recording_changes_no_number_of_the_training():
    step, state, data = trained(8)
    bare, other, _ = trained(0)
    step, bare = (jax.jit(f, compiler_options=AS_FOR_USERS) for f in (step, bare))
    for _ in range(4):
        state, metrics = step(state, data)
        other, same = bare(other, data)
        assert {k: float(v) for k, v in metrics.items()} == {k: float(v) for k, v in same.items()}
    np.testing.assert_array_equal(state.params, other.params)


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_program_donates_the_record(steps_per_call):
    step, state, data = trained(8)
    program = compile_steps(step, state, data, steps_per_call)
    for _ in range(3):
        old = state.record
        state, *_ = program.several(state, data)
        assert all(x.is_deleted() for x in old)
    assert int(state.record.count.sum()) == 3 * steps_per_call * b
    assert "losses" not in program.names and "draw" not in program.names


def test_a_loop_of_ones_own_compiles_the_recorded_step_once():
    step, state, data = trained(8)
    jitted = jax.jit(step, donate_argnums=0)
    for _ in range(3):
        old = state.record
        state, _ = jitted(state, data)
        assert old.count.is_deleted() and old.scores.is_deleted()
    assert jitted._cache_size() == 1
