"""The model of an earlier run: parameters to go on from, or a reference."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from isjax.base import Params, PyTree
from isjax.experiment._digests import newest_sound
from isjax.experiment.config import ConfigDict, ConfigError

__all__ = ["EarlierRun", "find"]


class EarlierRun(NamedTuple):
    """A run that saved checkpoints, in its folder.

    Attributes:
        setting: that names the folder, for messages.
        config: of the run.
        checkpoint: folder of its newest checkpoint that is not damaged.
        progress: how far it had come there, `isjax.experiment.loop.Progress` as a dictionary.
    """

    setting: str
    config: ConfigDict
    checkpoint: pathlib.Path
    progress: dict[str, Any]

    def require_task(self, task: str) -> None:
        """Refuses a run of another task.

        Args:
            task: of this run, as `config.task`.

        Raises:
            ConfigError: if it is another.
        """
        if self.config.task != task:
            raise ConfigError(
                f"{self.setting}: {self.checkpoint} is of the task {self.config.task}, but "
                f"config.task is {task}; choose a run of the same task"
            )

    def read(self, params: Params, model_state: PyTree) -> tuple[Params, PyTree]:
        """Reads the model.

        Args:
            params: of a model of the same structure, shapes and dtypes, or these as
                `jax.ShapeDtypeStruct`.
            model_state: of the same model.

        Returns:
            Parameters and model state, as NumPy arrays.

        Raises:
            ConfigError: if a shape or a dtype is another.
        """
        import orbax.checkpoint as ocp

        like = {"params": params, "model_state": model_state}
        saved = _saved(self.checkpoint)["shapes"]
        theirs = {name: kind for name, kind in saved.items() if name.startswith(tuple(_NAMES))}
        ours = {
            f".{name}{jax.tree_util.keystr(path)}": f"{x.dtype}{list(x.shape)}"
            for name, tree in like.items()
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ConfigError(
                    f"{self.setting}: {name} is {theirs.get(name, 'missing')} in "
                    f"{self.checkpoint}, but {ours.get(name, 'missing')} here; choose the network, "
                    "its options and the data as in that run"
                )
        how = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), like)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            item = ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True)
            read = reader.restore((self.checkpoint / "state").absolute(), args=item)
        return read["params"], read["model_state"]


_NAMES = (".params", ".model_state")


def find(setting: str, workdir: str) -> EarlierRun:
    """Finds a run by its folder.

    Args:
        setting: that names the folder, such as "config.init_from", for messages.
        workdir: of the run.

    Returns:
        The run, at its newest checkpoint: later than the best one, or the same.

    Raises:
        ConfigError: if there is no run, or none of its checkpoints can be read.
    """
    folder = pathlib.Path(workdir).expanduser()
    try:
        config = ConfigDict(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting} is {workdir}, which holds no run that can be read ({error}); give the "
            "--workdir of a run"
        ) from error
    checkpoint = newest_sound(folder / "checkpoints")
    if checkpoint is None:
        raise ConfigError(
            f"{setting} is {workdir}, which holds no checkpoint that can be read; give the "
            "--workdir of a run with config.checkpoint_every above 0"
        )
    return EarlierRun(setting, config, checkpoint, _saved(checkpoint)["progress"])


def _saved(checkpoint: pathlib.Path) -> dict[str, Any]:
    """What is saved beside the state: the progress, and the shapes of the state."""
    return json.loads((checkpoint / "progress" / "metadata").read_bytes())
