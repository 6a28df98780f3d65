import contextlib
import functools
import itertools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from isjax import data, experiment, tasks
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


def lines_of(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


@contextlib.contextmanager
def stopped_after(number):
    """Stands for `asked_to_stop`: it says so when it has been asked `number` times before."""
    asked = itertools.count()
    yield lambda: next(asked) >= number
    raise SystemExit(0)


def untimed(workdir):
    """All that a run writes, but for the times."""
    return {
        name: [
            {k: v for k, v in line.items() if not k.endswith("seconds")}
            for line in lines_of(workdir, name)
        ]
        for name in ("metrics.jsonl", "training.jsonl")
    }


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


def test_the_seed_decides_a_run(tmp_path):

    def result(name, seed):
        experiment.run(make_config(method="last_loss", seed=seed), tmp_path / name, make_dataset())
        return untimed(tmp_path / name)

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


def test_the_same_run_again_trains_no_more(tmp_path, capsys):
    last = experiment.run(make_config(), tmp_path, make_dataset())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert experiment.run(make_config(), tmp_path, make_dataset()) == last
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert f"{tmp_path} holds this run, finished" in capsys.readouterr().out


def test_a_workdir_of_another_config_is_refused_with_the_settings_that_differ(tmp_path):
    experiment.run(make_config(), tmp_path, make_dataset())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    other = make_config(seed=1, network_options={"hidden": (8,)})
    with pytest.raises(ConfigError) as error:
        experiment.run(other, tmp_path, make_dataset())
    assert "config.network_options.hidden was [16] and is [8]" in str(error.value)
    assert "config.seed was 0 and is 1; choose another --workdir" in str(error.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_under_another_config_if_told_so(tmp_path):
    experiment.run(make_config(num_steps=40, num_evals=2), tmp_path, make_dataset())
    longer = make_config(num_steps=60, num_evals=3)
    experiment.run(longer, tmp_path, make_dataset(), allow_config_changes=True)
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 20, 40, 60]
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 60


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    experiment.run(make_config(), tmp_path, make_dataset())
    other = make_config(network_options={"hidden": (8,)})
    with pytest.raises(
        ConfigError, match=r"does not fit this config: .* in the checkpoint of step 60"
    ):
        experiment.run(other, tmp_path, make_dataset(), allow_config_changes=True)


def test_without_checkpoints_a_workdir_that_holds_a_run_is_refused(tmp_path):
    config = make_config(checkpoint_every=0)
    experiment.run(config, tmp_path, make_dataset())
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ConfigError, match="already holds a run, without checkpoints; choose"):
        experiment.run(config, tmp_path, make_dataset())


@pytest.mark.parametrize(("method", "stops"), [("last_loss", (1, 9, 34)), ("learned_loss", (20,))])
def test_a_run_stopped_and_resumed_writes_what_a_whole_one_does(
    tmp_path, monkeypatch, method, stops
):
    """Wherever it is stopped: a stop is how often the loop asks whether to before it is told so."""
    config = make_config(method=method, checkpoint_every=25, log_every=7)
    experiment.run(config, tmp_path / "whole", make_dataset())
    for number in stops:
        monkeypatch.setattr(experiment, "asked_to_stop", functools.partial(stopped_after, number))
        with pytest.raises(SystemExit):
            experiment.run(config, tmp_path / "parts", make_dataset())
        assert all(line["step"] < 60 for line in lines_of(tmp_path / "parts"))
    monkeypatch.undo()
    experiment.run(config, tmp_path / "parts", make_dataset())
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


def test_steps_per_call_change_no_number(tmp_path):
    """Whether or not they divide the steps between evaluations, checkpoints and lines."""
    for name, number in (("one", 1), ("seven", 7), ("many", 1000)):
        config = make_config(steps_per_call=number, checkpoint_every=25, log_every=6)
        experiment.run(config, tmp_path / name, make_dataset())
    one, seven, many = (untimed(tmp_path / name) for name in ("one", "seven", "many"))
    assert seven == many  # the same program
    for kind in one:
        assert [line["step"] for line in one[kind]] == [line["step"] for line in seven[kind]]
        for ours, theirs in zip(one[kind], seven[kind], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_lines_of_diagnostics_average_the_steps_before_them(tmp_path):
    experiment.run(make_config(log_every=10, num_evals=1), tmp_path, make_dataset())
    lines = lines_of(tmp_path, "training.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert np.mean([line["loss"] for line in lines]) == pytest.approx(
        lines_of(tmp_path)[-1]["loss"]
    )


def test_a_budget_shortens_the_run_and_its_schedule(tmp_path):
    """Half of the steps: the rate has decayed, as if they were all the run was to take."""
    experiment.run(make_config(budget=0.5), tmp_path / "half", make_dataset())
    experiment.run(make_config(num_steps=30), tmp_path / "short", make_dataset())
    assert untimed(tmp_path / "half") == untimed(tmp_path / "short")


@pytest.mark.parametrize("method", ["learned_loss", "biased_loss"])
def test_a_task_of_ones_own_with_tuples_for_batches(tmp_path, method):
    rng = np.random.default_rng(0)
    image, vector = rng.normal(size=(2, 200, 4)).astype(np.float32)
    target = (image[:, 0] + vector[:, 1]).astype(np.float32)
    part = ((image, vector), target)

    def losses(params, model_state, batch):
        (image, vector), target = batch
        return (image @ params[0] + vector @ params[1] - target) ** 2

    task = tasks.Task(
        data.from_arrays(part, part),
        init=lambda key: ((jnp.zeros(4), jnp.zeros(4)), None),
        loss_fn=lambda params, state, batch, key: (losses(params, state, batch), state),
        score_fn=losses,
        metrics_fn=lambda *args: {"loss": losses(*args)},
    )
    last = experiment.run(make_config(method=method), tmp_path, task=task)
    assert last["test_loss"] < 0.1 and "test_accuracy" not in last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method_options": {"kk": 1.0}, "method": "last_loss"}, "kk is not an option"),
        ({"method_options": {"k": 2.0}, "method": "last_loss"}, "k is 2.0; choose k <= 1"),
        ({"method_options": {"k": 0.5}, "method": "uniform"}, "k is not an option"),
        ({"method_options": {"batch_size": 9}}, "batch_size is decided by the run"),
        ({"network_options": {"hiden": (3,)}}, "did you mean hidden"),
        ({"optimizer_options": {"momentun": 0.9}}, "did you mean momentum"),
        ({"pool_size": 301}, "pool_size is 301, but the training data have 300"),
        ({"num_evals": 0}, "num_evals is 0; choose at least 1"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment.run(make_config(**settings), tmp_path / "run", make_dataset())
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_only_the_step_finds_does_not_spoil_the_folder(tmp_path):
    """Nothing is written of a config that cannot be trained, so that the next one may use it."""
    bad = make_config(augment=("flip",))
    with pytest.raises(
        ConfigError, match=r"cannot take data such as .*flip: the shape is \(2, 8\)"
    ):
        experiment.run(bad, tmp_path, make_dataset())
    assert experiment.run(make_config(), tmp_path, make_dataset())["step"] == 60


def test_a_refused_change_leaves_the_run_as_it_was(tmp_path):
    last = experiment.run(make_config(), tmp_path, make_dataset())
    other = make_config(network_options={"hidden": (8,)})
    with pytest.raises(ConfigError, match="does not fit"):
        experiment.run(other, tmp_path, make_dataset(), allow_config_changes=True)
    assert experiment.run(make_config(), tmp_path, make_dataset()) == last


def test_a_finished_run_without_its_checkpoints_is_not_erased(tmp_path):
    experiment.run(make_config(), tmp_path, make_dataset())
    shutil.rmtree(tmp_path / "checkpoints")
    before = lines_of(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run, without checkpoints"):
        experiment.run(make_config(), tmp_path, make_dataset())
    assert lines_of(tmp_path) == before


def test_totals_and_means_hold_when_the_config_changes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(experiment, "asked_to_stop", functools.partial(stopped_after, 18))
        experiment.run(make_config(num_evals=1, log_every=10), tmp_path, make_dataset())
    changed = make_config(num_evals=1, log_every=25, batch_size=8)
    last = experiment.run(changed, tmp_path, make_dataset(), allow_config_changes=True)
    # Asked before each call, and in the evaluation and after it: 18 times are some 12 steps.
    assert 60 * 8 + 10 * 8 < last["examples_backward"] < 60 * 8 + 18 * 8
    assert lines_of(tmp_path, "training.jsonl")[1]["ess"] == pytest.approx(1, rel=1e-5)


def test_a_run_stopped_at_nan_goes_on_when_the_data_are_mended(tmp_path):
    config = make_config(stop_on_nonfinite=True, checkpoint_every=10)
    with pytest.raises(FloatingPointError):
        experiment.run(config, tmp_path, make_dataset(nan=True))
    assert experiment.run(config, tmp_path, make_dataset())["step"] == 60
