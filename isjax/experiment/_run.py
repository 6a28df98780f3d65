"""A run from a config: checked, prepared, begun or resumed, trained, reported."""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax

from isjax.base import Array, Batch, Params, PyTree, Sampler
from isjax.data.dataset import Dataset
from isjax.data.loading import Loader
from isjax.data.source import in_memory, num_examples
from isjax.experiment import draw_statistics, token_reference
from isjax.experiment._ending import check_skipped, make_on_failures, name_failures, report
from isjax.experiment._setup import Setup, check_processes, connect_devices, set_up, versions
from isjax.experiment.artifacts import make_artifacts
from isjax.experiment.batch_statistics import make_reestimation
from isjax.experiment.checkpoints import Checkpoints
from isjax.experiment.compiled_steps import Step, compile_steps
from isjax.experiment.components import make_sampler, make_task
from isjax.experiment.config import ConfigDict, ConfigError, check
from isjax.experiment.evaluation import make_evaluation
from isjax.experiment.loop import OnDraw, Outputs, Progress, Work, train
from isjax.experiment.preemption import stop_on_signal, stop_on_signal_to_any
from isjax.experiment.reference_models import (
    PreparationStopped,
    Prepared,
    prepare,
)
from isjax.experiment.wandb_writer import WandbWriter
from isjax.experiment.workdir import REMEDY, check_workdir, locked, write_config
from isjax.experiment.writers import NullWriter, Writer
from isjax.parallel.padding import pad_state
from isjax.parallel.processes import alone, is_main, together
from isjax.parallel.sharding import build, last_axis, place
from isjax.samplers import pending
from isjax.tasks import Task
from isjax.training import (
    TrainState,
    init_train_state,
    make_loaded_step,
    make_train_step,
)

__all__ = ["run"]

OnEvaluation = Callable[[TrainState], dict[str, float]]


class _Watchers(NamedTuple):
    """Receivers of a run's results, besides its folder.

    Attributes:
        wandb: not yet entered; None = no lines are sent.
        on_draw: of the caller.
        on_evaluation: of the caller.
    """

    wandb: WandbWriter | None
    on_draw: OnDraw | None
    on_evaluation: OnEvaluation | None


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: Dataset | None = None,
    *,
    task: Task | None = None,
    allow_config_changes: bool = False,
    on_draw: OnDraw | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, or resumes the run in `workdir` that was interrupted.

    A run that is killed and resumed writes the same as one never interrupted, bit for bit, except
    for the times. This was tested on CPUs, on the same machine with as many cores: with another
    number of cores XLA sums in another order. A GPU may do so in every run, unless
    XLA_FLAGS=--xla_gpu_deterministic_ops=true is set. On SIGTERM and Ctrl-C a run saves a
    checkpoint and ends. A damaged newest checkpoint is named, and the one before is used.

    Files in the folder:

    - `config.json`;
    - `metrics.jsonl`, a line for each evaluation: `step`; `seconds` of training, scoring included;
      `compile_seconds` and `eval_seconds`, which are not part of `seconds`; `examples_forward` and
      `examples_backward` of the main model, scoring and reference models included (a backward
      pass of a scorer counts as two forward); `train_loss`, `test_loss` and the other metrics of
      the task; and the diagnostics of the steps, averaged since the last line. `nonfinite` and
      `skipped` are counted since the start;
    - `training.jsonl`, a line of diagnostics every `config.log_every` steps;
    - `tensorboard/`, the numbers of both files as TensorBoard events;
    - `wandb.json` and `wandb/` with `config.wandb`, see `isjax.experiment.wandb_writer`;
    - `draws.npz`, `examples.npz` and `time.json` with `config.artifacts`, see
      `isjax.experiment.artifacts`;
    - `failures.json`, the ids of the examples whose loss was not finite at the last evaluation;
    - `prepared.npz` for a method with reference models, see `isjax.experiment.reference_models`;
    - `reference.npy` and `reference.json` with `config.tokens`, see
      `isjax.experiment.token_reference`;
    - `checkpoints/`: the two newest, and the best by `valid_loss`, or by `test_loss` where the data
      set has no valid part. With the seed `TrainState.step` decides every draw, so that it is also
      the position in the data.

    Args:
        config: see `isjax.experiment.config.default_config`.
        workdir: made if it does not exist.
        dataset: in place of the one that the config names; `config.dataset` is then only its name
            in reports.
        task: in place of the data set, network and loss that the config names.
        allow_config_changes: resume a run although its config was another. The state stays, and
            with it every draw that the seed has decided.
        on_draw: `(step, draw)`, called with the draw of each step (`isjax.base.Draw` of NumPy
            arrays), shortly after the step.
        on_evaluation: `(state) -> {name: number}`, further metrics of each evaluation.

    Returns:
        The last line of metrics; empty if the run was stopped before training.

    Raises:
        ConfigError: before any training starts, if the config cannot be run, or `workdir` holds
            another run.
        ImportError: before any training starts, if a package is missing that the config asks for.
        ConnectionError: before any training starts, if Weights & Biases cannot be reached.
        OSError: if a file cannot be written, as on a full disk; the message names it.
        FloatingPointError: with `config.stop_on_nonfinite`, at an evaluation, if every step since
            the last one was skipped because a loss or a gradient was not finite. At the end, if
            more than the share `config.max_skipped` of the steps was skipped; all files are
            written, and metrics are in `metrics.jsonl`.
        SystemExit: with status 0, after SIGTERM, once a checkpoint is saved.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    check(config)
    mesh = connect_devices(config)
    with together(), _only_main_prints():
        workdir = pathlib.Path(workdir).expanduser()
        check_processes({"config": config.to_dict(), "--workdir": str(workdir), **versions()})
        check_workdir(workdir, config, allow_config_changes)
        watchers = _Watchers(_wandb_writer(config, workdir), on_draw, on_evaluation)
        task = task or make_task(config, dataset)
        check_processes({"the number of examples": num_examples(task.dataset.train)})
        setup = set_up(config, workdir, mesh, task)
        with stop_on_signal() if alone() else stop_on_signal_to_any() as should_stop:
            return _prepare_and_train(setup, watchers, should_stop)


@contextlib.contextmanager
def _only_main_prints() -> Generator[None]:
    """Silences the standard output of every process but the main one."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _wandb_writer(config: ConfigDict, workdir: pathlib.Path) -> WandbWriter | None:
    if config.wandb and is_main():
        return WandbWriter(config.wandb, workdir, config.to_dict())
    return None


def _prepare_and_train(
    setup: Setup, watchers: _Watchers, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """The run from the lock of its folder to its last message; returns the last line of metrics."""
    config, plan = setup.config, setup.plan
    with contextlib.ExitStack() as resources:  # closed before the last message
        if is_main():
            resources.enter_context(locked(setup.workdir))
            _remove_stale_arrays(setup.workdir)
        try:
            prepared = prepare(config, setup.task, setup.workdir, should_stop)
            task = token_reference.with_token_reference(config, setup.task, setup.workdir, prepared)
            setup = setup._replace(task=task)
        except PreparationStopped:
            print("asked to stop while preparing; nothing of it is kept", flush=True)
            return {}
        sampler = make_sampler(config, setup.task, setup.model_state, prepared.arrays)
        if setup.mesh.size > 1:
            resources.enter_context(jax.set_mesh(setup.mesh))
        state, progress, checkpoints = _begin_or_resume(setup, sampler, prepared, resources)
        if progress.evaluated >= plan.num_steps:
            print(f"{setup.workdir} holds this run, finished")
            check_skipped(config, progress.line)
            return progress.line
        if progress.step:
            print(f"resuming at step {progress.step} of {plan.num_steps}")
        work, outputs = _compile(setup, watchers, sampler, state, progress, checkpoints, resources)
        try:
            train(plan, work, outputs, state, progress, should_stop)
        except FloatingPointError:
            name_failures(setup.workdir)
            raise
    report(setup, progress, saved=checkpoints is not None)
    return progress.line


def _remove_stale_arrays(workdir: pathlib.Path) -> None:
    """Removes arrays prepared for a run that never trained: its config may have been another."""
    if not (workdir / "config.json").exists():
        for name in ("prepared.npz", *token_reference.FILES):
            (workdir / name).unlink(missing_ok=True)


def _begin_or_resume(
    setup: Setup, sampler: Sampler, prepared: Prepared, resources: contextlib.ExitStack
) -> tuple[TrainState, Progress, Checkpoints | None]:
    """The state and progress of the newest checkpoint, or those of step 0."""
    state, progress = _first_state(setup, sampler), _first_progress(prepared)
    if not setup.config.checkpoint_every:
        return state, progress, None
    try:
        checkpoints = Checkpoints(setup.workdir / "checkpoints", setup.size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    resources.enter_context(checkpoints)
    try:
        if restored := checkpoints.restore(state):
            state, progress = restored[0], Progress(**restored[1])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the checkpoint does not fit this config: {error}; {REMEDY}") from error
    return state, progress, checkpoints


def _first_state(setup: Setup, sampler: Sampler) -> TrainState:
    """The train state of step 0, spread over the mesh."""

    def begin(key: Array, params: Params, model_state: PyTree) -> TrainState:
        state = init_train_state(key, params, setup.tx, sampler, setup.size, model_state)
        if setup.config.artifacts:
            state = state._replace(record=draw_statistics.init(setup.size))
        return pad_state(state, setup.parts)

    arguments = (setup.state_key, setup.params, setup.model_state)
    if setup.mesh.size == 1:
        return begin(*arguments)
    return build(begin, arguments, setup.mesh, last_axis)


def _first_progress(prepared: Prepared) -> Progress:
    """The progress of step 0, to which the cost of preparing counts."""
    return Progress(
        seconds=prepared.seconds,
        compile_seconds=prepared.compile_seconds,
        since_start={
            "examples_forward": prepared.examples_forward,
            "examples_backward": prepared.examples_backward,
        },
    )


def _compile(
    setup: Setup,
    watchers: _Watchers,
    sampler: Sampler,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints | None,
    resources: contextlib.ExitStack,
) -> tuple[Work, Outputs]:
    """Compiles the training steps, then opens the files that the run writes."""
    config, task = setup.config, setup.task
    on_draw, further = watchers.on_draw, [watchers.on_evaluation] if watchers.on_evaluation else []
    step, data, feed, on_chosen = _step_and_data(setup, on_draw, sampler, state, resources)
    try:
        program = compile_steps(step, state, data, setup.steps_per_call)
        writer = _open_writer(setup, watchers, progress, resources) if is_main() else NullWriter()
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    progress.compile_seconds += program.seconds
    if config.artifacts:
        further.append(make_artifacts(setup.workdir, task, program, data))
    reestimate = None
    if config.reestimate_batches:
        reestimate = make_reestimation(
            task, config.reestimate_batches, config.batch_size, config.seed
        )
    evaluate = make_evaluation(
        task,
        config.eval_batch_size,
        config.eval_examples,
        further,
        reestimate,
        make_on_failures(setup.workdir),
    )
    return Work(program, feed, evaluate), Outputs(writer, checkpoints, on_draw, on_chosen)


def _step_and_data(
    setup: Setup,
    on_draw: OnDraw | None,
    sampler: Sampler,
    state: TrainState,
    resources: contextlib.ExitStack,
) -> tuple[Step, Batch, Iterator[Batch], Callable[[Array], None] | None]:
    """The training step, an example of its data, an iterator over them, and `on_chosen`."""
    config, task = setup.config, setup.task
    with_draw = config.artifacts or on_draw is not None
    if in_memory(task.dataset.train):
        step = make_train_step(
            task.loss_fn,
            setup.tx,
            sampler,
            pool_size=None if sampler.own_pool else config.pool_size,
            with_draw=with_draw,
        )
        data = place(task.dataset.train, setup.mesh, setup.parts)
        feed, on_chosen = itertools.repeat(data), None
    else:
        step = make_loaded_step(task.loss_fn, setup.tx, sampler, with_draw=with_draw)
        loader = Loader(task.dataset.train, pending(state.sampler), setup.mesh)
        feed = resources.enter_context(loader)
        data, on_chosen = feed.sample(), feed.post
    step = draw_statistics.record_draws(step, with_draw=on_draw is not None)
    return step, data, feed, on_chosen


def _open_writer(
    setup: Setup, watchers: _Watchers, progress: Progress, resources: contextlib.ExitStack
) -> Writer:
    """Writes the config, and opens the files of metrics where `progress` stands."""
    write_config(setup.workdir, setup.config)
    also = resources.enter_context(watchers.wandb).write if watchers.wandb else None
    return resources.enter_context(Writer(setup.workdir, progress.files, also))
