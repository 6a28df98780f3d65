"""Checkpoints of a run: its train state and its progress, saved by Orbax."""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from isjax.experiment import _orbax_log
from isjax.experiment._digests import set_damaged_aside, write_digests
from isjax.parallel.padding import has_rows
from isjax.parallel.processes import alone, is_main
from isjax.training import TrainState

__all__ = ["Checkpoints"]


class Checkpoints:
    """The two newest checkpoints of a run, and the one of the lowest loss, in a folder.

    Saves in the background while training goes on. A checkpoint appears whole or not at all, with
    digests of its files. When the folder is opened, damaged checkpoints are renamed, with a note.
    `orbax.checkpoint.CheckpointManager` can read the folder: item `state` is the train state.
    """

    def __init__(self, folder: pathlib.Path, num_examples: int):
        """Opens the folder, which is made if it does not exist; all processes must call it.

        Args:
            folder: of the checkpoints, visible to all processes.
            num_examples: N. The arrays of a state may be padded to more rows, and to another
                number when restored on other devices; see `isjax.parallel.padding`.

        Raises:
            ImportError: without Orbax.
            ValueError: if there are checkpoints, and all are damaged.
        """
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError(
                "checkpoints need orbax: pip install '.[run]' in a checkout of isjax"
            ) from error
        if is_main():
            set_damaged_aside(folder)
        if not alone():
            multihost_utils.sync_global_devices("isjax: damaged checkpoints are set aside")
        policies = ocp.checkpoint_managers

        def loss(metrics: dict[str, float]) -> float:
            return metrics["loss"]

        lowest = policies.BestN(
            get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), lowest]),
            best_fn=loss,  # without it losses are not saved, and the best is unknown on resuming
            best_mode="min",
            cleanup_tmp_directories=True,
            # Called by process 0 in the background, when all files are written, and before the
            # folder gets the name of a checkpoint.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        self._ocp, self._args, self._num_examples = ocp, ocp.args, num_examples
        self._folder, self._saving = folder.absolute(), 0
        self._show_log = _orbax_log.hide()
        with self._named():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

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

        Raises:
            OSError: if this checkpoint or the one before cannot be written, as on a full disk.
        """
        shapes = _shapes(state, self._num_examples)
        progress = {"progress": progress, "shapes": shapes}
        state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        args = self._args.Composite(
            state=self._args.PyTreeSave(state), progress=self._args.JsonSave(progress)
        )
        first = self.step is None
        with self._named():
            self._manager.wait_until_finished()
            self._saving = int(state.step)
            self._manager.save(self._saving, args=args, metrics={"loss": loss})
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
            OSError: if it cannot be read.
        """
        if self.step is None:
            return None
        item = self._args.Composite(progress=self._args.JsonRestore())
        with self._named():
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
        with self._named():
            state = self._manager.restore(self.step, args=item)["state"]
        return state, saved["progress"]

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Waits until every checkpoint is on disk.

        Raises:
            OSError: if one cannot be written, unless another error has ended the run.
        """
        with self._named() if kind is None else contextlib.suppress(Exception):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()
            self._show_log()

    def _write_digests(self) -> None:
        """Adds the digests to the checkpoint that is being saved."""
        (part,) = self._folder.glob(f"{self._saving}{self._ocp.utils.TMP_DIR_SUFFIX}*")
        write_digests(part)

    @contextlib.contextmanager
    def _named(self) -> Generator[None]:
        """Names the folder where Orbax fails, in one line."""
        try:
            yield
        except (LookupError, OSError, TypeError, ValueError) as error:
            raise OSError(
                f"checkpoints in {self._folder} cannot be read or written: {_brief(error)}"
            ) from error


def _brief(error: Exception) -> str:
    """What the system says, where TensorStore quotes it; else the first line of an error."""
    system = re.search(r"os_error_code='(\d+)'", str(error))
    return (
        os.strerror(int(system[1]))
        if system
        else f"{type(error).__name__}: {error}".splitlines()[0]
    )


def _shapes(state: TrainState, num_examples: int) -> dict[str, str]:
    """Dtype and shape of each array, without padding, by its path in the state."""

    def of_array(x: jax.Array, rows: bool) -> str:
        shape = [num_examples, *x.shape[1:]] if rows else list(x.shape)
        return f"{x.dtype}{shape}"

    shapes = jax.tree.map(of_array, state, has_rows(state))
    return {
        jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
