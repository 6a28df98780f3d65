"""From a config to the objects of a run: task, optimiser, sampler."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError
from ml_collections import ConfigDict

from isjax import augmentations, data, networks, recipes, schedules, tasks
from isjax.base import Array, Batch, PyTree, Sampler
from isjax.config import ConfigError, build, num_steps
from isjax.dataset import Dataset
from isjax.gradients import check_losses
from isjax.tasks import Task, num_outputs, predicts_every_token

__all__ = ["check_task", "make_optimizer", "make_sampler", "make_task"]


def make_task(config: ConfigDict, dataset: Dataset | None = None) -> Task:
    """The task that a config names, on its data set unless another is given."""
    if dataset is None:
        dataset = build(
            "dataset_options",
            data.builder(config.dataset),
            config.dataset_options,
            fixed={"data_dir": config.data_dir or None},
        )
    try:
        outputs = num_outputs(dataset)
        every_position = config.task == "language" and predicts_every_token(dataset)
        network = build(
            "network_options",
            getattr(networks, config.network),
            config.network_options,
            fixed={
                "outputs": outputs,
                "every_position": every_position,
                "vocabulary": dataset.vocabulary and len(dataset.vocabulary),
            },
        )
        augment = [getattr(augmentations, name) for name in config.augment]
        return getattr(tasks, config.task)(dataset, network, augment)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.task is {config.task}: {error}") from error


def check_task(task: Task) -> None:
    """Refuses a network, augmentation or loss that cannot take the data; nothing is computed.

    Raises:
        ConfigError: with what it says of two examples of each part.
    """
    parts = (task.dataset.train, task.dataset.valid, task.dataset.test)
    for part in parts:
        if part is not None:
            batch = jax.tree.map(lambda x: jnp.asarray(x[:2]), part)
            try:
                jax.eval_shape(functools.partial(_try, task), batch, jax.random.key(0))
            except (FlaxError, LookupError, TypeError, ValueError) as error:
                shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch)
                raise ConfigError(
                    f"network, augmentations and loss cannot take data such as {shapes}: {error}"
                ) from error


def _try(task: Task, batch: Batch, key: Array) -> Any:
    params, model_state = task.init(key)
    losses, model_state = task.loss_fn(params, model_state, batch, key)
    return check_losses(losses, 2), task.metrics_fn(params, model_state, batch)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser that a config names, its schedule scaled to the budget of the run.

    Weight decay spares biases and scales: it is for parameters of two axes or more.
    """
    optimizer = getattr(optax, config.optimizer)
    schedule = build(
        "schedule_options",
        getattr(schedules, config.schedule),
        config.schedule_options,
        fixed={"learning_rate": config.learning_rate, "num_steps": num_steps(config)},
    )
    mask = lambda params: jax.tree.map(lambda x: np.ndim(x) > 1, params)  # noqa: E731
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    decoupled = {"weight_decay", "mask"} <= inspect.signature(optimizer).parameters.keys()
    fixed = {"weight_decay": config.weight_decay, "mask": mask} if decoupled else {}
    if config.weight_decay and not decoupled:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    parts.append(
        build(
            "optimizer_options",
            optimizer,
            config.optimizer_options,
            fixed={"learning_rate": schedule, **fixed},
            defaults={"momentum": 0.9},
        )
    )
    tx = optax.chain(*parts)
    try:
        params = {"kernel": jnp.zeros((2, 2))}
        jax.eval_shape(lambda: tx.update(params, tx.init(params), params))
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer: {config.optimizer} does not go by gradients and a schedule alone "
            f"({error}); choose another, such as sgd or adam"
        ) from error
    return tx


def make_sampler(config: ConfigDict, task: Task, model_state: PyTree = None) -> Sampler:
    """The sampler that a config names; classes and the model's losses are the task's."""
    if jax.tree.leaves(model_state):
        loss_fn = lambda variables, batch: task.score_fn(*variables, batch)  # noqa: E731
    else:
        loss_fn = lambda params, batch: task.score_fn(params, model_state, batch)  # noqa: E731
    return build(
        "method_options",
        getattr(recipes, config.method),
        config.method_options,
        fixed={
            "batch_size": config.batch_size,
            "loss_fn": loss_fn,
            "num_classes": task.dataset.num_classes,
            "label_fn": task.label_fn,
        },
        defaults={"initial_loss": task.initial_loss},
    )
