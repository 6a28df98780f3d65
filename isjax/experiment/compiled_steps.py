"""Training steps compiled into one program, ahead of time."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Array, Batch, Draw
from isjax.parallel.mesh import gathered
from isjax.training import TrainState

__all__ = ["Output", "Program", "compile_steps", "number_of_steps"]

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]


class Output(NamedTuple):
    """Results of the steps of a call, with leading axis `steps`; the first `num` are filled.

    Attributes:
        metrics: float32[steps, names].
        draw: arrays [steps, ...]; None unless the steps return it.
        chosen: int32[steps, b], the ids of batches to load; None unless the steps choose ahead.
    """

    metrics: Array
    draw: Draw | None
    chosen: Array | None


class Program(NamedTuple):
    """Training steps compiled into one program.

    Attributes:
        run: `(state, data, num int32[]) -> (state, Output)` takes `num` steps; donates the state.
        steps: the largest `num`.
        names: of the metrics.
        seconds: of compilation.
    """

    run: jax.stages.Compiled
    steps: int
    names: tuple[str, ...]
    seconds: float


def compile_steps(step: Step, state: TrainState, data: Batch, steps_per_call: int) -> Program:
    """Compiles one program for up to `steps_per_call` steps.

    Use several steps on an accelerator, where a call has a fixed cost. Use one on a CPU: there a
    convolution inside a loop runs some 3 times slower than outside, and a single step is compiled
    without a loop.

    Args:
        step: of `make_train_step` or `make_loaded_step`; the latter allows only one step in a call.
        state: of step 0, for shapes, dtypes and places.
        data: the data set, or an example of the batches that are loaded.
        steps_per_call: the most steps in a call.

    Returns:
        The program, compiled ahead of time.
    """
    start = time.perf_counter()
    shapes = jax.eval_shape(step, state, data)[1]
    names = tuple(name for name in shapes if name not in ("draw", "chosen"))

    def one(state: TrainState, data: Batch) -> tuple[TrainState, Output]:
        state, metrics = step(state, data)
        row = jnp.stack([metrics[name].astype(jnp.float32) for name in names])
        return state, Output(row, metrics.get("draw"), metrics.get("chosen"))

    def several(state: TrainState, data: Batch, num: Array) -> tuple[TrainState, Output]:
        if steps_per_call == 1:
            state, output = one(state, data)
            return state, gathered(jax.tree.map(lambda x: x[None], output))

        def body(i: Array, carry: tuple[TrainState, Output]) -> tuple[TrainState, Output]:
            state, output = one(carry[0], data)
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), carry[1], output)

        empty = jax.tree.map(
            lambda x: jnp.zeros((steps_per_call, *x.shape), x.dtype),
            jax.eval_shape(one, state, data)[1],
        )
        state, output = jax.lax.fori_loop(0, num, body, (state, empty))
        return state, gathered(output)

    placed = jax.tree.map(lambda x: x.sharding, state)
    run = jax.jit(several, donate_argnums=0, out_shardings=(placed, None))
    run = run.lower(state, data, number_of_steps(1, state)).compile()
    return Program(run, steps_per_call, names, time.perf_counter() - start)


def number_of_steps(num: int, state: TrainState) -> Array:
    """A number of steps for a program, on the devices of the state's step counter.

    Args:
        num: of steps.
        state: of the run.

    Returns:
        int32[].
    """
    place = state.step.sharding
    return jax.make_array_from_callback(
        (), place, lambda _: jax.device_put(np.int32(num)), dtype=np.int32
    )
