"""Runs that go on from another run, or choose tokens by its model."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from isjax import data, experiment, tasks
from isjax.experiment import components, reference_models
from isjax.experiment.config import ConfigError, default_config
from isjax.experiment.reference_models import Prepared

WORDS = tuple("abcde")
SMALL = {"features": 4, "layers": 1, "heads": 1}


def make_config(**settings):
    config = default_config()
    config.update({"task": "language", "network": "Transformer", "network_options": SMALL})
    config.update({"optimizer": "adam", "learning_rate": 0.05, "batch_size": 4, "pool_size": 8})
    config.update(
        {"num_steps": 6, "num_evals": 2, "artifacts": False, "log_every": 3, "checkpoint_every": 4}
    )
    tokens = settings.pop("tokens", {})
    config.update(settings)
    config.tokens.update(tokens)
    return config


def make_dataset(size=12, length=5):
    tokens = np.random.default_rng(0).integers(0, 5, (size, length + 1)).astype(np.int32)
    part = {"x": tokens[:, :-1], "y": tokens[:, 1:].copy()}
    part["y"][0, 3:] = -1  # masked
    return data.from_arrays(part, part, vocabulary=WORDS)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Workdir of a run of 6 steps."""
    workdir = tmp_path_factory.mktemp("earlier")
    experiment.run(make_config(), workdir, make_dataset())
    return workdir


@pytest.mark.slow
def test_a_run_goes_on_from_the_newest_parameters_of_another(earlier, tmp_path):
    config = make_config(init_from=str(earlier), seed=1, num_steps=2)
    experiment.run(config, tmp_path / "next", make_dataset())
    last, first = lines_of(earlier)[-1], lines_of(tmp_path / "next")[0]
    assert last["step"] == 6 and first["step"] == 0  # optimiser and schedule begin anew
    assert first["train_loss"] == pytest.approx(last["train_loss"], rel=1e-6)
    assert first["train_loss"] < lines_of(earlier)[0]["train_loss"]
    # Finished, and asked for again: the other run is not needed any more.
    config.init_from = str(tmp_path / "moved")
    (tmp_path / "next" / "config.json").write_text(config.to_json())
    again = experiment.run(config, tmp_path / "next", make_dataset())
    assert again["step"] == 2


class Linear(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.outputs)(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"network_options": {**SMALL, "features": 8}},
            r"\.params\['Dense_0'\]\['kernel'\] is float32\[4, 12\] in .*checkpoints/6, but "
            r"float32\[8, 24\] here; choose the network, its options and the data as in that run",
        ),
        (
            {"network_options": {**SMALL, "layers": 2}},
            r"\.params\['Dense_4'\]\['kernel'\] is float32\[4, 5\] in .*, but float32\[4, 12\] he",
        ),
        ({"network_options": {**SMALL, "tied": True}}, r".*'Dense_4'.*, but missing here"),
    ],
)
def test_a_run_of_other_shapes_is_refused_by_name(earlier, tmp_path, settings, message):
    config = make_config(init_from=str(earlier), **settings)
    with pytest.raises(ConfigError, match=f"config.init_from: {message}"):
        experiment.run(config, tmp_path / "next", make_dataset())
    assert not (tmp_path / "next" / "metrics.jsonl").exists()


def test_a_run_of_another_task_is_refused_by_name(earlier, tmp_path):
    part = {"x": np.zeros((8, 2), np.float32), "y": np.ones((8, 1), np.float32)}
    task = tasks.regression(data.from_arrays(part, part), Linear(1))
    config = make_config(init_from=str(earlier), task="regression")
    with pytest.raises(ConfigError, match=r"6 is of the task language, but config.task is regress"):
        experiment.run(config, tmp_path / "next", task=task)


def test_a_folder_without_a_run_or_checkpoints_is_refused_by_name(earlier, tmp_path):
    config = make_config(init_from=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"config.init_from is .*/none, which holds no run that"):
        experiment.run(config, tmp_path / "next", make_dataset())
    shutil.copy(earlier / "config.json", tmp_path)
    config.init_from = str(tmp_path)
    with pytest.raises(ConfigError, match="holds no checkpoint that can be read; give the --workd"):
        experiment.run(config, tmp_path / "next", make_dataset())


@pytest.fixture(scope="module")
def selected(earlier, tmp_path_factory):
    """Workdir of a run that trains on 60% of the tokens."""
    workdir = tmp_path_factory.mktemp("selected")
    config = make_config(reference=str(earlier), tokens={"keep": 0.6}, init_from=str(earlier))
    experiment.run(config, workdir, make_dataset())
    return workdir


@pytest.mark.slow
def test_the_losses_of_the_reference_are_stored_once(earlier, selected):
    stored = np.load(selected / "reference.npy", mmap_mode="r")
    dataset = make_dataset()
    assert stored.dtype == np.float16 and stored.shape == dataset.train["y"].shape
    config = make_config(reference=str(earlier), tokens={"keep": 0.6})
    task = components.make_task(make_config(), dataset)
    _, state = reference_models.model_of_run(config, task, Prepared())
    expected = jax.jit(task.token_losses_fn)(state.params, None, dataset.train)
    np.testing.assert_allclose(stored, expected, rtol=2e-3)
    known = dataset.train["y"] >= 0
    assert np.all(stored[~known] == 0)
    mean = lines_of(earlier)[-1]["train_loss"]
    assert stored[known].mean(dtype=np.float64) == pytest.approx(mean, rel=2e-3)


@pytest.mark.slow
def test_the_cost_of_the_reference_is_in_the_ledger(earlier, selected, tmp_path):
    """Its training, 6 steps of 4 examples, and a forward pass for each of 12 examples."""
    trained = lines_of(earlier)[-1]
    assert (trained["examples_forward"], trained["examples_backward"]) == (24, 24)
    first, last = lines_of(selected)[0], lines_of(selected)[-1]
    assert (first["examples_forward"], first["examples_backward"]) == (24 + 12, 24)
    assert (last["examples_forward"], last["examples_backward"]) == (24 + 12 + 24, 24 + 24)
    assert first["seconds"] > trained["seconds"] > 0
    stored = str(selected / "reference.npy")
    config = make_config(reference=stored, tokens={"keep": 0.6}, init_from=str(earlier))
    experiment.run(config, tmp_path, make_dataset())
    assert not (tmp_path / "reference.npy").exists()
    again = lines_of(tmp_path)[-1]
    assert again["examples_forward"] == last["examples_forward"]
    assert again["train_loss"] == last["train_loss"]  # the same tokens were chosen


def test_a_stored_reference_of_another_length_is_refused_by_name(selected, tmp_path):
    stored = str(selected / "reference.npy")
    config = make_config(reference=stored, tokens={"keep": 0.6})
    message = (
        r"config.reference is .*reference.npy, float16 of shape \[12, 5\], but the targets of the "
        r"training data have shape \[9, 5\]; give the losses of the same tokens, one for each"
    )
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path / "next", make_dataset(size=9))
    config.reference = str(tmp_path / "none.npy")
    with pytest.raises(ConfigError, match=r"config.reference is .*/none.npy, which cannot be read"):
        experiment.run(config, tmp_path / "next", make_dataset())


def test_sequences_can_be_chosen_over_the_same_reference(earlier, tmp_path):
    """`reducible_loss` then makes no reference models of its own."""
    dataset = make_dataset()
    config = make_config(reference=str(earlier), method="reducible_loss", pool_size=8)
    task = components.make_task(config, dataset)
    prepared = reference_models.prepare(config, task, tmp_path)
    assert (prepared.examples_forward, prepared.examples_backward) == (24 + 12, 24)
    mean = lines_of(earlier)[-1]["train_loss"]
    assert prepared.arrays["reference"].shape == (12,)
    assert prepared.arrays["reference"].mean() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": {"keep": 0.0}}, "config.tokens.keep is 0.0; choose a share above 0, at most 1"),
        (
            {"tokens": {"keep": 0.5}},
            "keep is 0.5, but tokens are chosen by their excess loss over",
        ),
        ({"tokens": {"keep": 0.5}, "task": "regression"}, "the task regression has no tokens"),
        ({"tokens": {"kept": 0.5}}, "config.tokens.kept is not a setting; did you mean keep?"),
        (
            {"reference": "runs/a"},
            "config.reference is runs/a, but nothing reads it; set config",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        experiment.config.check(make_config(**settings))
