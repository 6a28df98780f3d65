"""The parts of a run that are known, and checked, before anything is trained."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from isjax import __version__
from isjax.base import Array, Params, PyTree, Sampler
from isjax.data.source import in_memory, num_examples
from isjax.experiment._digests import newest_sound
from isjax.experiment.batch_statistics import COLLECTION
from isjax.experiment.components import check_task, make_optimizer, make_sampler
from isjax.experiment.config import ConfigDict, ConfigError, differences, num_steps
from isjax.experiment.earlier_run import find
from isjax.experiment.loop import Plan
from isjax.experiment.reference_models import placeholders
from isjax.experiment.token_reference import check_reference
from isjax.parallel.mesh import DATA, make_mesh
from isjax.parallel.processes import connect, gather
from isjax.tasks import Task

__all__ = ["Setup", "check_processes", "connect_devices", "set_up", "versions"]


class Setup(NamedTuple):
    """The parts of a run that are known before anything is trained.

    Attributes:
        config: of the run.
        workdir: its folder.
        mesh: of its devices.
        task: data set, network and loss.
        tx: the optimiser.
        params: that training begins with.
        model_state: that training begins with; None or empty if the model has none.
        state_key: from which the train state is made.
        plan: when it evaluates, writes and saves.
        steps_per_call: of the compiled program.
    """

    config: ConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    task: Task
    tx: optax.GradientTransformation
    params: Params
    model_state: PyTree
    state_key: Array
    plan: Plan
    steps_per_call: int

    @property
    def size(self) -> int:
        """N, the examples of the training data."""
        return num_examples(self.task.dataset.train)

    @property
    def parts(self) -> int:
        """The rows of the data are padded to a multiple of this."""
        return max(self.config.strata, self.mesh.shape[DATA])


def connect_devices(config: ConfigDict) -> Mesh:
    """Joins the other processes of the run, and lays out their devices.

    Args:
        config: of the run.

    Returns:
        The mesh of all devices.

    Raises:
        ConfigError: if processes or devices cannot be had as the config says.
    """
    try:
        connect(config.distributed)
        mesh = make_mesh(**config.mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_mesh(config, mesh)
    return mesh


def check_processes(own: dict[str, Any]) -> None:
    """Refuses processes that were started differently; all must call it.

    Otherwise they would train one model together, each by its own config.

    Args:
        own: values of this process by name, such as its config; nested, as JSON.

    Raises:
        ConfigError: in every process, with what differs.
    """
    text = json.dumps(own, default=lambda x: type(x).__name__)
    first, *others = map(json.loads, gather(text))
    for process, other in enumerate(others, 1):
        if found := differences(first, other):
            listed = ", ".join(f"{name} is {a} and {b}" for name, (a, b) in found.items())
            raise ConfigError(
                f"processes 0 and {process} were started differently: {listed}; start all of them "
                "by the same command, with the same version and data"
            )


def versions() -> dict[str, str]:
    """The versions of isjax and JAX, by words for messages."""
    return {"the version of isjax": __version__, "the version of jax": jax.__version__}


def set_up(
    config: ConfigDict,
    workdir: pathlib.Path,
    mesh: Mesh,
    task: Task,
) -> Setup:
    """Makes the parts of a run, and refuses whatever does not fit.

    Args:
        config: of the run.
        workdir: folder of the run.
        mesh: of its devices.
        task: of the run.

    Returns:
        The parts, with the parameters that training begins with.

    Raises:
        ConfigError: if task, optimiser, sampler or pool do not fit each other, or the runs that
            `config.init_from` and `config.reference` name do not fit them.
    """
    check_task(task)
    check_reference(config, task)
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params, model_state = task.init(init_key)
    if config.init_from and newest_sound(workdir / "checkpoints") is None:
        run = find("config.init_from", config.init_from)
        run.require_task(config.task)
        params, model_state = jax.tree.map(jnp.asarray, run.read(params, model_state))
    plan = _plan(config)
    setup = Setup(
        config=config,
        workdir=workdir,
        mesh=mesh,
        task=task,
        tx=make_optimizer(config),
        params=params,
        model_state=model_state,
        state_key=state_key,
        plan=plan,
        steps_per_call=min(_steps_per_call(config, task), plan.longest_stretch()),
    )
    sampler = make_sampler(config, task, model_state, placeholders(config, setup.size))
    _check_pool(config, sampler, setup.size)
    _check_statistics(config, model_state)
    return setup


def _check_statistics(config: ConfigDict, model_state: PyTree) -> None:
    """Refuses to re-estimate statistics that the network does not keep."""
    if config.reestimate_batches and COLLECTION not in (model_state or {}):
        raise ConfigError(
            f"config.reestimate_batches is {config.reestimate_batches}, but {config.network} keeps "
            "no batch statistics; choose 0, or a network with batch norm"
        )


def _check_pool(config: ConfigDict, sampler: Sampler, size: int) -> None:
    """Refuses a pool smaller than a batch or larger than the data, where one is chosen from."""
    if not sampler.own_pool and not config.batch_size <= config.pool_size <= size:
        raise ConfigError(
            f"config.pool_size is {config.pool_size}; choose one between config.batch_size, which "
            f"is {config.batch_size}, and the {size} examples of the training data"
        )


def _check_mesh(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses sizes that the devices cannot share evenly."""
    shards = mesh.shape[DATA]
    for setting in ("batch_size", "pool_size", "strata"):
        if config[setting] % shards and not (setting == "strata" and config.strata == 1):
            raise ConfigError(
                f"config.{setting} is {config[setting]}, which {shards} devices along the data "
                f"axis cannot share; choose a multiple of {shards}, or another config.mesh.data"
            )


def _plan(config: ConfigDict) -> Plan:
    return Plan(
        num_steps=num_steps(config),
        num_evals=config.num_evals,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        stop_on_nonfinite=config.stop_on_nonfinite,
        name=config.method,
    )


def _steps_per_call(config: ConfigDict, task: Task) -> int:
    if not in_memory(task.dataset.train):
        if config.steps_per_call > 1:
            raise ConfigError(
                f"config.steps_per_call is {config.steps_per_call}, but each step waits for a "
                "batch of its own to be read; choose 0 or 1, or set config.in_memory to True"
            )
        return 1
    return config.steps_per_call or (1 if jax.default_backend() == "cpu" else 50)
