"""The settings of a run, their defaults, and errors that say what to do about a bad one."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from isjax import data, networks, recipes

__all__ = ["ConfigError", "build", "check", "default_config"]


class ConfigError(ValueError):
    """A config that cannot be run; the message names the value, the limit and the remedy."""


def default_config() -> ConfigDict:
    """Every setting, with its default."""
    return ConfigDict(
        {
            # What there is to learn.
            "dataset": "mnist1d",  # a name in isjax.data
            "dataset_options": ConfigDict(),  # its arguments, such as num_train
            "data_dir": "",  # where data sets are cached; "" = ~/.cache/isjax
            "network": "MLP",  # a name in isjax.networks
            "network_options": ConfigDict(),  # its attributes
            # How the batch is chosen.
            "method": "uniform",  # a name in isjax.recipes
            "method_options": ConfigDict(),  # its arguments, such as k
            "pool_size": 1024,  # B, the presample that the sampler chooses from
            "batch_size": 128,  # b
            # How it is trained on.
            "optimizer": "sgd",  # a name in optax
            "optimizer_options": ConfigDict(),  # its arguments; momentum is 0.9 where there is one
            "learning_rate": 0.05,  # decays along a cosine to zero at num_steps
            "num_steps": 10_000,
            "seed": 0,
            # What is reported.
            "num_evals": 20,  # evenly spaced, after the one before training
            "stop_on_nonfinite": False,  # end the run at an evaluation that finds NaN or infinity
        }
    )


def check(config: ConfigDict) -> None:
    """Refuses a config with unknown names or impossible numbers.

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    known = default_config()
    for name in config:
        _check_name(name, known, "a setting", prefix="config.")
    missing = sorted(set(known) - set(config))
    if missing:
        raise ConfigError(
            f"config lacks {', '.join(missing)}; start from isjax.config.default_config()"
        )
    for setting, names in (
        ("dataset", data.__all__),
        ("network", set(networks.__all__) - {"HistoryLSTM"}),
        ("method", recipes.__all__),
        ("optimizer", optax.__all__),
    ):
        _check_name(config[setting], names, f"a {setting}", prefix=f"config.{setting}: ")
    for setting in ("pool_size", "batch_size", "num_steps", "num_evals"):
        if config[setting] < 1:
            raise ConfigError(f"config.{setting} is {config[setting]}; choose at least 1")
    if config.pool_size < config.batch_size:
        raise ConfigError(
            f"config.pool_size is {config.pool_size}, smaller than config.batch_size, which is "
            f"{config.batch_size}; enlarge the pool or shrink the batch"
        )
    if not config.learning_rate > 0:
        raise ConfigError(f"config.learning_rate is {config.learning_rate}; choose more than 0")


def build(
    setting: str,
    function: Callable,
    options: Mapping[str, Any],
    fixed: Mapping[str, Any],
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
    for name in options:
        if name in fixed:
            raise ConfigError(f"config.{setting}.{name} is decided by the run; leave it out")
        _check_name(name, parameters.keys() - fixed.keys(), "an option", f"config.{setting}.")
    suggested = {**(defaults or {}), **fixed}
    known = {name: value for name, value in suggested.items() if name in parameters}
    try:
        return function(**{**known, **options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{setting}: {error}") from error


def _check_name(name: str, names: Iterable[str], kind: str, prefix: str) -> None:
    if name in names:
        return
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
    raise ConfigError(f"{prefix}{name} is not {kind}; {hint}")
