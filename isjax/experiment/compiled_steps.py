"""Training steps compiled into one program, ahead of time."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isjax.base import Array, Batch, Draw
from isjax.parallel.mesh import gathered
from isjax.training import TrainState

__all__ = ["Output", "Program", "compile_steps"]

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]


class Output(NamedTuple):
    """Results of the steps of a call, with leading axis `steps`.

    Attributes:
        metrics: float32[steps, names].
        draw: arrays [steps, ...]; None unless the steps return it.
        chosen: int32[steps, b], the ids of batches to load; None unless the steps choose ahead.
    """

    metrics: Array
    draw: Draw | None
    chosen: Array | None


class Program(NamedTuple):
    """Training steps, compiled: `(state, data) -> (state, Output)`, which donates the state.

    Attributes:
        one: takes one step.
        several: takes `steps` steps.
        steps: in a call of `several`.
        names: of the metrics.
        seconds: of compilation.
    """

    one: jax.stages.Compiled
    several: jax.stages.Compiled
    steps: int
    names: tuple[str, ...]
    seconds: float


def compile_steps(step: Step, state: TrainState, data: Batch, steps_per_call: int) -> Program:
    """Compiles training steps, one and several to a call.

    Use several steps on an accelerator, where a call has a fixed cost. Their number is a constant
    of the program: a GPU would wait for the host at each turn of a loop whose end it does not know.
    Use one on a CPU: there a convolution inside a loop runs some 3 times slower than outside.

    Args:
        step: of `make_train_step` or `make_loaded_step`; the latter allows only one step in a call.
        state: of step 0, for shapes, dtypes and places.
        data: the data set, or an example of the batches that are loaded.
        steps_per_call: the steps of `several`; 1 = it is `one`.

    Returns:
        The programs, compiled ahead of time.
    """
    start = time.perf_counter()
    shapes = jax.eval_shape(step, state, data)[1]
    names = tuple(name for name in shapes if name not in ("draw", "chosen"))
    placed = jax.tree.map(lambda x: x.sharding, state)

    def take_step(state: TrainState, data: Batch) -> tuple[TrainState, Output]:
        state, metrics = step(state, data)
        row = jnp.stack([metrics[name].astype(jnp.float32) for name in names])
        return state, Output(row, metrics.get("draw"), metrics.get("chosen"))

    def one(state: TrainState, data: Batch) -> tuple[TrainState, Output]:
        state, output = take_step(state, data)
        return state, gathered(jax.tree.map(lambda x: x[None], output))

    def several(state: TrainState, data: Batch) -> tuple[TrainState, Output]:
        state, outputs = jax.lax.scan(
            lambda state, _: take_step(state, data), state, length=steps_per_call
        )
        return state, gathered(outputs)

    def compiled(steps: Callable) -> jax.stages.Compiled:
        run = jax.jit(steps, donate_argnums=0, out_shardings=(placed, None))
        return run.lower(state, data).compile()

    of_one = compiled(one)
    of_several = of_one if steps_per_call == 1 else compiled(several)
    return Program(of_one, of_several, steps_per_call, names, time.perf_counter() - start)
