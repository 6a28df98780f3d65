"""Reference models: trained before a run, for methods that need a number for each example.

A reference model is the run's own network, trained on uniform batches for a share of the run's
steps (`config.reference_budget`), over which its learning rate decays. Or it is the model of an
earlier run (`config.reference`). In either case its time and its examples count as the run's.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isjax import recipes
from isjax.base import Array, Batch, take
from isjax.data.dataset import load, save
from isjax.data.source import num_examples
from isjax.experiment.compiled_steps import compile_steps
from isjax.experiment.components import make_optimizer, make_task
from isjax.experiment.config import ConfigDict, ConfigError, num_steps
from isjax.experiment.earlier_run import find
from isjax.experiment.evaluation import evaluate_batches
from isjax.experiment.recipe_arguments import required_parameters
from isjax.gradients import el2n
from isjax.tasks import Task
from isjax.training import (
    TrainState,
    init_train_state,
    make_eval_step,
    make_train_step,
)

__all__ = [
    "PreparationStopped",
    "Prepared",
    "cross_fitted_losses",
    "early_el2n",
    "losses_of_run",
    "model_of_run",
    "placeholders",
    "prepare",
    "score_examples",
]

ShouldStop = Callable[[], bool]


class PreparationStopped(Exception):
    """The run was asked to stop before its reference models were trained."""


@dataclasses.dataclass
class Prepared:
    """Arrays made before training, and their cost.

    Attributes:
        arrays: float32[N] each, by the name of the recipe's parameter.
        seconds: of training and scoring, without compilation.
        compile_seconds: of compilation.
        examples_forward: run forward by the reference models.
        examples_backward: run backward.
    """

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    compile_seconds: float = 0.0
    examples_forward: int = 0
    examples_backward: int = 0


def placeholders(config: ConfigDict, num_examples: int) -> dict[str, np.ndarray]:
    """Zeros in place of the arrays that `config.method` needs, to check a config cheaply.

    Args:
        config: of the run.
        num_examples: N.

    Returns:
        float32[N] by name; empty for a method that needs nothing before training.
    """
    return {name: np.zeros(num_examples, np.float32) for name in _needed(config)}


def prepare(
    config: ConfigDict,
    task: Task,
    folder: pathlib.Path,
    should_stop: ShouldStop = lambda: False,
) -> Prepared:
    """Makes the arrays that `config.method` needs, once; keeps them in `folder`.

    Args:
        config: of the run.
        task: of the run.
        folder: of the run; its `prepared.npz` is read if it holds the arrays. Otherwise, as when
            it is damaged, it is made anew.
        should_stop: asked before each step of a reference model.

    Returns:
        The arrays, and their cost when they were made.

    Raises:
        PreparationStopped: if `should_stop()`; nothing is kept.
    """
    names = _needed(config)
    prepared = Prepared()
    if not names:
        return prepared
    path = folder / "prepared.npz"
    costs = [field.name for field in dataclasses.fields(Prepared)][1:]
    shapes = {name: (num_examples(task.dataset.train),) for name in names}
    if kept := load(path, **shapes, **{f"cost_{name}": () for name in costs}):
        arrays = {name: kept[name] for name in names}
        return Prepared(arrays, *(kept[f"cost_{name}"].item() for name in costs))
    for name in names:
        print(f"preparing {name} for {config.method} ...", flush=True)
        prepared.arrays[name] = _makers(config)[name](config, task, prepared, should_stop)
    save(path, **prepared.arrays, **{f"cost_{n}": np.array(getattr(prepared, n)) for n in costs})
    return prepared


def _needed(config: ConfigDict) -> set[str]:
    """The arguments of `config.method` that must be made before training."""
    required = required_parameters(getattr(recipes, config.method))
    return required & _makers(config).keys() - set(config.method_options)


def _makers(config: ConfigDict) -> dict[str, Callable[..., np.ndarray]]:
    """The function that makes each argument."""
    reference = losses_of_run if config.reference else cross_fitted_losses
    return {"reference": reference, "scores": early_el2n}


def cross_fitted_losses(
    config: ConfigDict,
    task: Task,
    cost: Prepared,
    should_stop: ShouldStop = lambda: False,
) -> np.ndarray:
    """The loss of each training example by a model trained on the other half of the data.

    For `recipes.reducible_loss` without a holdout set (arXiv 2206.07137).

    Args:
        config: of the run.
        task: of the run.
        cost: to which the costs are added.
        should_stop: asked before each step.

    Returns:
        float32[N].

    Raises:
        PreparationStopped: if `should_stop()`.
    """
    data = task.dataset.train
    order = np.random.default_rng(config.seed).permutation(num_examples(data))
    halves = np.array_split(order, 2)
    losses = np.zeros(len(order), np.float32)
    for number, (train, rest) in enumerate((halves, halves[::-1])):
        reference = _train(config, task, take(data, train), number, cost, should_stop)
        losses[rest] = score_examples(
            lambda *model: task.metrics_fn(*model)["loss"],
            reference,
            take(data, rest),
            config,
            cost,
        )
    return losses


def losses_of_run(
    config: ConfigDict,
    task: Task,
    cost: Prepared,
    should_stop: ShouldStop = lambda: False,
) -> np.ndarray:
    """The loss of each training example by the model of the run that `config.reference` names.

    Args:
        config: of the run.
        task: of the run.
        cost: to which the costs are added.
        should_stop: not asked: nothing is trained.

    Returns:
        float32[N].

    Raises:
        ConfigError: as `model_of_run`.
    """
    del should_stop
    reference, state = model_of_run(config, task, cost)
    function = lambda *model: reference.metrics_fn(*model)["loss"]  # noqa: E731
    return score_examples(function, state, task.dataset.train, config, cost)


def model_of_run(config: ConfigDict, task: Task, cost: Prepared) -> tuple[Task, TrainState]:
    """The model of the run that `config.reference` names, for the data of this run.

    Args:
        config: of this run.
        task: of this run.
        cost: to which the cost of its training is added, as that run has counted it.

    Returns:
        The task of that run's network on this run's data, and its newest state, without optimiser
        and sampler.

    Raises:
        ConfigError: if there is no such run, or its task or a shape is another.
    """
    run = find("config.reference", config.reference)
    run.require_task(config.task)
    # Of that run only the network counts.
    settings = ConfigDict({**run.config.to_dict(), "tokens": {"keep": 1.0}, "label_noise": 0.0})
    reference = make_task(settings, task.dataset)
    model = run.read(*jax.eval_shape(reference.init, jax.random.key(0)))
    params, model_state = jax.tree.map(jnp.asarray, model)
    cost.seconds += run.progress["seconds"]
    cost.compile_seconds += run.progress["compile_seconds"]
    for name in ("examples_forward", "examples_backward"):
        number = getattr(cost, name) + round(run.progress["since_start"].get(name, 0))
        setattr(cost, name, number)
    nothing = jnp.zeros((), jnp.int32)
    return reference, TrainState(nothing, nothing, params, model_state, (), None)


def early_el2n(
    config: ConfigDict,
    task: Task,
    cost: Prepared,
    should_stop: ShouldStop = lambda: False,
    networks: int = 2,
) -> np.ndarray:
    """||softmax(z) - y||_2 of each training example early in training (arXiv 2107.07075).

    Args:
        config: of the run.
        task: of the run, with classes.
        cost: to which the costs are added.
        should_stop: asked before each step.
        networks: over which the norm is averaged, each with its own initial parameters. The
            authors recommend at least ten; two cost less.

    Returns:
        float32[N].

    Raises:
        ConfigError: if the task has no classes.
        PreparationStopped: if `should_stop()`.
    """
    data, output_fn, label_fn = task.dataset.train, task.output_fn, task.label_fn
    if output_fn is None or label_fn is None:
        raise ConfigError(f"config.method: {config.method} needs classes; choose another method")

    def score(params: Any, model_state: Any, batch: Batch) -> Array:
        return el2n(output_fn(params, model_state, batch), label_fn(batch))

    scores = []
    for number in range(networks):
        reference = _train(config, task, data, number, cost, should_stop)
        scores.append(score_examples(score, reference, data, config, cost))
    return np.asarray(np.mean(scores, axis=0, dtype=np.float32))


def _train(
    config: ConfigDict,
    task: Task,
    data: Batch,
    number: int,
    cost: Prepared,
    should_stop: ShouldStop,
) -> TrainState:
    """Reference model `number`, trained on `data`."""
    config = ConfigDict(config.to_dict())
    config.budget *= config.reference_budget
    batch_size = min(config.batch_size, num_examples(data))
    tx, sampler = make_optimizer(config), recipes.reshuffled(batch_size=batch_size)
    # Other keys than those of the run itself.
    init_key, state_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number))
    params, model_state = task.init(init_key)
    state = init_train_state(state_key, params, tx, sampler, num_examples(data), model_state)
    data = jax.device_put(data)
    step = make_train_step(task.loss_fn, tx, sampler)
    program = compile_steps(step, state, data, steps_per_call=1)
    start = time.perf_counter()
    for _ in range(num_steps(config)):
        if should_stop():
            raise PreparationStopped
        state, *_ = program.one(state, data)
    jax.block_until_ready(state)
    cost.compile_seconds += program.seconds
    cost.seconds += time.perf_counter() - start
    cost.examples_forward += num_steps(config) * batch_size
    cost.examples_backward += num_steps(config) * batch_size
    return state


def score_examples(
    function: Callable[..., Array],
    state: TrainState,
    data: Batch,
    config: ConfigDict,
    cost: Prepared,
) -> np.ndarray:
    """Runs a reference model forward on all examples.

    Args:
        function: `(params, model_state, batch) -> [b, ...]`, such as losses.
        state: of the model.
        data: N examples.
        config: of the run, for `eval_batch_size`.
        cost: to which the cost is added.

    Returns:
        The values of all examples, [N, ...].
    """
    start = time.perf_counter()
    batches = evaluate_batches(make_eval_step(function), state, data, config.eval_batch_size)
    scores = np.concatenate(list(batches))
    cost.seconds += time.perf_counter() - start
    cost.examples_forward += len(scores)
    return scores
