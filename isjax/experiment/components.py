"""From a config to the objects of a run: task, optimiser, sampler."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError
from ml_collections import ConfigDict

from isjax import conditions, data, networks, recipes, tasks, weights
from isjax._numerics import precision
from isjax.base import Array, Batch, PyTree, Sampler
from isjax.data.dataset import Dataset, with_label_noise
from isjax.data.source import held, in_memory, num_examples
from isjax.experiment import schedules
from isjax.experiment.config import ConfigError, build, check_name, num_steps
from isjax.gradients import check_losses
from isjax.samplers import gate, lagged, reweight, stratified
from isjax.tasks import Task, augmentations, num_outputs, predicts_every_token

__all__ = ["check_task", "make_optimizer", "make_sampler", "make_task"]


def make_task(config: ConfigDict, dataset: Dataset | None = None) -> Task:
    """The task that a config names, on its data set unless another is given."""
    if dataset is None:
        if not config.in_memory and config.dataset in data.SETS:
            raise ConfigError(
                f"config.in_memory is False, but {config.dataset} is made in memory; set it to "
                "True, or choose an image data set of tensorflow-datasets"
            )
        dataset = build(
            "dataset_options",
            data.builder(config.dataset),
            config.dataset_options,
            fixed={"data_dir": config.data_dir or None, "in_memory": config.in_memory},
        )
    try:
        if config.label_noise:
            dataset = with_label_noise(dataset, config.label_noise, config.seed)
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
        network = getattr(precision, config.precision)(network)
        augment = [_augmentation(name, config) for name in config.augment]
        return getattr(tasks, config.task)(dataset, network, augment)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.task is {config.task}: {error}") from error


def _augmentation(name: str, config: ConfigDict) -> tasks.Augmentation:
    """With its options, `(key, images) -> images`."""
    function = getattr(augmentations, name)
    options = config.augment_options.get(name, {})
    known = list(inspect.signature(function).parameters)[2:]  # after key and images
    for option in options:
        check_name(option, known, f"an option of {name}", f"config.augment_options.{name}.")
    return functools.partial(function, **options)


def check_task(task: Task) -> None:
    """Refuses a network, augmentation or loss that cannot take the data; nothing is computed.

    Raises:
        ConfigError: with what it says of two such examples as each part has.
    """
    parts = (task.dataset.train, task.dataset.valid, task.dataset.test)
    for part in parts:
        if part is not None:
            # Two, also of a part of one: else a mean would pass for one loss per example.
            batch = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), jnp.asarray(x[:1]).dtype),
                held(part),
            )
            try:
                jax.eval_shape(functools.partial(_try, task), batch, jax.random.key(0))
            except (FlaxError, LookupError, TypeError, ValueError) as error:
                shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch)
                raise ConfigError(
                    f"network, augmentations and loss, with their options, cannot take data such "
                    f"as {shapes}: {error}"
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


def make_sampler(
    config: ConfigDict,
    task: Task,
    model_state: PyTree = None,
    prepared: Mapping[str, Any] | None = None,
) -> Sampler:
    """The sampler that a config names; classes and the model's losses are the task's.

    Args:
        config: of the run.
        task: of the run.
        model_state: that the model begins with; None or empty if it has none.
        prepared: what else the method takes that is made before training; see `isjax.experiment.reference_models`.

    Raises:
        ConfigError: if the method needs what the task has not, or refuses an option or the data.
    """
    recipe = getattr(recipes, config.method)
    size, ahead = num_examples(task.dataset.train), _chooses_ahead(config, task)
    offered = {
        "batch_size": config.batch_size // config.strata,
        "pool_size": config.pool_size // config.strata,
        "num_steps": num_steps(config),
        **(prepared or {}),
        **({} if ahead else _of_examples(task, model_state)),
    }
    missing = required(recipe) - offered.keys() - set(config.method_options)
    if "scores" in offered and "logits_fn" not in offered:  # of which those were to be made
        missing |= {"logits_fn"}
    if missing:
        lacks = (
            "which is of examples, but these are chosen before they are read; set config.in_memory "
            "to True and config.lag to 0, or choose a method of past losses, such as default"
            if ahead
            else f"which the task {config.task} on {config.dataset} has not; choose another method"
        )
        needs = ", ".join(sorted(missing))
        raise ConfigError(f"config.method: {config.method} needs {needs}, {lacks}")
    sampler = build(
        "method_options",
        recipe,
        config.method_options,
        fixed=offered,
        defaults={"initial_loss": task.initial_loss},
    )
    try:
        if config.strata > 1:
            pool_size = config.pool_size // config.strata
            sampler = stratified(sampler, config.strata, None if sampler.own_pool else pool_size)
        if ahead:
            pool_size = None if sampler.own_pool else config.pool_size
            sampler = lagged(sampler, config.lag, pool_size)
        jax.eval_shape(lambda key: sampler.init(key, size), jax.random.key(0))
    except ValueError as error:
        raise ConfigError(f"config.method is {config.method}: {error}") from error
    for setting, module, wrap in (("weighting", weights, reweight), ("gate", conditions, gate)):
        if config[setting]:
            function, options = getattr(module, config[setting]), f"{setting}_options"
            part = build(options, function, config[options])
            try:
                sampler = wrap(sampler, part)
            except ValueError as error:
                raise ConfigError(
                    f"config.{setting}: {config.method} cannot have one; {error}"
                ) from error
    return sampler


def _chooses_ahead(config: ConfigDict, task: Task) -> bool:
    """Whether a batch is chosen before its examples are at hand."""
    return config.lag > 0 or not in_memory(task.dataset.train)


def _of_examples(task: Task, model_state: PyTree) -> dict[str, Any]:
    """What the task offers to a method that sees the examples it is to choose from."""
    stateful = bool(jax.tree.leaves(model_state))

    def of_variables(function):
        if stateful:
            return lambda variables, batch: function(*variables, batch)
        return lambda params, batch: function(params, model_state, batch)

    offered = {
        "loss_fn": of_variables(task.score_fn),
        "stateful": stateful,
        "example": jax.tree.map(lambda x: x[:1], task.dataset.train),
        "num_classes": task.dataset.num_classes,
        "label_fn": task.label_fn,
    }
    if task.output_fn is not None and task.dataset.num_classes is not None:
        offered["logits_fn"] = of_variables(task.output_fn)
    return {name: value for name, value in offered.items() if value is not None}


def required(function: Any) -> set[str]:
    """The parameters that a function has no default for."""
    parameters = inspect.signature(function).parameters
    return {name for name, value in parameters.items() if value.default is value.empty}
