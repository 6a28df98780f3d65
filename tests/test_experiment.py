import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import data, experiment, recipes
from isjax.config import ConfigError, default_config

METHODS = {"uniform": 1, "last_loss": 1, "learned_loss": 1, "biased_loss": 3}  # forward passes / b


def make_dataset(num=300, nan=False):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, 8)).astype(np.float32)
    label = (x[:, :3] + 0.1 * rng.normal(size=(num, 3))).argmax(axis=1).astype(np.int32)
    if nan:
        x[:5] = np.nan
    part = {"x": x, "label": label}
    return data.from_arrays(part, {name: value[-100:] for name, value in part.items()}, 3)


def make_config(**settings):
    config = default_config()
    config.update(
        {"network": "MLP", "network_options": {"hidden": (16,)}, "num_steps": 60, "num_evals": 3}
    )
    config.update({"batch_size": 16, "pool_size": 32, "learning_rate": 0.1} | settings)
    return config


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_writes_its_files(tmp_path, method, capsys):
    config = make_config(method=method, seed=3)
    last = experiment.run(config, tmp_path / "run", make_dataset())
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written == json.loads(json.dumps(config.to_dict()))
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 20, 40, 60]
    assert lines[-1] == last
    assert last["train_loss"] < 0.7 * lines[0]["train_loss"]
    assert last["test_accuracy"] > 0.7
    assert lines[0]["seconds"] == 0 < lines[1]["seconds"] < last["seconds"]
    assert last["compile_seconds"] > 0 and last["eval_seconds"] > 0
    assert last["examples_backward"] == 60 * 16
    assert last["examples_forward"] == 60 * 16 * METHODS[method]
    diagnostics = {"loss", "ess", "max_weight", "unique", "score_correlation", "score_error"}
    assert all(diagnostics <= line.keys() for line in lines[1:])
    assert ("last_loss_error" in last) == (method in ("last_loss", "learned_loss"))
    assert last["nonfinite"] == last["skipped"] == 0
    assert f"{method}, seed 3" in capsys.readouterr().out


def test_diagnostics_are_means_over_the_steps_since_the_last_line(tmp_path):
    """Of the uniform recipe the ess and the largest weight are one at every step."""
    experiment.run(make_config(), tmp_path, make_dataset())
    for line in lines_of(tmp_path)[1:]:
        assert line["ess"] == pytest.approx(1, rel=1e-5) and line["max_weight"] == 1


def test_evaluation_covers_every_example_once(tmp_path, monkeypatch):
    """Also when the last batch is ragged: the line's loss is the mean over the whole part."""
    monkeypatch.setattr(experiment, "_EVAL_BATCH", 7)
    dataset = make_dataset()
    experiment.run(make_config(), tmp_path, dataset)
    task = experiment.make_task(make_config(), dataset)
    params, model_state = task.init(jax.random.split(jax.random.key(0))[0])
    for name in ("train", "test"):
        metrics = task.metrics_fn(params, model_state, getattr(dataset, name))
        first = lines_of(tmp_path)[0]
        assert first[f"{name}_loss"] == pytest.approx(float(np.mean(metrics["loss"])), rel=1e-5)
        assert first[f"{name}_accuracy"] == pytest.approx(float(np.mean(metrics["accuracy"])))


def test_the_seed_decides_a_run(tmp_path):
    timing = {"seconds", "compile_seconds", "eval_seconds"}

    def result(name, seed):
        experiment.run(make_config(method="last_loss", seed=seed), tmp_path / name, make_dataset())
        return [{k: v for k, v in x.items() if k not in timing} for x in lines_of(tmp_path / name)]

    assert result("a", 0) == result("b", 0) != result("c", 1)


def test_nan_losses_are_counted_and_the_run_goes_on(tmp_path, capsys):
    last = experiment.run(make_config(method="last_loss"), tmp_path, make_dataset(nan=True))
    assert last["nonfinite"] >= last["skipped"] > 0
    assert last["step"] == 60 and np.isfinite(last["test_loss"]) and last["test_accuracy"] > 0.7
    assert f"NOT FINITE: {last['nonfinite']} losses" in capsys.readouterr().out


def test_a_run_stops_at_nan_if_asked_and_keeps_its_lines(tmp_path):
    config = make_config(stop_on_nonfinite=True)
    with pytest.raises(FloatingPointError, match=r"7 losses .* 7 steps skipped; lower the"):
        experiment.run(config, tmp_path, make_dataset(nan=True))
    assert lines_of(tmp_path)[-1]["nonfinite"] > 0


def test_a_workdir_that_holds_a_run_is_refused(tmp_path):
    experiment.run(make_config(), tmp_path, make_dataset())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run; choose another"):
        experiment.run(make_config(), tmp_path, make_dataset())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method_options": {"kk": 1.0}, "method": "last_loss"}, "kk is not an option"),
        ({"method_options": {"k": 2.0}, "method": "last_loss"}, "k is 2.0; choose k <= 1"),
        ({"method_options": {"k": 0.5}, "method": "uniform"}, "k is not an option"),
        ({"method_options": {"batch_size": 9}}, "batch_size is decided by the run"),
        ({"network_options": {"hiden": (3,)}}, "did you mean hidden"),
        ({"optimizer_options": {"momentun": 0.9}}, "did you mean momentum"),
        ({"pool_size": 301}, "pool_size is 301, but mnist1d has 300 examples"),
        ({"dataset": "nowhere"}, "nowhere is not a dataset"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment.run(make_config(**settings), tmp_path / "run", make_dataset())
    assert not (tmp_path / "run").exists()


def test_the_sampler_gets_what_the_task_knows(monkeypatch):
    given = {}

    def recipe(*, batch_size, loss_fn, num_classes, initial_loss=1.0, k=0.5):
        given.update(locals())
        return recipes.uniform(batch_size=batch_size)

    monkeypatch.setattr(recipes, "last_loss", recipe)
    config = make_config(method="last_loss", method_options={"k": 0.25})
    task = experiment.make_task(config, make_dataset())
    experiment.make_sampler(config, task)
    assert (given["batch_size"], given["num_classes"], given["k"]) == (16, 3, 0.25)
    assert given["initial_loss"] == math.log(3)
    params, _ = task.init(jax.random.key(0))
    batch = task.dataset.test
    np.testing.assert_array_equal(
        given["loss_fn"](params, batch), task.score_fn(params, None, batch)
    )


def test_the_learning_rate_decays_to_zero():
    tx = experiment.make_optimizer(make_config(optimizer_options={"momentum": None}, num_steps=4))
    one = jnp.ones(())
    state, sizes = tx.init(one), []
    for _ in range(5):
        update, state = tx.update(one, state, one)
        sizes.append(-float(update))
    np.testing.assert_allclose(sizes, 0.05 * (1 + np.cos(np.pi * np.arange(5) / 4)), atol=1e-7)
