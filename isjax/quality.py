"""Measures the gradient quality of a method along a run, against uniform draws and the optimum.

    python -m isjax.quality --config=configs/mnist1d.py --config.method=last_loss --workdir=DIR

Trains as `isjax.main` does. At each evaluation it measures the gradient, and the update that the
optimiser makes of it, on one pool of `config.pool_size` examples, with the model in evaluation
mode; see `isjax.diagnostics.make_gradient_quality`. Prints a table; variance, optimum and squared
bias are divided by the variance of uniform draws. `metrics.jsonl` has the same columns.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from isjax import experiment, main
from isjax.base import take
from isjax.data.source import num_examples
from isjax.diagnostics import Quality, make_gradient_quality
from isjax.experiment.components import make_optimizer, make_sampler, make_task
from isjax.experiment.config import ConfigDict, ConfigError, check
from isjax.experiment.reference_models import placeholders
from isjax.resampling import presample
from isjax.tasks import Task
from isjax.training import TrainState

__all__ = ["measurement", "run"]

_DRAWS = flags.DEFINE_integer("draws", 100, "Batches drawn by each scheme at each evaluation.", 2)
_COLUMNS = ("variance", "optimum", "bias", "cosine")


def measurement(
    config: ConfigDict, task: Task, num_draws: int = 100
) -> Callable[[TrainState], dict[str, float]]:
    """Makes the measurement of gradient quality for `experiment.run(on_evaluation=...)`.

    Args:
        config: of the run.
        task: of the run.
        num_draws: batches drawn by each scheme.

    Returns:
        A function of the train state that returns numbers by name. They are `variance` of the
        method, `optimum` and the method's squared `bias`, each over the variance of uniform draws,
        and the `cosine` between the mean gradient of the method and that of the pool. Names that
        begin with "update" are the same of the optimiser's update.

    Raises:
        ConfigError: if the config's method cannot be made.
        ValueError: if the method has a pool of its own.
    """
    size = num_examples(task.dataset.train)
    pool_size = min(config.pool_size, size)
    _, model_state = jax.eval_shape(task.init, jax.random.key(0))
    arrays = placeholders(config, size)  # the state has the true ones
    sampler = make_sampler(config, task, model_state, arrays)
    measure = make_gradient_quality(
        task.score_fn, make_optimizer(config), sampler, num_draws=num_draws
    )

    def of_state(state: TrainState) -> dict[str, float]:
        pool_key, draw_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        ids = presample(pool_key, size, pool_size)
        pool = jax.tree.map(jnp.asarray, take(task.dataset.train, np.asarray(ids)))
        gradient, update = measure(draw_key, state, pool, ids)
        numbers = _relative(update)
        return _relative(gradient) | {f"update_{name}": x for name, x in numbers.items()}

    return of_state


def _relative(quality: Quality) -> dict[str, float]:
    """The columns; none if uniform draws have no variance, as at a learning rate of zero."""
    sampler, uniform, optimum = jax.device_get(quality)
    unit = uniform.variance
    values = (sampler.variance, optimum.variance, sampler.bias, unit * sampler.cosine)
    return {
        name: float(value / unit) for name, value in zip(_COLUMNS, values, strict=True) if unit > 0
    }


def run(config: ConfigDict, workdir: str | os.PathLike, num_draws: int = 100) -> None:
    """Trains, and prints a line of measurements at each evaluation.

    Args:
        config: of the run.
        workdir: folder of the run.
        num_draws: batches drawn by each scheme at each evaluation.

    Raises:
        ConfigError: as `experiment.run`, or if the method has a pool of its own.
    """
    check(config)
    task = make_task(config)
    try:
        measure = measurement(config, task, num_draws)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.method is {config.method}: {error}") from error
    columns = [prefix + name for prefix in ("", "update_") for name in _COLUMNS]

    def measured(state: TrainState) -> dict[str, float]:
        numbers = measure(state)
        shown = {name: f"{number:.3f}" for name, number in numbers.items()}
        row = " ".join(f"{shown.get(name, '-'):>{max(8, len(name))}}" for name in columns)
        print(f"{int(state.step):>7} {row}", flush=True)
        return numbers

    print(f"{'step':>7} " + " ".join(f"{name:>8}" for name in columns), flush=True)
    experiment.run(config, workdir, task=task, on_evaluation=measured)


if __name__ == "__main__":
    main.command(
        "quality", __doc__, lambda config, workdir: run(config, workdir, _DRAWS.value), _DRAWS
    )
