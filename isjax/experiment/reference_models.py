"""What a method must know of each example before training starts, and what that costs.

Reference models are networks of the run's own task, trained on uniform batches for a share
(`config.reference_budget`) of the run's steps, their schedule decayed to it. Their time and their
examples count as the run's.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from isjax import recipes
from isjax.base import Array, Batch, take
from isjax.data.dataset import save
from isjax.data.source import num_examples
from isjax.experiment.compiled_steps import compile_steps
from isjax.experiment.components import make_optimizer, required
from isjax.experiment.config import ConfigError, num_steps
from isjax.experiment.evaluation import over_examples
from isjax.gradients import el2n
from isjax.tasks import Task
from isjax.training import (
    TrainState,
    init_train_state,
    make_eval_step,
    make_train_step,
)

__all__ = ["Prepared", "Stopped", "cross_fitted_losses", "early_el2n", "needed", "prepare"]


class Stopped(Exception):
    """The process was asked to stop before all was prepared."""


@dataclasses.dataclass
class Prepared:
    """Arrays by the name of the recipe's parameter, [N] float32 each, and their cost.

    Attributes:
        arrays: one number for each training example.
        seconds: of training and scoring, without
        compile_seconds: of compilation.
        examples_forward: run forward by the reference models.
        examples_backward: run backward.
    """

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    compile_seconds: float = 0.0
    examples_forward: int = 0
    examples_backward: int = 0


def needed(config: ConfigDict) -> set[str]:
    """The parameters of `config.method` that are made before training."""
    return required(getattr(recipes, config.method)) & _made().keys() - set(config.method_options)


def prepare(
    config: ConfigDict,
    task: Task,
    folder: pathlib.Path,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Prepared:
    """What `config.method` needs beforehand, made once and kept in `folder`.

    Raises:
        Stopped: if asked to; nothing is kept.
    """
    wanted = needed(config)
    prepared = Prepared()
    if not wanted:
        return prepared
    path = folder / "prepared.npz"
    costs = [field.name for field in dataclasses.fields(Prepared)][1:]
    if path.exists():
        with np.load(path) as file:
            if wanted <= set(file.files):  # else it was made for another method
                arrays = {name: file[name] for name in wanted}
                return Prepared(arrays, *(file[f"cost_{name}"].item() for name in costs))
    for name in wanted:
        print(f"preparing {name} for {config.method} ...", flush=True)
        prepared.arrays[name] = _made()[name](config, task, prepared, asked_to_stop)
    save(path, **prepared.arrays, **{f"cost_{n}": np.array(getattr(prepared, n)) for n in costs})
    return prepared


def cross_fitted_losses(
    config: ConfigDict,
    task: Task,
    cost: Prepared,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """The loss of each training example by a model trained on the half that it is not in, [N].

    For `recipes.reducible_loss` without a holdout set (arXiv 2206.07137).
    """
    data = task.dataset.train
    order = np.random.default_rng(config.seed).permutation(num_examples(data))
    halves = np.array_split(order, 2)
    losses = np.zeros(len(order), np.float32)
    for number, (train, rest) in enumerate((halves, halves[::-1])):
        reference = _train(config, task, take(data, train), number, cost, asked_to_stop)
        losses[rest] = _score(
            lambda *model: task.metrics_fn(*model)["loss"],
            reference,
            take(data, rest),
            config,
            cost,
        )
    return losses


def early_el2n(
    config: ConfigDict,
    task: Task,
    cost: Prepared,
    asked_to_stop: Callable[[], bool] = lambda: False,
    networks: int = 2,
) -> np.ndarray:
    """||softmax(z) - y||_2 of each training example early in training, [N] (arXiv 2107.07075).

    The mean over networks that begin differently: two, since each costs what it costs; the authors
    recommend ten at least.
    """
    data, output_fn, label_fn = task.dataset.train, task.output_fn, task.label_fn
    if output_fn is None or label_fn is None:
        raise ConfigError(f"config.method: {config.method} needs classes; choose another method")

    def score(params: Any, model_state: Any, batch: Batch) -> Array:
        return el2n(output_fn(params, model_state, batch), label_fn(batch))

    scores = []
    for number in range(networks):
        reference = _train(config, task, data, number, cost, asked_to_stop)
        scores.append(_score(score, reference, data, config, cost))
    return np.asarray(np.mean(scores, axis=0, dtype=np.float32))


def _made() -> dict[str, Callable[..., np.ndarray]]:
    """How each is made, by the name of the recipe's parameter."""
    return {"reference": cross_fitted_losses, "scores": early_el2n}


def _train(
    config: ConfigDict,
    task: Task,
    data: Batch,
    number: int,
    cost: Prepared,
    asked_to_stop: Callable[[], bool],
) -> TrainState:
    """Reference model `number`, trained on `data`."""
    config = ConfigDict(config.to_dict())
    config.budget *= config.reference_budget
    batch_size = min(config.batch_size, num_examples(data))
    tx, sampler = make_optimizer(config), recipes.reshuffled(batch_size=batch_size)
    # Apart from the keys of the run itself, which come from the seed alone.
    init_key, state_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number))
    params, model_state = task.init(init_key)
    state = init_train_state(state_key, params, tx, sampler, num_examples(data), model_state)
    data = jax.device_put(data)
    step = make_train_step(task.loss_fn, tx, sampler)
    program = compile_steps(step, state, data, steps_per_call=1)
    start = time.perf_counter()
    for _ in range(num_steps(config)):
        if asked_to_stop():
            raise Stopped
        state, *_ = program.run(state, data, jnp.int32(1))
    jax.block_until_ready(state)
    cost.compile_seconds += program.seconds
    cost.seconds += time.perf_counter() - start
    cost.examples_forward += num_steps(config) * batch_size
    cost.examples_backward += num_steps(config) * batch_size
    return state


def _score(
    function: Callable[..., Array],
    state: TrainState,
    data: Batch,
    config: ConfigDict,
    cost: Prepared,
) -> np.ndarray:
    start = time.perf_counter()
    batches = over_examples(make_eval_step(function), state, data, config.eval_batch_size)
    scores = np.concatenate(list(batches))
    cost.seconds += time.perf_counter() - start
    cost.examples_forward += len(scores)
    return scores
