"""Config-driven runs, which survive: the same call on the same folder resumes."""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from isjax.base import Array, Params, PyTree, Sampler
from isjax.data.dataset import Dataset
from isjax.data.loading import Loader
from isjax.data.source import in_memory, num_examples
from isjax.experiment import draw_statistics
from isjax.experiment.artifacts import make_exhibits
from isjax.experiment.checkpoints import Checkpoints
from isjax.experiment.compiled_steps import compile_steps
from isjax.experiment.components import check_task, make_optimizer, make_sampler, make_task
from isjax.experiment.config import ConfigDict, ConfigError, check, num_steps
from isjax.experiment.evaluation import make_evaluation
from isjax.experiment.loop import OnDraw, Plan, Progress, describe, train
from isjax.experiment.preemption import asked_to_stop, asked_together
from isjax.experiment.reference_models import Prepared, Stopped, needed, prepare
from isjax.experiment.wandb_writer import WandbWriter
from isjax.experiment.workdir import ADVICE, check_workdir, locked, write_config
from isjax.experiment.writers import Silent, Writer
from isjax.parallel.mesh import DATA, make_mesh
from isjax.parallel.padding import pad_state
from isjax.parallel.processes import alone, connect, is_main, together
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


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    dataset: Dataset | None = None,
    *,
    task: Task | None = None,
    allow_config_changes: bool = False,
    on_draw: OnDraw | None = None,
    on_evaluation: Callable[[TrainState], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, or goes on where the run in `workdir` was interrupted.

    A run that was killed and resumed writes what one never interrupted writes, bit for bit on the
    same machine, but for the times. (So far this has been seen on CPUs. A GPU may sum in another
    order each time, unless XLA_FLAGS=--xla_gpu_deterministic_ops=true.) SIGTERM and Ctrl-C save a
    checkpoint and end the process in good order. The folder holds

    - `config.json`;
    - `metrics.jsonl`, a line per evaluation: `step`; `seconds` of training, scoring included;
      `compile_seconds` and `eval_seconds`, which are not part of it; `examples_forward` and
      `examples_backward` of the main model, scoring and reference models included (a backward
      pass of a scorer counts as two forward); `train_loss`, `test_loss`, and what else the task
      measures; and the steps' diagnostics, averaged since the last line (`nonfinite` and
      `skipped` are counted since the start);
    - `training.jsonl`, a line of diagnostics every `config.log_every` steps;
    - `tensorboard/`, which shows both; with `config.wandb`, so does Weights & Biases, for which
      the folder has `wandb.json` and `wandb/`: see `isjax.experiment.wandb_writer`;
    - `draws.npz`, `examples.npz` and `time.json`, which `isjax.report` shows: see
      `isjax.experiment.artifacts`;
    - `checkpoints/`, the newest, and the best by `valid_loss`, or by `test_loss` where the data
      set has no valid part. The data position is `TrainState.step`, from which with the seed
      every draw follows.

    Args:
        config: see `isjax.experiment.config.default_config`.
        workdir: made if need be.
        dataset: to use in place of the one that the config names; `config.dataset` is then only
            what a report calls it.
        task: to use in place of what the config names: data set, network and loss.
        on_draw: `(step, draw)`, called with what each step drew (`isjax.base.Draw`, as NumPy
            arrays), shortly after.
        on_evaluation: `(state) -> {name: number}`, further metrics of each evaluation.
        allow_config_changes: go on with a run although its config was another; the state stays,
            and with it what the seed has decided.

    Returns:
        The last line of metrics.

    Raises:
        ConfigError: before any training starts, if the config cannot be run, or `workdir` holds
            another run.
        ImportError: likewise, if a package is missing that the config asks for.
        ConnectionError: likewise, if Weights & Biases cannot be reached.
        FloatingPointError: with `config.stop_on_nonfinite`, at an evaluation, if every step since
            the last one was skipped for a loss or a gradient that was not finite.
        SystemExit: with status 0, after SIGTERM, when all is saved; after Ctrl-C KeyboardInterrupt.
    """
    check(config)
    try:
        connect(config.distributed)
        mesh = make_mesh(**config.mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_mesh(config, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(together())
        if not is_main():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        workdir = pathlib.Path(workdir).expanduser()
        check_workdir(workdir, config, allow_config_changes)
        shown = config.wandb and is_main() and WandbWriter(config.wandb, workdir, config.to_dict())
        task = task or make_task(config, dataset)
        check_task(task)
        size, parts = num_examples(task.dataset.train), max(config.strata, mesh.shape[DATA])
        init_key, state_key = jax.random.split(jax.random.key(config.seed))
        params, model_state = task.init(init_key)
        tx = make_optimizer(config)
        plan, steps_per_call = _plan(config), _steps_per_call(config, task)

        # Whatever must be refused is, before reference models are trained.
        zeros = dict.fromkeys(needed(config), np.zeros(size, np.float32))
        _check_pool(config, make_sampler(config, task, model_state, zeros), size)
        stop = stack.enter_context(asked_to_stop() if alone() else asked_together())
        with contextlib.ExitStack() as held:  # what is closed before the run says how it ended
            if is_main():
                held.enter_context(locked(workdir))
                # What another config left that never trained is not for this one.
                if not (workdir / "config.json").exists():
                    (workdir / "prepared.npz").unlink(missing_ok=True)
            try:
                prepared = prepare(config, task, workdir, stop)
            except Stopped:
                print("asked to stop while preparing; nothing of it is kept", flush=True)
                return {}
            sampler = make_sampler(config, task, model_state, prepared.arrays)

            def begin(key: Array, params: Params, model_state: PyTree) -> TrainState:
                state = init_train_state(key, params, tx, sampler, size, model_state)
                if config.exhibits:
                    state = state._replace(record=draw_statistics.init(size))
                return pad_state(state, parts)

            if mesh.size == 1:
                state = begin(state_key, params, model_state)
            else:
                stack.enter_context(jax.set_mesh(mesh))
                state = build(begin, (state_key, params, model_state), mesh, last_axis)
            progress, checkpoints = _beginning(prepared), None
            if config.checkpoint_every:
                checkpoints = held.enter_context(Checkpoints(workdir / "checkpoints", size))
                state, progress = _resume(checkpoints, state, progress)
            if progress.evaluated >= plan.num_steps:
                print(f"{workdir} holds this run, finished")
                return progress.line
            if progress.step:
                print(f"resuming at step {progress.step} of {plan.num_steps}")
            with_draw = config.exhibits or on_draw is not None
            if in_memory(task.dataset.train):
                step = make_train_step(
                    task.loss_fn,
                    tx,
                    sampler,
                    pool_size=None if sampler.own_pool else config.pool_size,
                    with_draw=with_draw,
                )
                data = place(task.dataset.train, mesh, parts)
                feed, on_chosen = itertools.repeat(data), None
            else:
                step = make_loaded_step(task.loss_fn, tx, sampler, with_draw=with_draw)
                feed = held.enter_context(Loader(task.dataset.train, pending(state.sampler), mesh))
                data, on_chosen = feed.sample(), feed.post
            step = draw_statistics.recorded(step, with_draw=on_draw is not None)
            try:
                program = compile_steps(step, state, data, steps_per_call)
                writer = Silent()
                if is_main():
                    write_config(workdir, config)
                    also = held.enter_context(shown).add if shown else None
                    writer = held.enter_context(Writer(workdir, progress.files, also))
            except (TypeError, ValueError) as error:
                raise ConfigError(str(error)) from error
            progress.compile_seconds += program.seconds
            further = [on_evaluation] if on_evaluation else []
            if config.exhibits:
                further.append(make_exhibits(workdir, task, program, data))
            evaluate = make_evaluation(task, config.eval_batch_size, config.eval_examples, further)
            train(
                plan,
                program,
                state,
                progress,
                feed,
                evaluate,
                writer,
                checkpoints,
                stop,
                on_draw,
                on_chosen,
            )
        if progress.evaluated < plan.num_steps:
            saved = "saved; the same command resumes" if checkpoints else "no checkpoints, all lost"
            print(f"asked to stop at step {progress.step} of {plan.num_steps}; {saved}", flush=True)
        else:
            print(_summary(config, progress.line))
    return progress.line


def _check_pool(config: ConfigDict, sampler: Sampler, size: int) -> None:
    """Refuses a pool that does not lie between batch and data, where one is chosen from."""
    if not sampler.own_pool and not config.batch_size <= config.pool_size <= size:
        raise ConfigError(
            f"config.pool_size is {config.pool_size}; choose one between config.batch_size, which "
            f"is {config.batch_size}, and the {size} examples of the training data"
        )


def _check_mesh(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses what the devices cannot share among them."""
    shards = mesh.shape[DATA]
    for setting in ("batch_size", "pool_size", "strata"):
        if config[setting] % shards and not (setting == "strata" and config.strata == 1):
            raise ConfigError(
                f"config.{setting} is {config[setting]}, which {shards} devices along the data "
                f"axis cannot share; choose a multiple of {shards}, or another config.mesh.data"
            )


def _beginning(prepared: Prepared) -> Progress:
    """No step taken, but what was prepared is paid for."""
    return Progress(
        seconds=prepared.seconds,
        compile_seconds=prepared.compile_seconds,
        since_start={
            "examples_forward": prepared.examples_forward,
            "examples_backward": prepared.examples_backward,
        },
    )


def _resume(
    checkpoints: Checkpoints, state: TrainState, progress: Progress
) -> tuple[TrainState, Progress]:
    """Where the run was interrupted, or its beginning."""
    try:
        restored = checkpoints.restore(state)
    except ValueError as error:
        raise ConfigError(f"the checkpoint does not fit this config: {error}; {ADVICE}") from error
    return (restored[0], Progress(**restored[1])) if restored else (state, progress)


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


def _summary(config: ConfigDict, last: dict[str, Any]) -> str:
    return (
        f"{config.method}, seed {config.seed}: {describe(last)}\n"
        f"  {last['step']} steps in {last['seconds']:.1f} s of training "
        f"({last['seconds'] / last['step'] * 1e3:.2f} ms a step; besides, "
        f"{last['compile_seconds']:.1f} s of compilation and {last['eval_seconds']:.1f} s of "
        f"evaluation); {last['examples_forward']:,} examples forward, "
        f"{last['examples_backward']:,} backward"
    )
