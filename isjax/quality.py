"""What a method's gradients are worth along a run, beside uniform draws and the optimum.

    python -m isjax.quality --config=configs/mnist1d.py --config.method=last_loss --workdir=DIR

Trains as `isjax.main` does and measures at every evaluation, on one pool of the size that the
method chooses from: `isjax.diagnostics.gradient_quality`, of the gradient and of the update that
the optimiser makes of it, for the model in evaluation mode. Prints a table, with variances over
that of uniform draws; `metrics.jsonl` has its columns too.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from isjax import experiment, main
from isjax.config import ConfigError
from isjax.diagnostics import Quality, gradient_quality
from isjax.objects import make_optimizer, make_sampler, make_task
from isjax.references import needed
from isjax.resampling import presample
from isjax.tasks import Task
from isjax.training import TrainState, num_examples

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
    tx = make_optimizer(config)

    @functools.partial(jax.jit, static_argnames="of_update")
    def measure(state: TrainState, ids: jax.Array, pool, of_update: bool) -> Quality:
        arrays = dict.fromkeys(needed(config), jnp.zeros(size))  # the state holds the true ones
        sampler = make_sampler(config, task, state.model_state, arrays)
        stateful = bool(jax.tree.leaves(state.model_state))
        return gradient_quality(
            jax.random.fold_in(state.key, 1),
            lambda params, batch: task.score_fn(params, state.model_state, batch),
            state.params,
            pool,
            sampler,
            state.sampler,
            ids,
            optimizer=(lambda g: tx.update(g, state.opt_state, state.params)[0])
            if of_update
            else None,
            num_draws=num_draws,
            scored_with=(state.params, state.model_state) if stateful else None,
        )

    def of_state(state: TrainState) -> dict[str, float]:
        ids = presample(jax.random.fold_in(state.key, 0), size, pool_size)
        pool = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x)[np.asarray(ids)]), task.dataset.train
        )
        numbers = {}
        for prefix in ("", "update_"):
            quality = measure(state, ids, pool, of_update=bool(prefix))
            numbers |= {f"{prefix}{name}": value for name, value in _relative(quality).items()}
        return numbers

    return of_state


def _relative(quality: Quality) -> dict[str, float]:
    sampler, uniform, optimum = jax.device_get(quality)
    unit = float(uniform.variance) or 1.0
    values = (sampler.variance / unit, optimum.variance / unit, sampler.bias / unit, sampler.cosine)
    return dict(zip(_COLUMNS, map(float, values), strict=True))


def run(config: ConfigDict, workdir: str | os.PathLike, num_draws: int = 100) -> None:
    """Trains, and prints a line per evaluation.

    Raises:
        ConfigError: as `experiment.run`, or if the method insists on a pool of its own.
    """
    task = make_task(config)
    measure = measurement(config, task, num_draws)
    columns = [prefix + name for prefix in ("", "update_") for name in _COLUMNS]

    def measured(state: TrainState) -> dict[str, float]:
        numbers = measure(state)
        row = " ".join(f"{numbers[name]:>{max(8, len(name))}.3f}" for name in columns)
        print(f"{int(state.step):>7} {row}", flush=True)
        return numbers

    print(f"{'step':>7} " + " ".join(f"{name:>8}" for name in columns), flush=True)
    try:
        experiment.run(config, workdir, task=task, on_evaluation=measured)
    except ValueError as error:
        raise ConfigError(f"config.method is {config.method}: {error}") from error


if __name__ == "__main__":
    main.command(lambda config, workdir: run(config, workdir, _DRAWS.value))
