"""What the command measures along a run, against closed forms for a network of one layer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import data, experiment, networks, quality, tasks
from isjax.data.dataset import from_arrays
from isjax.diagnostics import Noise
from isjax.experiment import components
from isjax.experiment.config import ConfigError, default_config
from isjax.training import init_train_state

pytestmark = pytest.mark.slow  # whole runs

COLUMNS = ("variance", "optimum", "bias", "cosine")
SIZE, BATCH = 24, 4


def make_config(**settings):
    config = default_config()
    config.artifacts = False
    config.update({"task": "regression", "dataset": "friedman", "network": "MLP"})
    config.dataset_options = {"num_train": 64, "num_test": 16}
    config.network_options = {"hidden": (4,)}
    config.update({"num_steps": 6, "num_evals": 2, "batch_size": BATCH, "pool_size": 16})
    config.update({"checkpoint_every": 0, "schedule": "constant"} | settings)
    return config


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# One measurement.


def straight_line():
    """Regression by a layer without a hidden one: the gradient of an example is known."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(SIZE, 3)) * np.geomspace(0.1, 2, SIZE)[:, None]).astype(np.float32)
    y = (x @ rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(SIZE, 1))).astype(np.float32)
    return tasks.regression(from_arrays(*[{"x": x, "y": y}] * 2), networks.MLP(1, hidden=()))


def state_of(config, task):
    tx, sampler = components.make_optimizer(config), components.make_sampler(config, task)
    params, model_state = task.init(jax.random.key(3))
    return init_train_state(jax.random.key(1), params, tx, sampler, SIZE, model_state)


def gradients_of(params, part):
    layer = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["Dense_0"]
    error = part["x"].astype(np.float64) @ layer["kernel"] + layer["bias"] - part["y"]
    return 2 * error * np.concatenate([np.ones((SIZE, 1)), part["x"]], axis=1)


@pytest.mark.parametrize(("method", "k"), [("uniform", None), ("biased_loss", 0.0)])
def test_the_columns_are_over_the_variance_of_uniform_draws(method, k):
    """On all of the data as the pool; of 2000 draws a variance is known to some 5%."""
    config = make_config(method=method, pool_size=SIZE, optimizer="sgd", learning_rate=0.1)
    if k is not None:
        config.method_options = {"k": k, "smoothing": 0.0}
    task = straight_line()
    state = state_of(config, task)
    numbers = quality.measurement(config, task, 2000)(state)
    assert list(numbers) == [*COLUMNS, *(f"update_{name}" for name in COLUMNS)]
    assert {type(value) for value in numbers.values()} == {float}

    gradients = gradients_of(state.params, task.dataset.train)
    whole, norms = gradients.mean(axis=0), np.linalg.norm(gradients, axis=1)
    uniform = np.mean(norms**2) - whole @ whole  # b times the variance
    optimum = np.mean(norms) ** 2 - whole @ whole
    assert numbers["optimum"] == pytest.approx(optimum / uniform, rel=0.2)
    if method == "uniform":  # systematic: less noise, and none of it bias
        assert numbers["variance"] < 1 and abs(numbers["bias"]) < 0.01
        assert numbers["cosine"] == pytest.approx(1, abs=0.01)
    else:
        losses = np.asarray(task.score_fn(state.params, None, task.dataset.train), np.float64)
        expected = losses @ gradients / losses.sum()  # p is as the loss, and weights are one
        bias = np.sum((expected - whole) ** 2)
        assert numbers["bias"] == pytest.approx(bias / (uniform / BATCH), rel=0.2)
        cosine = expected @ whole / np.linalg.norm(expected) / np.linalg.norm(whole)
        assert numbers["cosine"] == pytest.approx(cosine, abs=0.02)
    # Momentum, here of the first step, leaves the ratios as they are.
    for name in COLUMNS:
        assert numbers[f"update_{name}"] == pytest.approx(numbers[name], rel=1e-2, abs=1e-4)


def test_the_pool_is_of_the_size_that_the_method_chooses_from(monkeypatch):
    """Distinct examples of the training part with their ids, others at each evaluation."""
    seen = []

    def noted(score_fn, tx, sampler, *, num_draws):
        def measure(key, state, pool, ids):
            seen.append((key, pool, np.asarray(ids), num_draws))
            noise = Noise(*np.float32([2.0, 1.0, 0.5]))
            return (quality.Quality(noise, noise, noise),) * 2

        return measure

    monkeypatch.setattr(quality, "make_gradient_quality", noted)
    config, task = make_config(pool_size=9), straight_line()
    measure, state = quality.measurement(config, task, 7), state_of(config, task)
    for step in (0, 0, 5):
        numbers = measure(state._replace(step=jnp.int32(step)))
    assert numbers == {
        f"{prefix}{name}": value
        for prefix in ("", "update_")
        for name, value in zip(COLUMNS, (1.0, 1.0, 0.5, 0.5), strict=True)
    }
    for _, pool, ids, num_draws in seen:
        assert len(set(ids)) == 9 and num_draws == 7
        np.testing.assert_array_equal(pool["x"], task.dataset.train["x"][ids])
        np.testing.assert_array_equal(pool["y"], task.dataset.train["y"][ids])
    np.testing.assert_array_equal(seen[0][2], seen[1][2])
    assert set(seen[0][2]) != set(seen[2][2]) and seen[0][0] != seen[2][0]


def test_a_pool_larger_than_the_data_is_all_of_them():
    config, task = make_config(pool_size=1000), straight_line()
    numbers = quality.measurement(config, task, 4)(state_of(config, task))
    assert set(numbers) >= set(COLUMNS)


def classes():
    x = np.random.default_rng(0).normal(size=(SIZE, 5)).astype(np.float32)
    part = {"x": x, "label": np.arange(SIZE, dtype=np.int32) % 3}
    return from_arrays(part, part, 3)


@pytest.mark.parametrize("method", ["el2n", "reducible_loss"])
def test_a_method_is_measured_as_its_state_has_it(method):
    """What was made before training is in the state: here all that is worth something is one."""
    config = make_config(method=method, task="classification", dataset="mine")
    task = components.make_task(config, classes())
    known = np.where(np.arange(SIZE) == 5, 9.0, 0.0).astype(np.float32)
    made = {"el2n": {"scores": known}, "reducible_loss": {"reference": known}}.get(method, {})
    sampler = components.make_sampler(config, task, None, made)
    params, model_state = task.init(jax.random.key(0))
    tx = components.make_optimizer(config)
    state = init_train_state(jax.random.key(1), params, tx, sampler, SIZE, model_state)
    numbers = quality.measurement(config, task, 4)(state)
    assert all(np.isfinite(value) for value in numbers.values())
    if method == "el2n":  # nor are the made ones kept by the measurement
        scorer = np.asarray(state.sampler.scorer)
        only = np.where(np.arange(SIZE) == 5, 1.0, 0.0).astype(np.float32)
        assert scorer[5] == 1
        state = state._replace(sampler=state.sampler._replace(scorer=jnp.asarray(only)))
        config.pool_size = SIZE
        alone = quality.measurement(config, task, 4)(state)
        assert alone["variance"] == pytest.approx(0, abs=1e-6)  # always the same example
        assert alone["bias"] > 0.1


# Along a run.


@pytest.mark.slow
def test_a_run_prints_a_row_for_each_evaluation_and_writes_it(tmp_path, capsys):
    config = make_config(method="last_loss", optimizer="adam", learning_rate=1e-3)
    quality.run(config, tmp_path / "measured", 5)
    lines = lines_of(tmp_path / "measured")
    assert [line["step"] for line in lines] == [0, 3, 6]
    names = [*COLUMNS, *(f"update_{name}" for name in COLUMNS)]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    heading = next(row for row in printed if row[:1] == ["step"])
    assert heading == ["step", *names]
    rows = [row for row in printed if row and row[0].isdigit() and len(row) == 9]
    assert len(rows) == 3
    for row, line in zip(rows, lines, strict=True):
        assert int(row[0]) == line["step"] and {"train_loss", "test_loss"} <= line.keys()
        for value, name in zip(row[1:], names, strict=True):
            assert float(value) == pytest.approx(line[name], abs=5e-4)
        assert 0 < line["optimum"] <= 1.5 and -1 <= line["cosine"] <= 1.001
    assert lines[0]["variance"] != lines[2]["variance"]

    # It trains as it does unmeasured.
    experiment.run(config, tmp_path / "plain", data.friedman(64, 16))
    for ours, theirs in zip(lines, lines_of(tmp_path / "plain"), strict=True):
        for name in theirs.keys() - {"seconds", "compile_seconds", "eval_seconds"}:
            assert ours[name] == theirs[name]


@pytest.mark.slow
def test_a_rate_that_has_decayed_leaves_an_update_without_columns(tmp_path, capsys):
    quality.run(make_config(schedule="cosine", num_evals=1), tmp_path, 3)
    first, last = lines_of(tmp_path)
    names = {f"update_{name}" for name in COLUMNS}
    assert names <= first.keys() and not names & last.keys()
    assert set(COLUMNS) <= last.keys()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["6"] and len(row) == 9]
    assert row[5:] == ["-"] * 4


@pytest.mark.parametrize("method", ["cached", "reshuffled", "selective_backprop"])
def test_a_method_with_a_pool_of_its_own_is_refused(tmp_path, method):
    with pytest.raises(ConfigError, match=f"config.method is {method}: .*a pool of its own"):
        quality.run(make_config(method=method), tmp_path / "run", 3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 65}, r"^config\.pool_size is 65; choose one between .* and the 64 examples"),
        ({"num_steps": 0}, r"^config\.num_steps is 0; choose at least 1"),
    ],
)
def test_what_is_not_the_methods_fault_is_not_said_to_be(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        quality.run(make_config(**settings), tmp_path / "run", 3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "name", "meant"),
    [("method", "lastloss", "last_loss"), ("network", "MPL", "MLP"), ("task", "regresion", "regr")],
)
def test_a_name_that_is_none_is_an_error_of_the_config(tmp_path, setting, name, meant):
    with pytest.raises(ConfigError, match=f"{name} is not a {setting}; did you mean {meant}"):
        quality.run(make_config(**{setting: name}), tmp_path / "run", 3)
    assert not (tmp_path / "run").exists()
