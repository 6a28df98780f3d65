"""The settings of a run: defaults, checks, and errors that name the remedy."""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, MappingProxyType
from typing import Any

import optax

from isjax import conditions, data, networks, recipes, tasks, weights
from isjax.experiment import schedules
from isjax.experiment.recipe_arguments import RecipeArguments, required_parameters
from isjax.tasks import augmentations

try:
    from ml_collections import ConfigDict
except ImportError:
    raise ImportError(
        "runs from a config need ml_collections: pip install '.[run]' in a checkout of isjax"
    ) from None

__all__ = [
    "ConfigError",
    "build",
    "check",
    "check_name",
    "default_config",
    "differences",
    "names",
    "num_steps",
]

_MINIMUM = {
    "pool_size": 1,
    "batch_size": 1,
    "num_steps": 1,
    "num_evals": 1,
    "eval_batch_size": 1,
    "log_every": 1,
    "eval_examples": 0,
    "reestimate_batches": 0,
    "checkpoint_every": 0,
    "steps_per_call": 0,
    "strata": 1,
    "lag": 0,
    "weight_decay": 0,
    "clip_norm": 0,
}
# Arguments that the run decides: no near miss of an option is meant to be one of them.
_DECIDED_BY_RUN = {
    *RecipeArguments._fields,
    *("every_position", "outputs", "vocabulary"),  # of a network
    *("data_dir", "in_memory"),  # of a data set
    *("learning_rate", "mask"),  # of a schedule or an optimiser
} - {"initial_loss"}

Config = ConfigDict | Mapping[str, Any]


class ConfigError(ValueError):
    """A config that cannot be run; the message names the value, the limit and the remedy."""


def default_config() -> ConfigDict:
    """Every setting, with its default; `configs/` has examples of changing them.

    Returns:
        A new `ConfigDict`; its source says what each setting means.
    """
    return ConfigDict(
        {
            # The task.
            "task": "classification",  # a name in isjax.tasks
            "dataset": "mnist1d",  # a name in isjax.data.SETS, or an image data set of TFDS
            "dataset_options": ConfigDict(),  # arguments of the data set, such as num_train
            "data_dir": "",  # folder of data sets; "" = the default of each
            "network": "MLP",  # a name in isjax.networks
            "network_options": ConfigDict(),  # attributes of the network, such as hidden
            "companion": "",  # network of the small model of companion_loss; "" = none
            "companion_options": ConfigDict(),  # its attributes
            "precision": "float32",  # in which the network computes: float32 or bfloat16
            "augment": (),  # names in isjax.tasks.augmentations, applied in this order
            "augment_options": ConfigDict(  # arguments of each augmentation, as in mixup.alpha
                {name: ConfigDict() for name in augmentations.__all__}
            ),
            "pixels": "standardised",  # in each channel; or "unit", bytes divided by 255
            "label_noise": 0.0,  # share of the training examples that get a wrong label
            # How a batch is chosen.
            "method": "uniform",  # a name in isjax.recipes
            "method_options": ConfigDict(),  # arguments of the recipe, such as k
            "gate": "",  # a name in isjax.conditions: when to use the method; "" = always
            "gate_options": ConfigDict(),  # arguments of the gate, such as threshold
            "weighting": "",  # a name in isjax.weights; "" = the weights of the method
            "weighting_options": ConfigDict(),  # arguments of the weighting, such as k
            "reference_budget": 0.2,  # share of num_steps that each reference model trains for
            "reference": "",  # workdir of the run of a reference model, or a .npy of its losses
            "tokens": ConfigDict(  # of isjax.select_tokens; keep 1 = a batch's tokens all count
                {"keep": 1.0, "sampled": False, "k": 1.0, "smoothing": 0.0}
            ),
            "pool_size": 1024,  # B, the examples that the sampler chooses from
            "batch_size": 128,  # b, the examples that a step trains on
            # The optimiser.
            "optimizer": "sgd",  # a name in optax
            "optimizer_options": ConfigDict(),  # its arguments; momentum is 0.9 if it has one
            "learning_rate": 0.05,  # the highest of the schedule
            "schedule": "cosine",  # a name in isjax.experiment.schedules
            "schedule_options": ConfigDict(),  # arguments of the schedule, such as warmup
            "weight_decay": 0.0,  # of kernels; L2, or decoupled if the optimiser has its own
            "clip_norm": 0.0,  # largest norm of the gradient; 0 = no clipping
            "num_steps": 10_000,  # training steps
            "budget": 1.0,  # share of num_steps that the run, and its schedule, take
            "seed": 0,  # of every random number; below 2**32
            "init_from": "",  # workdir of a run to go on from: its newest parameters; "" = none
            # Evaluation and reports.
            "num_evals": 20,  # evaluations, evenly spaced, after the one before training
            "eval_examples": 0,  # examples evaluated of each part, evenly spaced; 0 = all
            "eval_batch_size": 1000,  # examples evaluated at once
            "reestimate_batches": 0,  # uniform batches for batch norm; 0 = its running averages
            "artifacts": True,  # write draws, examples and times for isjax.report
            "wandb": "",  # project of Weights & Biases that also gets the metrics; "" = none
            "log_every": 100,  # steps averaged in a line of training.jsonl
            "stop_on_nonfinite": True,  # end a run that skips every step between two evaluations
            "max_skipped": 0.1,  # a run that skips a larger share of its steps ends in an error
            # Memory, speed and devices.
            "in_memory": True,  # False = read a batch once it is chosen, see isjax.data.loading
            "lag": 0,  # steps by which a batch is chosen ahead; at least 2 hides the reading
            "checkpoint_every": 1000,  # steps; 0 = no checkpoints: the run cannot be resumed
            "steps_per_call": 0,  # steps in a compiled program; 0 = 1 on a CPU, 50 elsewhere
            "distributed": False,  # join other processes, see isjax.parallel.processes.connect
            "mesh": ConfigDict({"data": 0, "model": 1}),  # devices along each axis; data 0 = all
            "strata": 1,  # parts of the data set that are drawn from separately; 1 = the whole
        }
    )


def names() -> dict[str, list[str]]:
    """The values of each setting that is a name; "" = none."""
    of_tasks = [name for name in networks.__all__ if not name.startswith("History")]
    return {
        "task": tasks.__all__,
        "network": of_tasks,
        "companion": ["", *of_tasks],
        "precision": ["bfloat16", "float32"],
        "augment": augmentations.__all__,
        "pixels": list(tasks.PIXELS),
        "method": recipes.__all__,
        "gate": ["", *conditions.__all__],
        "weighting": ["", *weights.__all__],
        "optimizer": _optimizers(),
        "schedule": schedules.__all__,
    }


def _optimizers() -> list[str]:
    """Functions of optax with a learning rate; not parts or wrappers of optimisers."""
    functions = {name: vars(optax).get(name) for name in optax.__all__}  # without the deprecated
    return [
        name
        for name, function in functions.items()
        if isinstance(function, FunctionType | functools.partial)
        and "learning_rate" in inspect.signature(function).parameters
        and not name.startswith("scale_by_")
    ]


def num_steps(config: ConfigDict) -> int:
    """The steps that a run takes: `config.budget * config.num_steps`, at least 1.

    Args:
        config: of the run.
    """
    return max(1, round(config.num_steps * config.budget))


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ.

    Args:
        one: a config, or the same as nested dictionaries.
        other: the config to compare with, in either form.

    Returns:
        Both values by dotted name; None where a config lacks the setting. A list equals a tuple
        of the same values.
    """
    one, other = _flat(one), _flat(other)
    return {
        name: (one.get(name), other.get(name))
        for name in sorted(one.keys() | other.keys())
        if (name in one) != (name in other) or one[name] != other[name]
    }


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def check(config: ConfigDict) -> None:
    """Refuses a config with unknown names or impossible numbers.

    Args:
        config: of a run.

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    _check_settings(config)
    _check_names(config)
    _check_options(config)
    _check_numbers(config)
    _check_reference(config)


def _check_settings(config: ConfigDict) -> None:
    """Refuses a config with other settings than the default one."""
    known = default_config()
    for name in config:
        check_name(name, known, "a setting", prefix="config.")
    for name, kind, remedy in (
        ("mesh", "an axis", "the devices along each axis, as in config.mesh.data=2"),
        ("tokens", "a setting", "its settings by name, as in config.tokens.keep=0.6"),
    ):
        if not isinstance(config.get(name, {}), Mapping | ConfigDict):
            raise ConfigError(f"config.{name} is {config[name]!r}; give {remedy}")
        for part in config.get(name, ()):
            check_name(part, known[name], kind, prefix=f"config.{name}.")
    missing = sorted(set(known) - set(config))
    if missing:
        raise ConfigError(
            f"config lacks {', '.join(missing)}; start from isjax.experiment.default_config()"
        )


def _check_names(config: ConfigDict) -> None:
    """Refuses names that isjax and optax do not have."""
    for setting, known in names().items():
        kind = {"augment": "augmentation", "pixels": "scale of pixels"}.get(setting, setting)
        article = "an" if kind[0] in "ao" else "a"
        for name in config.augment if setting == "augment" else [config[setting]]:
            check_name(name, known, f"{article} {kind}", f"config.{setting}: ")


def _check_options(config: ConfigDict) -> None:
    """Refuses options that nothing takes, before data are loaded."""
    takers = {
        "dataset_options": data.builder(config.dataset),
        "network_options": getattr(networks, config.network),
        "companion_options": getattr(networks, config.companion, None),
        "method_options": getattr(recipes, config.method),
        "optimizer_options": getattr(optax, config.optimizer),
        "schedule_options": getattr(schedules, config.schedule),
        "gate_options": getattr(conditions, config.gate, None),
        "weighting_options": getattr(weights, config.weighting, None),
    }
    for setting, taker in takers.items():
        parameters = inspect.signature(taker).parameters if taker else {}
        owner = config[setting.removesuffix("_options")]
        kind = f"an option of {owner}" if owner else "an option"
        for name in config[setting]:
            if name not in parameters:
                known = parameters.keys() - _DECIDED_BY_RUN
                check_name(name, known, kind, f"config.{setting}.")
    for name, options in config.augment_options.items():
        if options:
            check_name(name, config.augment, "in config.augment", prefix="config.augment_options.")


def _check_numbers(config: ConfigDict) -> None:
    """Refuses numbers outside of their range."""
    for setting, minimum in _MINIMUM.items():
        if not minimum <= config[setting] < math.inf:
            raise ConfigError(f"config.{setting} is {config[setting]}; choose at least {minimum}")
    if not 0 <= config.seed < 2**32:  # JAX's keys take the seed modulo 2**32
        raise ConfigError(f"config.seed is {config.seed}; choose one from 0 to {2**32 - 1}")
    for setting in ("batch_size", "pool_size"):
        if config[setting] % config.strata:
            raise ConfigError(
                f"config.{setting} is {config[setting]}, which config.strata = {config.strata} "
                f"parts cannot share evenly; choose a multiple of {config.strata}"
            )
    for axis, minimum in (("data", 0), ("model", 1)):
        devices = config.mesh.get(axis, 1)
        if isinstance(devices, bool) or not isinstance(devices, int) or devices < minimum:
            raise ConfigError(
                f"config.mesh.{axis} is {devices!r}; choose a whole number of devices, at least "
                f"{minimum}"
            )
    if not 0 < config.learning_rate < math.inf:
        raise ConfigError(f"config.learning_rate is {config.learning_rate}; choose more than 0")
    if not 0 <= config.max_skipped <= 1:
        raise ConfigError(
            f"config.max_skipped is {config.max_skipped}; choose a share from 0 to 1, which "
            "accepts any number of skipped steps"
        )
    for setting in ("budget", "reference_budget"):
        if not 0 < config[setting] <= 1:
            raise ConfigError(
                f"config.{setting} is {config[setting]}; choose a share above 0, at most 1"
            )


def _check_reference(config: ConfigDict) -> None:
    """Refuses a choice of tokens without a reference, and a reference that nothing reads."""
    keep = config.tokens.keep
    if not 0 < keep <= 1:
        raise ConfigError(f"config.tokens.keep is {keep}; choose a share above 0, at most 1")
    if keep < 1 and config.task != "language":
        raise ConfigError(
            f"config.tokens.keep is {keep}, but the task {config.task} has no tokens; leave it 1"
        )
    if keep < 1 and not config.reference:
        raise ConfigError(
            f"config.tokens.keep is {keep}, but tokens are chosen by their excess loss over a "
            "reference; set config.reference to the workdir of its run, or to a .npy of its losses"
        )
    read = "reference" in required_parameters(getattr(recipes, config.method))
    if config.reference and keep == 1 and not read:
        raise ConfigError(
            f"config.reference is {config.reference}, but nothing reads it; set "
            "config.tokens.keep below 1, or config.method to reducible_loss"
        )


def build(
    setting: str,
    function: Callable,
    options: Mapping[str, Any],
    fixed: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Calls the function that a setting names, with its options.

    Args:
        setting: name of `options` in the config, for messages.
        function: to call.
        options: its arguments, from the config.
        fixed: arguments that the run decides and `options` must not contain; those that `function`
            has no parameter for are left out.
        defaults: arguments that `options` may override; left out as those of `fixed`.

    Returns:
        The result of the call.

    Raises:
        ConfigError: if there is no such option, or `function` refuses its value.
    """
    parameters = inspect.signature(function).parameters
    owner = getattr(function, "__name__", f"the {setting.removesuffix('_options')}")
    for name in options:
        if name in fixed:
            raise ConfigError(f"config.{setting}.{name} is decided by the run; leave it out")
        check_name(
            name, parameters.keys() - fixed.keys(), f"an option of {owner}", f"config.{setting}."
        )
    suggested = {**(defaults or {}), **fixed}
    known = {name: value for name, value in suggested.items() if name in parameters}
    try:
        return function(**{**known, **options})
    except (TypeError, ValueError) as error:
        given = f" {dict(options)}, of {owner}" if isinstance(error, TypeError) else ""
        raise ConfigError(f"config.{setting}{given}: {error}") from error


def check_name(name: str, names: Iterable[str], kind: str, prefix: str) -> None:
    """Refuses a name that is not among `names`, and suggests the nearest.

    Args:
        name: to look up.
        names: that are known; "" is never suggested.
        kind: of name, such as "a setting".
        prefix: of the message.

    Raises:
        ConfigError: "{prefix}{name} is not {kind}; ...".
    """
    if name in names:
        return
    names = sorted(filter(None, names))
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
    hint = hint if names else "leave it out"
    raise ConfigError(f"{prefix}{name} is not {kind}; {hint}")
