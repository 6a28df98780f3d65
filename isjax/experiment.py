"""Config-driven runs: from a config to objects, the loop, and the files of a run."""

import functools
import inspect
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from isjax import data, networks, recipes, tasks
from isjax.base import Array, Batch, PyTree, Sampler
from isjax.config import ConfigError, build, check
from isjax.data import Dataset
from isjax.tasks import Task
from isjax.training import TrainState, init_train_state, make_eval_step, make_train_step
from isjax.training import num_examples as count_examples

__all__ = ["make_optimizer", "make_sampler", "make_task", "run"]

_EVAL_BATCH = 1000
_STEPS_PER_WAIT = 50  # how far dispatch, and with it the progress bar, may run ahead
_SUMMED = ("nonfinite", "skipped")  # metrics counted since the start; the others are averaged


def run(config: ConfigDict, workdir: str | os.PathLike, dataset: Dataset | None = None) -> dict:
    """Trains as `config` says and writes `config.json` and `metrics.jsonl` into `workdir`.

    A line of metrics per evaluation: `step`; `seconds` of training, scoring included;
    `compile_seconds` and `eval_seconds`, which are not part of it; `examples_forward` and
    `examples_backward` of the main model; `train_loss`, `test_loss`, and what else the task
    measures; and the step's diagnostics, averaged since the last line (`nonfinite` and `skipped`
    are counted since the start).

    Args:
        config: see `isjax.config.default_config`.
        workdir: made if need be; must not hold a run.
        dataset: to use in place of the one that the config names.

    Returns:
        The last line of metrics.

    Raises:
        ConfigError: before any training starts, if the config cannot be run.
        FloatingPointError: with `config.stop_on_nonfinite`, at the evaluation that finds a loss
            that was not finite.
    """
    check(config)
    workdir = pathlib.Path(workdir).expanduser()
    if (workdir / "metrics.jsonl").exists():
        raise ConfigError(f"{workdir} already holds a run; choose another --workdir or delete it")
    task = make_task(config, dataset)
    num_examples = count_examples(task.dataset.train)
    if config.pool_size > num_examples:
        raise ConfigError(
            f"config.pool_size is {config.pool_size}, but {config.dataset} has {num_examples} "
            f"examples; choose at most {num_examples}"
        )
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params, model_state = task.init(init_key)
    tx = make_optimizer(config)
    sampler = make_sampler(config, task, model_state)
    state = init_train_state(state_key, params, tx, sampler, num_examples, model_state)
    step = make_train_step(task.loss_fn, tx, sampler, pool_size=config.pool_size)

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    with open(workdir / "metrics.jsonl", "w", buffering=1) as file:
        last = _train(config, task, state, step, file)
    print(_summary(config, last))
    return last


def make_task(config: ConfigDict, dataset: Dataset | None = None) -> Task:
    """The task that a config names, on its data set unless another is given."""
    if dataset is None:
        dataset = build(
            "dataset_options",
            getattr(data, config.dataset),
            config.dataset_options,
            fixed={"data_dir": config.data_dir or None},
        )
    network = build(
        "network_options",
        getattr(networks, config.network),
        config.network_options,
        fixed={"outputs": dataset.num_classes},
    )
    return tasks.classification(dataset, network)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser that a config names, its rate decaying to zero over the run."""
    return build(
        "optimizer_options",
        getattr(optax, config.optimizer),
        config.optimizer_options,
        fixed={
            "learning_rate": optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
        },
        defaults={"momentum": 0.9},
    )


def make_sampler(config: ConfigDict, task: Task, model_state: PyTree = None) -> Sampler:
    """The sampler that a config names; classes and the model's losses are the task's."""
    if jax.tree.leaves(model_state):
        loss_fn = lambda variables, batch: task.score_fn(*variables, batch)  # noqa: E731
    else:
        loss_fn = lambda params, batch: task.score_fn(params, model_state, batch)  # noqa: E731
    classes = task.dataset.num_classes
    return build(
        "method_options",
        getattr(recipes, config.method),
        config.method_options,
        fixed={"batch_size": config.batch_size, "loss_fn": loss_fn, "num_classes": classes},
        defaults={"initial_loss": math.log(classes)} if classes else {},
    )


def _train(
    config: ConfigDict, task: Task, state: TrainState, step: Callable, file: Any
) -> dict[str, Any]:
    """The loop: chunks of training between evaluations, a line written after each of these."""
    train = jax.device_put(task.dataset.train)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step_and_add(state: TrainState, totals: dict[str, Array], train: Batch):
        state, metrics = step(state, train)
        return state, jax.tree.map(lambda total, metric: total + metric, totals, metrics)

    start = time.perf_counter()
    _, shapes = jax.eval_shape(step, state, train)
    zeros = functools.partial(jax.tree.map, lambda _: jnp.zeros((), jnp.float32), shapes)
    compiled = step_and_add.lower(state, zeros(), train).compile()
    compile_seconds = time.perf_counter() - start

    evaluate = _evaluation(task)
    forward, backward = _examples_per_step(config)
    seconds = eval_seconds = 0.0
    counted = dict.fromkeys(_SUMMED, 0)
    stops = np.linspace(0, config.num_steps, config.num_evals + 1).round().astype(int)
    done, line = 0, {}
    with tqdm(total=config.num_steps, desc=config.method, unit="step", disable=None) as bar:
        for stop in dict.fromkeys(stops.tolist()):
            totals = zeros()
            jax.block_until_ready(totals)
            start = time.perf_counter()
            for number in range(done + 1, stop + 1):
                state, totals = compiled(state, totals, train)
                if number % _STEPS_PER_WAIT == 0 or number == stop:
                    jax.block_until_ready(totals)
                    bar.update(number - bar.n)
            seconds += time.perf_counter() - start

            start = time.perf_counter()
            evaluated = evaluate(state)
            eval_seconds += time.perf_counter() - start
            diagnostics = {name: float(total) for name, total in totals.items()} if stop else {}
            for name in counted:
                counted[name] += round(diagnostics.pop(name, 0))
            line = {
                "step": stop,
                "seconds": round(seconds, 4),
                "compile_seconds": round(compile_seconds, 4),
                "eval_seconds": round(eval_seconds, 4),
                "examples_forward": stop * forward,
                "examples_backward": stop * backward,
                **evaluated,
                **{name: total / (stop - done) for name, total in diagnostics.items()},
                **counted,
            }
            file.write(json.dumps(line) + "\n")
            done = stop
            bar.set_postfix_str(_shown(line))
            if bar.disable:
                print(f"step {stop}, {seconds:.1f} s: {_shown(line)}", flush=True)
            if config.stop_on_nonfinite and any(counted.values()):
                raise FloatingPointError(
                    f"stopped at step {stop}: {counted['nonfinite']} losses or scores were not "
                    f"finite, and {counted['skipped']} steps skipped; lower the learning rate, or "
                    "look at the data"
                )
    return line


def _evaluation(task: Task) -> Callable[[TrainState], dict[str, float]]:
    """Means over all of both parts, in float64, such as `train_loss` and `test_loss`."""
    eval_step = make_eval_step(task.metrics_fn)

    def mean(state: TrainState, part: Batch) -> dict[str, float]:
        size = count_examples(part)
        batches = [
            jax.device_get(
                eval_step(state, jax.tree.map(lambda x: x[i : i + _EVAL_BATCH], part))  # noqa: B023
            )
            for i in range(0, size, _EVAL_BATCH)
        ]
        total = jax.tree.map(lambda *parts: sum(p.sum(dtype=np.float64) for p in parts), *batches)
        return {name: float(value / size) for name, value in total.items()}

    def evaluate(state: TrainState) -> dict[str, float]:
        return {
            f"{part}_{name}": value
            for part in ("train", "test")
            for name, value in mean(state, getattr(task.dataset, part)).items()
        }

    return evaluate


def _examples_per_step(config: ConfigDict) -> tuple[int, int]:
    """Examples that the main model runs forward and backward."""
    parameters = inspect.signature(getattr(recipes, config.method)).parameters
    scores = "loss_fn" in parameters or "logits_fn" in parameters
    return config.batch_size + scores * config.pool_size, config.batch_size


def _shown(line: dict[str, Any]) -> str:
    text = f"train loss {line['train_loss']:.4f}, test loss {line['test_loss']:.4f}"
    if "test_accuracy" in line:
        text += f", test accuracy {line['test_accuracy']:.4f}"
    if line["nonfinite"] or line["skipped"]:
        text += f", NOT FINITE: {line['nonfinite']} losses, {line['skipped']} steps skipped"
    return text


def _summary(config: ConfigDict, last: dict[str, Any]) -> str:
    return (
        f"{config.method}, seed {config.seed}: {_shown(last)}\n"
        f"  {last['step']} steps in {last['seconds']:.1f} s of training "
        f"({last['seconds'] / last['step'] * 1e3:.2f} ms a step; besides, "
        f"{last['compile_seconds']:.1f} s of compilation and {last['eval_seconds']:.1f} s of "
        f"evaluation); {last['examples_forward']:,} examples forward, "
        f"{last['examples_backward']:,} backward"
    )
