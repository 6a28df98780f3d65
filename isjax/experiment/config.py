"""The settings of a run, their defaults, and errors that say what to do about a bad one."""

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
from isjax.tasks import augmentations

try:
    from ml_collections import ConfigDict
except ImportError:
    raise ImportError("runs from a config need ml_collections: pip install 'isjax[run]'") from None

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

_LEAST = {
    "pool_size": 1,
    "batch_size": 1,
    "num_steps": 1,
    "num_evals": 1,
    "eval_batch_size": 1,
    "log_every": 1,
    "eval_examples": 0,
    "checkpoint_every": 0,
    "steps_per_call": 0,
    "strata": 1,
    "lag": 0,
    "weight_decay": 0,
    "clip_norm": 0,
}
# What isjax.experiment.components gives to what it builds, and no option may say otherwise.
_DECIDED = {
    *("batch_size", "label_fn", "logits_fn", "loss_fn", "num_classes", "num_steps", "pool_size"),
    *("example", "reference", "scores", "stateful"),  # of a method, as are those above
    *("every_position", "outputs", "vocabulary"),  # of a network
    *(
        "data_dir",
        "in_memory",
        "learning_rate",
        "mask",
    ),  # of data, schedule, optimiser
}

Config = ConfigDict | Mapping[str, Any]


class ConfigError(ValueError):
    """A config that cannot be run; the message names the value, the limit and the remedy."""


def default_config() -> ConfigDict:
    """Every setting, with its default."""
    return ConfigDict(
        {
            # What there is to learn.
            "task": "classification",  # a name in isjax.tasks
            "dataset": "mnist1d",  # a name in isjax.data.SETS, or of an image data set in TFDS
            "dataset_options": ConfigDict(),  # its arguments, such as num_train
            "data_dir": "",  # where data sets lie or are cached; "" = as each does by default
            "network": "MLP",  # a name in isjax.networks
            "network_options": ConfigDict(),  # its attributes
            "precision": "float32",  # or bfloat16, in which the network then computes
            "augment": (),  # names in isjax.tasks.augmentations, applied in this order
            "augment_options": ConfigDict(  # the arguments of each, such as mixup.alpha
                {name: ConfigDict() for name in augmentations.__all__}
            ),
            "label_noise": 0.0,  # share of the training examples that get a wrong label
            # How the batch is chosen.
            "method": "uniform",  # a name in isjax.recipes
            "method_options": ConfigDict(),  # its arguments, such as k
            "gate": "",  # a name in isjax.conditions: when to sample by the method; "" = always
            "gate_options": ConfigDict(),  # its arguments, such as threshold
            "weighting": "",  # a name in isjax.weights, such as correcting; "" = the method's own
            "weighting_options": ConfigDict(),  # its arguments
            "reference_budget": 0.2,  # share of the steps that a method's reference models take
            "pool_size": 1024,  # B, the presample that the sampler chooses from
            "batch_size": 128,  # b
            # How it is trained on.
            "optimizer": "sgd",  # a name in optax
            "optimizer_options": ConfigDict(),  # its arguments; momentum is 0.9 where there is one
            "learning_rate": 0.05,
            "schedule": "cosine",  # a name in isjax.experiment.schedules
            "schedule_options": ConfigDict(),  # its arguments, such as warmup
            "weight_decay": 0.0,  # of kernels; L2, or decoupled where the optimiser has its own
            "clip_norm": 0.0,  # largest norm of the gradient; 0 = not clipped
            "num_steps": 10_000,
            "budget": 1.0,  # the share of num_steps that the run and its schedule take
            "seed": 0,
            # What is reported.
            "num_evals": 20,  # evenly spaced, after the one before training
            "eval_examples": 0,  # of each part, evenly spaced; 0 = all
            "eval_batch_size": 1000,
            "exhibits": True,  # keep draws, examples and times for isjax.report
            "wandb": "",  # a project of Weights & Biases, to which the lines also go; "" = none
            "log_every": 100,  # steps over which diagnostics are averaged for training.jsonl
            "stop_on_nonfinite": True,  # end a run that has skipped every step since an evaluation
            # How it runs.
            "in_memory": True,  # or False: each batch is read once it is chosen, see isjax.data.loading
            "lag": 0,  # steps by which a batch is chosen ahead; 2 or more hide the reading
            "checkpoint_every": 1000,  # steps; 0 = never, and the run cannot be resumed
            "steps_per_call": 0,  # of the compiled program; 0 = 1 on a CPU, 50 elsewhere
            "distributed": False,  # join the other processes, see isjax.parallel.processes.connect
            "mesh": ConfigDict({"data": 0, "model": 1}),  # devices along each axis; data 0 = all
            "strata": 1,  # parts of the data set with draws of their own; 1 = draws from the whole
        }
    )


def names() -> dict[str, list[str]]:
    """The names that a setting can have, for each that is one; "" = none."""
    return {
        "task": tasks.__all__,
        "network": [name for name in networks.__all__ if not name.startswith("History")],
        "precision": ["bfloat16", "float32"],
        "augment": augmentations.__all__,
        "method": recipes.__all__,
        "gate": ["", *conditions.__all__],
        "weighting": ["", *weights.__all__],
        "optimizer": _optimizers(),
        "schedule": schedules.__all__,
    }


def _optimizers() -> list[str]:
    """What of optax goes by a learning rate; not parts and wrappers of optimisers."""
    functions = {name: vars(optax).get(name) for name in optax.__all__}  # without the deprecated
    return [
        name
        for name, function in functions.items()
        if isinstance(function, FunctionType | functools.partial)
        and "learning_rate" in inspect.signature(function).parameters
        and not name.startswith("scale_by_")
    ]


def num_steps(config: ConfigDict) -> int:
    """The steps that the run takes: its budget's share of `config.num_steps`, at least one."""
    return max(1, round(config.num_steps * config.budget))


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ, by dotted name, with both values.

    A setting that one of them lacks has `None` there; lists and tuples of the same are the same.
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

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    known = default_config()
    for name in config:
        check_name(name, known, "a setting", prefix="config.")
    missing = sorted(set(known) - set(config))
    if missing:
        raise ConfigError(
            f"config lacks {', '.join(missing)}; start from isjax.experiment.config.default_config()"
        )
    for setting, known in names().items():
        kind = f"{'an' if setting[0] in 'ao' else 'a'} {setting}"
        for name in config.augment if setting == "augment" else [config[setting]]:
            check_name(name, known, kind.replace("augment", "augmentation"), f"config.{setting}: ")
    _check_options(config)
    for name, options in config.augment_options.items():
        if options:
            check_name(name, config.augment, "in config.augment", prefix="config.augment_options.")
    for setting, least in _LEAST.items():
        if not least <= config[setting] < math.inf:
            raise ConfigError(f"config.{setting} is {config[setting]}; choose at least {least}")
    for setting in ("batch_size", "pool_size"):
        if config[setting] % config.strata:
            raise ConfigError(
                f"config.{setting} is {config[setting]}, of which each of config.strata = "
                f"{config.strata} parts cannot have its share; choose a multiple"
            )
    for name in config.mesh:
        check_name(name, ("data", "model"), "an axis", prefix="config.mesh.")
    if not 0 < config.learning_rate < math.inf:
        raise ConfigError(f"config.learning_rate is {config.learning_rate}; choose more than 0")
    for setting in ("budget", "reference_budget"):
        if not 0 < config[setting] <= 1:
            raise ConfigError(
                f"config.{setting} is {config[setting]}; choose a share above 0, at most 1"
            )


def _check_options(config: ConfigDict) -> None:
    """Refuses options that nothing takes, before data are loaded for what takes them."""
    takers = {
        "dataset_options": data.builder(config.dataset),
        "network_options": getattr(networks, config.network),
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
                known = parameters.keys() - _DECIDED
                check_name(name, known, kind, f"config.{setting}.")


def build(
    setting: str,
    function: Callable,
    options: Mapping[str, Any],
    fixed: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Calls what a setting names, with its options.

    Args:
        setting: name of `options` in the config, for messages.
        function: to call.
        options: its arguments, from the config.
        fixed: what the run decides and `options` may not; passed on where `function` takes it.
        defaults: what the run suggests and `options` may override; passed on likewise.

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
    """Refuses a name that is not among `names`, with the one probably meant.

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
