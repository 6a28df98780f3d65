"""What a method's gradients are worth along a run, beside uniform draws and the optimum.

    python -m isjax.quality --config=configs/mnist1d.py --config.method=last_loss --workdir=DIR

Trains as `isjax.main` does and measures at every evaluation, on one pool of the size that the
method chooses from, with the model in evaluation mode: the gradient, and the update that the
optimiser makes of it; see `isjax.diagnostics.make_gradient_quality`. Prints a table, with variances
and squared bias over the variance of uniform draws; `metrics.jsonl` has its columns too.
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
from isjax.experiment.reference_models import needed
from isjax.resampling import presample
from isjax.tasks import Task
from isjax.training import TrainState

__all__ = ["measurement", "run"]

_DRAWS = flags.DEFINE_integer("draws", 100, "Batches drawn by each scheme at each evaluation.", 2)
_COLUMNS = ("variance", "optimum", "bias", "cosine")


def measurement(
    config: ConfigDict, task: Task, num_draws: int = 100
) -> Callable[[TrainState], dict[str, float]]:
    """`(state) -> {name: number}` for `experiment.run(on_evaluation=...)`.

    Of the gradient, and with the prefix `update_` of the optimiser's update: `variance` of the
    method and of the `optimum`, over the variance of uniform draws, and the method's squared
    `bias` over the same, and the `cosine` between its mean and the pool's own.
    """
    size = num_examples(task.dataset.train)
    pool_size = min(config.pool_size, size)
    _, model_state = jax.eval_shape(task.init, jax.random.key(0))
    arrays = dict.fromkeys(needed(config), np.zeros(size, np.float32))  # the state has true ones
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
    """Nothing where uniform draws have no variance, as of the update once the rate is zero."""
    sampler, uniform, optimum = jax.device_get(quality)
    unit = uniform.variance
    values = (sampler.variance, optimum.variance, sampler.bias, unit * sampler.cosine)
    return {
        name: float(value / unit) for name, value in zip(_COLUMNS, values, strict=True) if unit > 0
    }


def run(config: ConfigDict, workdir: str | os.PathLike, num_draws: int = 100) -> None:
    """Trains, and prints a line per evaluation.

    Raises:
        ConfigError: as `experiment.run`, or if the method insists on a pool of its own.
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
