"""Token losses of a reference model, over which the tokens of a batch exceed; see `config.tokens`.

They are made once, from the run that `config.reference` names, and kept as `reference.npy` in the
folder of the run: float16, of the shape of the targets. Other runs can name that file instead. The
cost is the training of the reference, as its run has counted it, and a forward pass for each
example. It stands in `reference.json` beside the array, and counts as the run's.
"""

import dataclasses
import json
import pathlib
from typing import cast

import numpy as np

from isjax.data.files import read_or_none, write_whole
from isjax.data.source import held
from isjax.experiment.config import ConfigDict, ConfigError
from isjax.experiment.reference_models import Prepared, model_of_run, score_examples
from isjax.tasks import Task
from isjax.training import EvalFn

__all__ = ["FILES", "check_reference", "with_token_reference"]

FILES = ("reference.npy", "reference.json")


def check_reference(config: ConfigDict, task: Task) -> None:
    """Refuses a reference that does not fit, before anything is trained.

    Args:
        config: of the run.
        task: of the run.

    Raises:
        ConfigError: if there is no such run or file, or it is of another model or other data.
    """
    if config.tokens.keep < 1 and "reference" not in held(task.dataset.train):
        raise ConfigError(
            f"config.tokens.keep is {config.tokens.keep}, but the run was given a task; pass "
            "select= to isjax.tasks.language, or leave the task to the config"
        )
    if config.tokens.keep < 1 and config.reference.endswith(".npy"):
        _stored(config, task)
    elif config.reference:
        model_of_run(config, task, Prepared())


def with_token_reference(
    config: ConfigDict, task: Task, folder: pathlib.Path, cost: Prepared
) -> Task:
    """Gives each training example the token losses of the reference, as `config.tokens` needs.

    Args:
        config: of the run.
        task: of the run.
        folder: of the run, for `reference.npy` and `reference.json`.
        cost: to which the cost of the reference is added.

    Returns:
        The task, its training part with "reference", float16 [N, T] on disk, memory-mapped; as it
        is if all tokens count.

    Raises:
        ConfigError: as `check_reference`.
    """
    if config.tokens.keep == 1:
        return task
    path = pathlib.Path(config.reference).expanduser()
    if path.suffix != ".npy":
        path = folder / FILES[0]
        if _read_cost(path) is None:
            _store(config, task, folder, counted="reference" in cost.arrays)
        config = ConfigDict({**config.to_dict(), "reference": str(path)})
    losses, own = _stored(config, task), _read_cost(path)
    if own is None:
        print(f"note: the cost of {path} is not known, and not counted: no .json beside it")
    for name, value in (own or {}).items():
        setattr(cost, name, getattr(cost, name) + value)
    train = {**held(task.dataset.train), "reference": losses}
    return task._replace(dataset=task.dataset._replace(train=train))


def _store(config: ConfigDict, task: Task, folder: pathlib.Path, counted: bool) -> None:
    """Makes and writes the losses; the file of costs comes last, and tells that all is there."""
    print(f"preparing token losses of {config.reference} ...", flush=True)
    cost = Prepared()
    reference, state = model_of_run(config, task, cost)
    if counted:  # its training already is
        cost = Prepared()
    function = cast(EvalFn, reference.token_losses_fn)
    losses = score_examples(function, state, task.dataset.train, config, cost)
    with write_whole(folder / FILES[0]) as file:
        np.save(file, losses.astype(np.float16))
    costs = {name: value for name, value in dataclasses.asdict(cost).items() if name != "arrays"}
    with write_whole(folder / FILES[1]) as file:
        file.write(json.dumps(costs, indent=2).encode())


def _stored(config: ConfigDict, task: Task) -> np.ndarray:
    """Stored losses, memory-mapped; refused unless there is one for each target."""
    path = pathlib.Path(config.reference).expanduser()
    try:
        losses = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.reference is {path}, which cannot be read: {error}") from error
    wanted = held(task.dataset.train)["y"].shape
    if losses.shape != wanted or not np.issubdtype(losses.dtype, np.floating):
        raise ConfigError(
            f"config.reference is {path}, {losses.dtype} of shape {list(losses.shape)}, but the "
            f"targets of the training data have shape {list(wanted)}; give the losses of the same "
            "tokens, one for each"
        )
    return losses


def _read_cost(path: pathlib.Path) -> dict[str, float] | None:
    """The cost of stored losses, by the names of `Prepared`; None if it is not known."""
    read = read_or_none(path.with_suffix(".json"), lambda file: json.loads(file.read_bytes()))
    return read if path.is_file() else None
