"""Artifacts of a run, which `isjax.report` shows: draws, examples, times."""

import json
import pathlib
from collections.abc import Callable, Sequence
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

__all__ = ["make_artifacts"]

_MEASURED = 20  # most steps whose time is measured: a trace holds each operation of each step


def make_artifacts(
    workdir: pathlib.Path, task: Task, program: Program, data: Batch
) -> Callable[[TrainState], dict[str, float]]:
    """Writes the artifacts of a run, at each evaluation after the first.

    - `draws.npz`: `count` int32[N], times drawn; of the last few thousand draws `scores`, `losses`,
      and `probs`, their probabilities over that of a uniform draw.
    - `examples.npz`: the examples drawn most and least, see `isjax.reporting.gallery`.
    - `time.json`: seconds of one step by the parts of `isjax.reporting.timeline.PARTS`, summed over
      operations, measured once, on a copy of the state; null where they cannot be measured. Only of
      a run in one process.

    Args:
        workdir: of the run.
        task: of the run.
        program: the compiled steps, which keep a `record` in the state.
        data: that the program takes.

    Returns:
        `write(state) -> {"coverage": share of the training examples drawn so far}`; of data with
        `source_names` also "drawn_NAME", the share of the draws so far from each source.
    """
    show = make_gallery(task)
    names = task.dataset.source_names or ()

    def write(state: TrainState) -> dict[str, float]:
        if int(state.step) == 0:
            return {"coverage": 0.0, **dict.fromkeys((f"drawn_{name}" for name in names), 0.0)}
        count = fetch(state.record.count)[: num_examples(task.dataset.train)]
        draws, examples = draw_statistics.latest(state.record), show(state, count)
        if is_main():
            save(workdir / DRAWS, count=count, **draws)
            save(workdir / EXAMPLES, **examples)
        if alone() and not (workdir / TIME).exists():
            call = _run_on_copy(program.one, state, data)
            costs = timeline.time_by_part(call, program.one, _MEASURED)
            seconds = costs and {part: c.seconds for part, c in costs.items()}
            with write_whole(workdir / TIME) as file:
                file.write(json.dumps({"step": int(state.step), "seconds": seconds}).encode())
        drawn = _drawn_by_source(task.dataset.train, count, names) if names else {}
        return {"coverage": float(np.mean(count > 0)), **drawn}

    return write


def _drawn_by_source(train: Batch, count: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The share of the draws from each source, by name."""
    drawn = np.bincount(train["source"], weights=count, minlength=len(names))
    return {
        f"drawn_{name}": x for name, x in zip(names, (drawn / drawn.sum()).tolist(), strict=True)
    }


def _run_on_copy(step: jax.stages.Compiled, state: TrainState, data: Batch) -> Callable[[], Any]:
    """Takes steps on a copy of the state."""
    copy = jax.tree.map(jnp.copy, state)

    def call() -> TrainState:
        nonlocal copy
        copy, *_ = step(copy, data)
        return copy

    return call
