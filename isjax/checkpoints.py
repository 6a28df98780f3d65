"""Checkpoints of a run: the train state, and how far the run has come, saved by Orbax."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from isjax.training import TrainState

__all__ = ["Checkpoints"]


class Checkpoints:
    """The newest checkpoint of a run and that of the lowest loss, in a folder.

    Saving goes on in the background while training does; a checkpoint appears whole or not at all.
    `orbax.checkpoint.CheckpointManager` reads the folder too: item `state` is the train state.
    """

    def __init__(self, folder: pathlib.Path):
        """Opens the folder, making it if need be.

        Raises:
            ImportError: without Orbax.
        """
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError("checkpoints need orbax: pip install 'isjax[run]'") from error
        policies = ocp.checkpoint_managers

        def loss(metrics: dict[str, float]) -> float:
            return metrics["loss"]

        lowest = policies.BestN(get_metric_fn=loss, reverse=True, n=1)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), lowest]),
            best_fn=loss,  # without it the losses would be forgotten with the process
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def step(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any], loss: float = math.inf) -> None:
        """Saves in the background, in place of an older checkpoint of the same step.

        Args:
            state: copied before this returns, so that the next step may take its buffers.
            progress: what JSON can hold.
            loss: by which the best is kept; infinite where there was no evaluation.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            self._manager.wait_until_finished()
            self._manager.delete(step)
        self._manager.save(
            step,
            args=self._args.Composite(
                state=self._args.StandardSave(jax.block_until_ready(jax.tree.map(jnp.copy, state))),
                progress=self._args.JsonSave(progress),
            ),
            metrics={"loss": loss},
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, or None if there is none.

        Args:
            like: a state of the same structure, shapes and types.

        Raises:
            ValueError: if the checkpoint is of another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(
            step,
            args=self._args.Composite(
                state=self._args.StandardRestore(like), progress=self._args.JsonRestore()
            ),
        )
        return restored["state"], restored["progress"]

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until what is being saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
