"""Checkpoints of a run: its train state and its progress, saved by Orbax."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from isjax.parallel.padding import has_rows
from isjax.training import TrainState

__all__ = ["Checkpoints"]


class Checkpoints:
    """The newest checkpoint of a run, and the one of the lowest loss, in a folder.

    Saves in the background while training goes on. A checkpoint appears whole or not at all.
    `orbax.checkpoint.CheckpointManager` can read the folder: item `state` is the train state.
    """

    def __init__(self, folder: pathlib.Path, num_examples: int):
        """Opens the folder; makes it if it does not exist.

        Args:
            folder: of the checkpoints, visible to all processes.
            num_examples: N. The arrays of a state may be padded to more rows, and to another
                number when restored on other devices; see `isjax.parallel.padding`.

        Raises:
            ImportError: without Orbax.
        """
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError(
                "checkpoints need orbax: pip install '.[run]' in a checkout of isjax"
            ) from error
        policies = ocp.checkpoint_managers

        def loss(metrics: dict[str, float]) -> float:
            return metrics["loss"]

        lowest = policies.BestN(
            get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), lowest]),
            best_fn=loss,  # without it losses are not saved, and the best is unknown on resuming
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self._ocp, self._args, self._num_examples = ocp, ocp.args, num_examples
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def step(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any], loss: float = math.inf) -> None:
        """Saves in the background; waits for the first, so that a run always has one.

        Args:
            state: copied before this returns; the next step may donate it.
            progress: plain JSON.
            loss: decides the best checkpoint; infinite if the state was not evaluated.
        """
        shapes = _shapes(state, self._num_examples)
        progress = {"progress": progress, "shapes": shapes}
        state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        args = self._args.Composite(
            state=self._args.PyTreeSave(state), progress=self._args.JsonSave(progress)
        )
        first = self.step is None
        self._manager.save(int(state.step), args=args, metrics={"loss": loss})
        if first:
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest checkpoint.

        Args:
            like: a state of the same structure, shapes and dtypes, on the devices to restore to.

        Returns:
            State and progress, or None if there is no checkpoint.

        Raises:
            ValueError: if the checkpoint has another structure, shape or dtype.
        """
        if self.step is None:
            return None
        item = self._args.Composite(progress=self._args.JsonRestore())
        saved = self._manager.restore(self.step, args=item)["progress"]
        ours, theirs = _shapes(like, self._num_examples), saved["shapes"]
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{name} is {theirs.get(name, 'missing')} in the checkpoint of step "
                    f"{self.step}, but would be {ours.get(name, 'missing')} now: another config or "
                    "another version of isjax has saved it"
                )
        # Not strict: padding is added or left out as these devices need it.
        how = jax.tree.map(
            lambda x: self._ocp.ArrayRestoreArgs(
                sharding=x.sharding, global_shape=x.shape, dtype=x.dtype, strict=False
            ),
            like,
        )
        item = self._args.Composite(state=self._args.PyTreeRestore(like, restore_args=how))
        return self._manager.restore(self.step, args=item)["state"], saved["progress"]

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until every checkpoint is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(state: TrainState, num_examples: int) -> dict[str, str]:
    """Dtype and shape of each array, without padding, by its path in the state."""

    def of_array(x: jax.Array, rows: bool) -> str:
        shape = [num_examples, *x.shape[1:]] if rows else list(x.shape)
        return f"{x.dtype}{shape}"

    shapes = jax.tree.map(of_array, state, has_rows(state))
    return {
        jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
