import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_mean

import isjax
from isjax import experiment, scorers
from isjax.data.dataset import from_arrays
from isjax.data.loading import Loader
from isjax.data.source import Source
from isjax.experiment.config import ConfigError, default_config
from isjax.samplers import lagged, pending
from isjax.training import init_train_state, make_loaded_step, make_train_step

SIZE, BATCH = 60, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SIZE, 3)).astype(np.float32)
LABEL = RNG.integers(0, 2, SIZE).astype(np.int32)


class Examples:
    """Each takes a while; notes in which order they are begun."""

    def __init__(self, seconds=0.0, broken=None):
        self.seconds, self.broken, self.read = seconds, broken, []

    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        self.read.append(i)
        time.sleep(self.seconds)
        if i == self.broken:
            raise OSError("checksum")
        return {"x": X[i], "label": LABEL[i]}


def batches(ids):
    return jnp.asarray(np.reshape(ids, (-1, BATCH)), jnp.int32)


def loader(examples, pending):
    return Loader(Source(examples), pending)


def test_batches_come_in_the_order_in_which_they_were_posted():
    ids = np.random.default_rng(1).integers(0, SIZE, (20, BATCH))
    with loader(Examples(seconds=0.001), batches(ids[:3])) as loaded:
        for number in range(20):
            batch = next(loaded)
            np.testing.assert_array_equal(batch["x"], X[ids[number]])
            np.testing.assert_array_equal(batch["label"], LABEL[ids[number]])
            assert isinstance(batch["x"], jax.Array)
            if number < 17:
                loaded.post(batches(ids[number + 3]))


def test_ids_of_one_batch_or_of_several_are_posted():
    ids = np.random.default_rng(2).integers(0, SIZE, (4, BATCH))
    with loader(Examples(), batches(ids[:1])) as loaded:
        loaded.post(batches(ids[1])[0])
        loaded.post(batches(ids[2:]))
        for chosen in ids:
            np.testing.assert_array_equal(next(loaded)["x"], X[chosen])
        for wrong in (jnp.arange(3), jnp.zeros((2, 3), jnp.int32), jnp.int32(1)):
            with pytest.raises(
                ValueError, match=r"for batches of 4; post \(4,\), or \(n, 4\) for n"
            ):
                loaded.post(wrong)


def test_as_many_batches_are_read_at_once_as_are_pending():
    examples = Examples(seconds=0.05)
    with loader(examples, batches(range(12))) as loaded:
        next(loaded)
        assert set(examples.read) >= {0, 4, 8}  # the first of each was begun by then


def test_a_sample_takes_nothing_out_of_turn():
    with loader(Examples(), batches([9, 8, 7, 6])) as loaded:
        np.testing.assert_array_equal(loaded.sample()["x"], X[:BATCH])
        np.testing.assert_array_equal(next(loaded)["x"], X[[9, 8, 7, 6]])


def test_an_example_that_cannot_be_read_is_named_where_its_batch_is_due():
    with loader(Examples(broken=6), batches(range(8))) as loaded:
        next(loaded)
        with pytest.raises(ValueError, match="example 6 of the source cannot be read: OSError"):
            next(loaded)


def waiting():
    """Whether a thread waits for ids that were not posted."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name == "wait_for":
                return True
            frame = frame.f_back
    return False


def eventually(condition):
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_no_thread_is_left_waiting():
    with loader(Examples(), batches(range(8))) as loaded:
        next(loaded)
        assert eventually(waiting)
    assert eventually(lambda: not waiting())


# --- with the step


def loss_fn(params, model_state, batch, key):
    logits = batch["x"] @ params
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), model_state


def make_state(sampler):
    return init_train_state(
        jax.random.key(0), jnp.zeros((3, 2)), optax.sgd(0.5), sampler, num_examples=SIZE
    )


def by_tree(lag, k=0.5):
    sampler = isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH, k=k, smoothing=0.2)
    return lagged(sampler, lag)


@pytest.mark.parametrize(
    "lag", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(8, marks=pytest.mark.slow)]
)
def test_what_is_loaded_is_what_was_sampled_and_trains_as_data_in_memory_do(lag):
    sampler = by_tree(lag)
    step = make_loaded_step(loss_fn, optax.sgd(0.5), sampler, with_draw=True)
    whole = make_train_step(loss_fn, optax.sgd(0.5), sampler, with_draw=True)
    state, expected = make_state(sampler), make_state(sampler)
    planned = list(np.asarray(pending(state.sampler)))
    with loader(Examples(), pending(state.sampler)) as loaded:
        for number in range(25):
            batch = next(loaded)
            np.testing.assert_array_equal(batch["x"], X[planned[number]])
            state, metrics = step(state, batch)
            loaded.post(metrics["chosen"])
            planned.append(np.asarray(metrics["chosen"]))
            np.testing.assert_array_equal(metrics["draw"].ids, planned[number])
            expected, other = whole(expected, {"x": jnp.asarray(X), "label": jnp.asarray(LABEL)})
            np.testing.assert_allclose(metrics["losses"], other["losses"], rtol=1e-6)
    assert step._cache_size() == 1
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-5)
    assert set(planned[10]) != set(planned[11])


def test_a_batch_of_another_size_and_a_sampler_that_is_not_lagged_are_refused():
    step = make_loaded_step(loss_fn, optax.sgd(0.5), by_tree(0))
    with pytest.raises(ValueError, match="the batch has 5 examples, but 4 were chosen"):
        step(make_state(by_tree(0)), {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, jnp.int32)})
    plain = isjax.tree_sampler(scorers.last_loss(), batch_size=BATCH)
    step = make_loaded_step(loss_fn, optax.sgd(0.5), plain)
    with pytest.raises(ValueError, match="no batches pending"):
        step(make_state(plain), {"x": jnp.ones((4, 3)), "label": jnp.zeros(4, jnp.int32)})


# --- a batch of a loader of one's own as the pool


def pools_with_ids(size):
    """Shuffled batches of grain, with the number of each example."""
    numbers = grain.MapDataset.range(SIZE).shuffle(seed=0).repeat()
    pools = numbers.map(lambda i: {"id": i, "x": X[i], "label": LABEL[i]}).batch(size)
    return iter(pools.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        isjax.recipes.last_loss(batch_size=BATCH, k=1.0),
        isjax.recipes.default(batch_size=BATCH, k=1.0),
        isjax.recipes.uniform(batch_size=BATCH),
    ],
    ids=["last_loss", "default", "uniform"],
)
def test_of_a_loaders_batch_some_are_chosen_and_remembered_by_id(sampler):
    @jax.jit
    def step(key, state, pool):
        draw, state = sampler.sample(key, state, pool["id"])
        batch = jax.tree.map(lambda x: x[draw.index], pool)
        losses = batch["x"][:, 0] ** 2 + 0.1
        state = sampler.update(state, draw, losses)
        return draw, batch, losses, isjax.diagnostics.mean_loss(draw, losses), state

    state = jax.jit(sampler.init, static_argnums=1)(jax.random.key(0), SIZE)
    seen, estimates = {}, []
    for number, pool in zip(range(150), pools_with_ids(20), strict=False):
        key = jax.random.fold_in(jax.random.key(1), number)
        draw, batch, losses, estimate, state = step(key, state, pool)
        np.testing.assert_array_equal(draw.ids, batch["id"])
        np.testing.assert_array_equal(draw.ids, pool["id"][draw.index])
        np.testing.assert_array_equal(batch["x"], X[batch["id"]])
        if draw.last_loss is not None:
            known = [seen.get(i, 1.0) for i in draw.ids.tolist()]
            np.testing.assert_allclose(draw.last_loss, known, rtol=1e-5)
        seen |= dict(zip(draw.ids.tolist(), losses.tolist(), strict=True))
        estimates.append(estimate)
    assert_mean(np.asarray(estimates)[:, None], np.mean(X[:, 0] ** 2 + 0.1))


# --- in a run


def config(**settings):
    config = default_config()
    config.update({"network_options": {"hidden": (4,)}, "num_steps": 40, "num_evals": 2})
    config.update({"batch_size": BATCH, "pool_size": 16, "checkpoint_every": 10, "log_every": 5})
    config.update({"method": "default"} | settings)
    return config


def examples(examples=None):
    """A data set to read, of the same examples as `arrays()`."""
    train = Source(Examples()) if examples is None else Source(examples)
    return from_arrays(train, {"x": X, "label": LABEL}, num_classes=2)


def arrays():
    return from_arrays({"x": X, "label": LABEL}, {"x": X, "label": LABEL}, num_classes=2)


@pytest.mark.parametrize("method", ["default", "reshuffled", "learned_loss"])
@pytest.mark.slow
def test_a_run_that_reads_its_batches_writes_what_one_in_memory_does(tmp_path, method):
    lines, drawn = [], {"read": [], "held": []}
    for kind, dataset in (("read", examples()), ("held", arrays())):
        line = experiment.run(
            config(method=method, lag=2, checkpoint_every=0),
            tmp_path / kind,
            dataset,
            on_draw=lambda step, draw: drawn[kind].append(draw.ids),  # noqa: B023
        )
        lines.append({k: v for k, v in line.items() if not k.endswith("seconds")})
    np.testing.assert_array_equal(drawn["read"], drawn["held"])
    assert lines[0].keys() == lines[1].keys() and lines[0]["coverage"] > 0.5
    for name, value in lines[0].items():
        np.testing.assert_allclose(value, lines[1][name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "biased_loss"}, "biased_loss needs loss_fn, which is of examples"),
        (
            {"method": "reducible_loss"},
            "of examples, but here batches are chosen before",
        ),
        ({"label_noise": 0.1}, "the labels are not in memory"),
        ({"gate": "tau", "gate_options": {"threshold": 1.5}}, "cannot have one"),
        ({"steps_per_call": 5}, "each step waits for a batch of its own"),
        ({"lag": -1}, "config.lag is -1; choose at least 0"),
    ],
)
def test_what_needs_examples_before_they_are_chosen_is_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment.run(config(**settings), tmp_path, examples())


def test_what_is_made_in_memory_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.in_memory is False, but mnist1d is made"):
        experiment.run(config(in_memory=False), tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_only_with_the_lag_it_began_with(tmp_path):
    experiment.run(config(lag=1), tmp_path, examples())
    with pytest.raises(ConfigError, match="lag"):
        experiment.run(config(lag=2, num_steps=60), tmp_path, examples())
    with pytest.raises(ConfigError, match=r"is float32\[2, 4\] in the checkpoint"):
        changed = config(lag=2, num_steps=60)
        experiment.run(changed, tmp_path, examples(), allow_config_changes=True)


@pytest.mark.slow
def test_a_run_that_cannot_read_an_example_says_which_and_keeps_its_checkpoint(tmp_path):
    broken = Examples()
    with pytest.raises(ValueError, match="example 7 of the source cannot be read"):

        def break_it(step, draw):
            if step == 15:
                broken.broken = 7

        experiment.run(config(method="reshuffled"), tmp_path, examples(broken), on_draw=break_it)
    assert (tmp_path / "checkpoints" / "10").exists()
