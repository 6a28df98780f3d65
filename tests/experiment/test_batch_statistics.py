"""Batch norm's statistics from uniform batches, against NumPy, and evaluations that use them."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isjax import data, experiment, tasks
from isjax.experiment.batch_statistics import make_reestimation
from isjax.experiment.config import ConfigError, default_config
from isjax.experiment.evaluation import make_evaluation
from isjax.training import TrainState

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(50, 3)) * [1, 5, 0.1] + [0, 200, -3]).astype(np.float32)
PART = {"x": X, "label": np.arange(50, dtype=np.int32) % 2}


class TwoNorms(nn.Module):
    """Two norms of the input, which forget at different rates, and a counter of the calls."""

    @nn.compact
    def __call__(self, x, train=False):
        calls = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            calls.value += 1
        for name, decay in (("slow", 0.99), ("quick", 0.5)):
            x = x + nn.BatchNorm(use_running_average=not train, momentum=decay, name=name)(x)
        return nn.Dense(2)(x)


class OneNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


def state_of(task):
    params, model_state = task.init(jax.random.key(0))
    nothing = jnp.zeros((), jnp.int32)
    return TrainState(nothing, jax.random.key(1), params, model_state, None, None)


def task_of(network):
    return tasks.classification(data.from_arrays(PART, PART, 2), network)


@pytest.mark.parametrize("num_batches", [1, 3])
def test_statistics_are_the_means_over_the_batches(num_batches):
    task = task_of(OneNorm())
    state = state_of(task)
    lean = jax.tree.map(lambda x: x + 77.0, state.model_state)  # of hard examples, say
    found = make_reestimation(task, num_batches, 16, seed=3)(state._replace(model_state=lean))
    rng = np.random.default_rng(3)
    batches = [X[rng.integers(0, 50, 16)].astype(np.float64) for _ in range(num_batches)]
    stats = found.model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], np.mean([x.mean(0) for x in batches], 0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], np.mean([x.var(0) for x in batches], 0), rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)


def test_the_decay_of_each_norm_is_taken_out_and_other_state_stays():
    task = task_of(TwoNorms())
    state = state_of(task)
    found = make_reestimation(task, 2, 16)(state).model_state
    both = found["batch_stats"]
    # The second norm gets the input plus its standardised self: the mean stays.
    np.testing.assert_allclose(both["quick"]["mean"], both["slow"]["mean"], rtol=1e-3, atol=1e-3)
    deviation = np.sqrt(both["slow"]["var"])
    np.testing.assert_allclose(both["quick"]["var"], (deviation + 1) ** 2, rtol=0.05)
    assert found["counts"]["calls"] == state.model_state["counts"]["calls"] == 0


def test_the_same_state_gives_the_same_statistics_and_another_seed_others():
    task = task_of(OneNorm())
    state = state_of(task)
    reestimate = make_reestimation(task, 2, 8, seed=0)
    first, again = reestimate(state).model_state, reestimate(state).model_state
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = make_reestimation(task, 2, 8, seed=1)(state).model_state["batch_stats"]["BatchNorm_0"]
    assert np.all(other["mean"] != first["batch_stats"]["BatchNorm_0"]["mean"])


def test_an_evaluation_uses_them_and_hands_the_state_of_training_to_others():
    task = task_of(OneNorm())
    state = state_of(task)
    seen = []

    def further(given):
        seen.append(given)
        return {}

    reestimate = make_reestimation(task, 4, 16)
    with_them = make_evaluation(task, 50, 0, [further], reestimate)(state)
    assert seen[0] is state
    assert with_them == make_evaluation(task, 50)(reestimate(state))
    assert with_them != make_evaluation(task, 50)(state)


def config_of(**settings):
    config = default_config()
    config.update({"num_steps": 6, "num_evals": 1, "batch_size": 16, "pool_size": 32})
    config.update({"artifacts": False, "checkpoint_every": 0, "network": "VGG"})
    config.network_options = {"width": 4, "groups": 1, "hidden": (2,), "dropout": 0.0}
    config.update(settings)
    return config


@pytest.mark.slow
def test_a_run_reports_other_metrics_but_trains_the_same(tmp_path):
    dataset = data.mnist1d(tmp_path / "data", num_train=100, num_test=50)
    lines = {}
    for batches in (0, 3):
        config = config_of(reestimate_batches=batches, log_every=2)
        folder = tmp_path / str(batches)
        experiment.run(config, folder, dataset)
        trained, evaluated = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for name in ("training.jsonl", "metrics.jsonl")
        )
        losses = [line["loss"] for line in trained]
        lines[batches] = losses, [line["train_loss"] for line in evaluated]
    assert len(lines[0][0]) == 3 and lines[0][0] == lines[3][0]
    # The running averages begin at 0 and 1, and after six steps are still near.
    assert all(new != old for new, old in zip(lines[3][1], lines[0][1], strict=True))


def test_a_run_without_batch_norm_is_refused(tmp_path):
    dataset = data.from_arrays(PART, PART, 2)
    config = config_of(reestimate_batches=2, network="MLP")
    config.network_options = {}
    message = "reestimate_batches is 2, but MLP keeps no batch statistics; choose 0, or"
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path, dataset)


def test_a_negative_number_of_batches_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reestimate_batches is -1; choose at least 0"):
        experiment.run(config_of(reestimate_batches=-1), tmp_path)
