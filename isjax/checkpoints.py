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

        lowest = policies.BestN(
            get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
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
        """Saves in the background; the first is waited for, so that a run always has one.

        Args:
            state: copied before this returns, so that the next step may take its buffers.
            progress: what JSON can hold.
            loss: by which the best is kept; infinite where there was no evaluation.
        """
        progress = {"progress": progress, "shapes": _shapes(state)}
        state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        args = self._args.Composite(
            state=self._args.StandardSave(state), progress=self._args.JsonSave(progress)
        )
        first = self.step is None
        self._manager.save(int(state.step), args=args, metrics={"loss": loss})
        if first:
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, or None if there is none.

        Args:
            like: a state of the same structure, shapes and types.

        Raises:
            ValueError: if the checkpoint is of another.
        """
        if self.step is None:
            return None
        item = self._args.Composite(progress=self._args.JsonRestore())
        saved = self._manager.restore(self.step, args=item)["progress"]
        ours, theirs = _shapes(like), saved["shapes"]
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{name} is {theirs.get(name, 'missing')} in the checkpoint of step "
                    f"{self.step}, but would be {ours.get(name, 'missing')} now"
                )
        item = self._args.Composite(state=self._args.StandardRestore(like))
        return self._manager.restore(self.step, args=item)["state"], saved["progress"]

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until what is being saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(state: TrainState) -> dict[str, str]:
    """Type and shape of each array, by its place in the state."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
