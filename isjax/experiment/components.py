"""Makes the parts of a run from its config: task, optimiser, sampler."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError

from isjax import conditions, data, networks, recipes, tasks, weights
from isjax._numerics import precision
from isjax.base import Array, Batch, PyTree, Sampler
from isjax.data.dataset import Dataset, with_label_noise
from isjax.data.source import held, in_memory, num_examples
from isjax.experiment import schedules
from isjax.experiment.config import ConfigDict, ConfigError, build, check_name, num_steps
from isjax.experiment.recipe_arguments import RecipeArguments, required_parameters
from isjax.gradients import check_losses
from isjax.samplers import gate, lagged, reweight, stratified
from isjax.scorers import Companion
from isjax.tasks import Task, augmentations, excess_loss, num_outputs, predicts_every_token

__all__ = ["check_task", "make_optimizer", "make_sampler", "make_task"]


def make_task(config: ConfigDict, dataset: Dataset | None = None) -> Task:
    """The task that a config names.

    Args:
        config: of the run.
        dataset: in place of the one that the config names.

    Returns:
        Data set, network and loss.

    Raises:
        ConfigError: if data set, network, augmentations and task do not fit, or refuse an option.
    """
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
        if config.tokens.keep < 1:
            dataset = _with_room_for_reference(dataset)
        return _task_of(config, dataset, "network")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.task is {config.task}: {error}") from error


def _task_of(config: ConfigDict, dataset: Dataset, setting: str) -> Task:
    """The task on a data set, with the network that `setting` names."""
    options = f"{setting}_options"
    network = build(
        options,
        getattr(networks, config[setting]),
        config[options],
        fixed={
            "outputs": num_outputs(dataset),
            "every_position": config.task == "language" and predicts_every_token(dataset),
            "vocabulary": dataset.vocabulary and len(dataset.vocabulary),
        },
    )
    network = getattr(precision, config.precision)(network)
    augment = [_augmentation(name, config) for name in config.augment]
    select = {"select": excess_loss(**config.tokens)} if config.tokens.keep < 1 else {}
    return getattr(tasks, config.task)(dataset, network, augment, config.pixels, **select)


def _with_room_for_reference(dataset: Dataset) -> Dataset:
    """Gives each part a "reference", zeros that take no memory, to be replaced before training."""
    if not in_memory(dataset.train):
        raise ConfigError(
            "config.tokens.keep is below 1, which needs data in memory; pass arrays, or leave it 1"
        )

    def filled(part: Batch) -> Batch:
        return part and {**part, "reference": np.broadcast_to(np.float16(0), part["y"].shape)}

    return dataset._replace(
        train=filled(held(dataset.train)), valid=filled(dataset.valid), test=filled(dataset.test)
    )


def _augmentation(name: str, config: ConfigDict) -> tasks.Augmentation:
    """The augmentation `(key, images) -> images` with its options."""
    function = getattr(augmentations, name)
    options = config.augment_options.get(name, {})
    known = list(inspect.signature(function).parameters)[2:]  # after key and images
    for option in options:
        check_name(option, known, f"an option of {name}", f"config.augment_options.{name}.")
    return functools.partial(function, **options)


def check_task(task: Task) -> None:
    """Refuses a network, augmentation or loss that cannot take the data; only traces them.

    Args:
        task: of the run.

    Raises:
        ConfigError: with the error raised for two examples of a part of the data.
    """
    parts = (task.dataset.train, task.dataset.valid, task.dataset.test)
    for part in parts:
        if part is not None:
            # Two, even of a part of one: with one a mean would pass for a loss per example.
            batch = _shapes(held(part), 2)
            try:
                jax.eval_shape(functools.partial(_try, task), batch, jax.random.key(0))
            except (FlaxError, LookupError, TypeError, ValueError) as error:
                shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch)
                raise ConfigError(
                    f"network, augmentations and loss, with their options, cannot take data such "
                    f"as {shapes}: {error}"
                ) from error


def _shapes(part: Batch, num: int) -> Batch:
    """Shapes and dtypes of a batch of `num` examples."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num, *x.shape[1:]), jnp.asarray(x[:1]).dtype), part
    )


def _try(task: Task, batch: Batch, key: Array) -> Any:
    params, model_state = task.init(key)
    losses, model_state = task.loss_fn(params, model_state, batch, key)
    return check_losses(losses, 2), task.metrics_fn(params, model_state, batch)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser that a config names, its schedule scaled to the budget of the run.

    Weight decay applies to parameters of at least two axes, not to biases and scales.

    Args:
        config: of the run.

    Returns:
        Clipping, weight decay and optimiser, chained.

    Raises:
        ConfigError: if optimiser or schedule refuse an option, or need more than gradients.
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
        params, update = {"kernel": jnp.zeros((2, 2))}, optax.with_extra_args_support(tx).update
        jax.eval_shape(lambda: update(params, tx.init(params), params, value=jnp.zeros(())))
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer: {config.optimizer} needs more than gradients, loss and a schedule "
            f"({error}); choose another, such as sgd or adam"
        ) from error
    return tx


def make_sampler(
    config: ConfigDict,
    task: Task,
    model_state: PyTree = None,
    prepared: Mapping[str, Any] | None = None,
) -> Sampler:
    """The sampler that a config names.

    Args:
        config: of the run.
        task: of the run; gives losses, logits and classes to the recipe.
        model_state: that the model begins with; None or empty if it has none.
        prepared: float32[N] arrays made before training, by name; see
            `isjax.experiment.reference_models`.

    Returns:
        The recipe's sampler, wrapped by strata, lag, weighting and gate as the config says.

    Raises:
        ConfigError: if the method needs something that the task does not have, or refuses an
            option or the data.
    """
    sampler = _from_recipe(config, task, model_state, prepared or {})
    sampler = _with_strata_and_lag(config, task, sampler)
    for setting, module, wrap in (("weighting", weights, reweight), ("gate", conditions, gate)):
        if config[setting]:
            sampler = _wrapped(config, sampler, setting, module, wrap)
    return sampler


def _from_recipe(
    config: ConfigDict, task: Task, model_state: PyTree, prepared: Mapping[str, Any]
) -> Sampler:
    recipe = getattr(recipes, config.method)
    arguments = _recipe_arguments(config, task, model_state, prepared).available()
    initial_loss = arguments.pop("initial_loss")  # the only one that options may change
    _check_arguments(config, task, recipe, arguments.keys())
    return build(
        "method_options",
        recipe,
        config.method_options,
        fixed=arguments,
        defaults={"initial_loss": initial_loss},
    )


def _recipe_arguments(
    config: ConfigDict, task: Task, model_state: PyTree, prepared: Mapping[str, Any]
) -> RecipeArguments:
    """The arguments of a run; those of examples only if batches are read before they are chosen."""
    train = task.dataset.train
    has_sources = task.dataset.source_names is not None and in_memory(train)
    arguments = RecipeArguments(
        batch_size=config.batch_size // config.strata,
        pool_size=config.pool_size // config.strata,
        num_steps=num_steps(config),
        initial_loss=task.initial_loss,
        source=np.asarray(held(train)["source"]) if has_sources else None,
        **prepared,
    )
    if _chooses_ahead(config, task):
        return arguments
    stateful = bool(jax.tree.leaves(model_state))
    takes_companion = "companion" in required_parameters(getattr(recipes, config.method))

    def of_variables(function: Callable) -> Callable:
        if stateful:
            return lambda variables, batch: function(*variables, batch)
        return lambda params, batch: function(params, model_state, batch)

    classes = task.output_fn is not None and task.dataset.num_classes is not None
    return arguments._replace(
        loss_fn=of_variables(task.score_fn),
        logits_fn=of_variables(task.output_fn) if classes else None,
        stateful=stateful,
        example=jax.tree.map(lambda x: x[:1], train),
        companion=_companion(config, task) if config.companion and takes_companion else None,
        num_classes=task.dataset.num_classes,
        label_fn=task.label_fn,
    )


def _companion(config: ConfigDict, task: Task) -> Companion:
    """The companion of a run, its cost measured in XLA's count of operations."""
    small = _task_of(config, task.dataset, "companion")
    check_task(small)
    passes = _operations(small) / _operations(task)
    return Companion(small.init, small.loss_fn, small.score_fn, passes)


def _operations(task: Task) -> float:
    """Operations of the forward pass of an example."""
    variables = jax.eval_shape(task.init, jax.random.key(0))
    lowered = jax.jit(task.score_fn).lower(*variables, _shapes(task.dataset.train, 1))
    return cast(dict[str, float], lowered.cost_analysis())["flops"]


def _check_arguments(
    config: ConfigDict, task: Task, recipe: Callable, available: Collection[str]
) -> None:
    """Refuses a recipe that needs an argument which neither task nor options have."""
    missing = required_parameters(recipe) - set(available) - set(config.method_options)
    if "scores" in available and "logits_fn" not in available:  # scores are made from logits
        missing |= {"logits_fn"}
    if not missing:
        return
    if missing == {"source"}:
        reason = (
            "the source of each example in memory; take text_files, or give source_names to "
            "from_arrays, or choose another method"
        )
    elif _chooses_ahead(config, task):
        reason = (
            "which is of examples, but here batches are chosen before their examples are read; set "
            "config.in_memory to True and config.lag to 0, or choose a method of past losses, such "
            "as default"
        )
    elif missing == {"companion"}:
        reason = "a small network of the same task; name one as config.companion"
    else:
        reason = (
            f"which the task {config.task} on {config.dataset} does not have; choose another method"
        )
    needs = ", ".join(sorted(missing))
    raise ConfigError(f"config.method: {config.method} needs {needs}, {reason}")


def _with_strata_and_lag(config: ConfigDict, task: Task, sampler: Sampler) -> Sampler:
    """Splits the data into strata and chooses ahead; refuses data that the sampler cannot take."""
    size = num_examples(task.dataset.train)
    try:
        if config.strata > 1:
            pool_size = None if sampler.own_pool else config.pool_size // config.strata
            sampler = stratified(sampler, config.strata, pool_size)
        if _chooses_ahead(config, task):
            pool_size = None if sampler.own_pool else config.pool_size
            sampler = lagged(sampler, config.lag, pool_size)
        jax.eval_shape(lambda key: sampler.init(key, size), jax.random.key(0))
    except ValueError as error:
        raise ConfigError(f"config.method is {config.method}: {error}") from error
    return sampler


def _wrapped(
    config: ConfigDict,
    sampler: Sampler,
    setting: str,
    module: ModuleType,
    wrap: Callable[[Sampler, Any], Sampler],
) -> Sampler:
    """The sampler with the weighting or gate that `setting` names in `module`."""
    options = f"{setting}_options"
    part = build(options, getattr(module, config[setting]), config[options])
    try:
        return wrap(sampler, part)
    except ValueError as error:
        raise ConfigError(f"config.{setting}: {config.method} cannot have one; {error}") from error


def _chooses_ahead(config: ConfigDict, task: Task) -> bool:
    """Whether a batch is chosen before its examples are read."""
    return config.lag > 0 or not in_memory(task.dataset.train)
