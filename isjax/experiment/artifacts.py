"""What a run puts by for its report, at each evaluation."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isjax.base import Batch
from isjax.data.dataset import save
from isjax.data.files import write_whole
from isjax.data.source import num_examples
from isjax.experiment import draw_statistics
from isjax.experiment.compiled_steps import Program
from isjax.parallel.processes import alone, fetch, is_main
from isjax.reporting import timeline
from isjax.reporting.gallery import make_gallery
from isjax.reporting.runs import DRAWS, EXAMPLES, TIME
from isjax.tasks import Task
from isjax.training import TrainState

__all__ = ["make_exhibits"]


def make_exhibits(
    workdir: pathlib.Path, task: Task, program: Program, data: Batch
) -> Callable[[TrainState], dict[str, float]]:
    """Writes what was drawn, and once how the time of a step is spent.

    - `draws.npz`: `count` [N], times drawn; of the last few thousand draws `scores`, `losses`, and
      `probs` over those of uniform draws.
    - `examples.npz`: those drawn most and least, see `isjax.reporting.gallery`.
    - `time.json`: the shares of `isjax.reporting.timeline.PARTS`, measured on a copy of the state after the
      first steps, or null where they cannot be told; only of a run in one process.

    Returns:
        `put_by(state) -> {"coverage": share of the training examples drawn so far}`.
    """
    show = make_gallery(task)

    def put_by(state: TrainState) -> dict[str, float]:
        if int(state.step) == 0:
            return {"coverage": 0.0}
        count = fetch(state.record.count)[: num_examples(task.dataset.train)]
        draws, examples = draw_statistics.latest(state.record), show(state, count)
        if is_main():
            save(workdir / DRAWS, count=count, **draws)
            save(workdir / EXAMPLES, **examples)
        if alone() and not (workdir / TIME).exists():
            shares = timeline.shares(_rehearsal(program, state, data), program.run)
            with write_whole(workdir / TIME) as file:
                file.write(json.dumps({"step": int(state.step), "shares": shares}).encode())
        return {"coverage": float(np.mean(count > 0))}

    return put_by


def _rehearsal(program: Program, state: TrainState, data: Batch) -> Callable[[], Any]:
    """Runs the program on a copy of the state."""
    copy = jax.tree.map(jnp.copy, state)

    def call() -> TrainState:
        nonlocal copy
        copy, *_ = program.run(copy, data, jnp.int32(program.steps))
        return copy

    return call
