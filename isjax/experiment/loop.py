"""The loop of a run: training between evaluations, metrics written, checkpoints saved."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from isjax.base import Array, Batch, Draw
from isjax.experiment.checkpoints import Checkpoints
from isjax.experiment.compiled_steps import Output, Program, number_of_steps
from isjax.experiment.evaluation import Evaluate
from isjax.experiment.writers import Silent, Writer
from isjax.parallel.processes import is_main
from isjax.training import TrainState

__all__ = ["Plan", "Progress", "describe", "train"]

_COUNTED = ("nonfinite", "skipped")  # metrics counted since the start, as are these,
_EXAMPLES = ("examples_forward", "examples_backward")  # of the main model; others are averaged

OnDraw = Callable[[int, Draw], None]


class Plan(NamedTuple):
    """What a run is to do, and when.

    Attributes:
        num_steps: of training.
        num_evals: evenly spaced, after the one before training.
        log_every: steps over which a line of diagnostics is averaged.
        checkpoint_every: steps; 0 = never.
        stop_on_nonfinite: whether an evaluation ends the run if every step since the last one was
            skipped, since a loss or the gradient was not finite: nothing more is learned.
        name: shown with the progress.
    """

    num_steps: int
    num_evals: int
    log_every: int
    checkpoint_every: int
    stop_on_nonfinite: bool = True
    name: str = ""

    def evaluations(self) -> list[int]:
        """The steps after which there is an evaluation."""
        stops = np.linspace(0, self.num_steps, self.num_evals + 1).round()
        return sorted(set(stops.astype(int).tolist()))

    def next_pause(self, step: int) -> int:
        """The first step after `step` at which there is an evaluation or a checkpoint."""
        pauses = [pause for pause in self.evaluations() if pause > step]
        if self.checkpoint_every:
            pauses.append((step // self.checkpoint_every + 1) * self.checkpoint_every)
        return min(pauses)


@dataclasses.dataclass
class Progress:
    """How far a run has come, beside its train state. JSON can hold it; checkpoints do.

    Attributes:
        step: steps taken.
        evaluated: the step of the last evaluation; -1 = none yet.
        best_loss: by which the best checkpoint is kept.
        logged: the step of the last line of diagnostics.
        seconds: of training.
        compile_seconds: not part of `seconds`; nor are
        eval_seconds: which include the compilation of the evaluation.
        line: of the last evaluation.
        since_start: sums of the steps' metrics.
        since_evaluation: since the last evaluation.
        since_log: since the last line of diagnostics.
        files: bytes of the files of metrics.
    """

    step: int = 0
    evaluated: int = -1
    logged: int = 0
    best_loss: float = math.inf
    seconds: float = 0.0
    compile_seconds: float = 0.0
    eval_seconds: float = 0.0
    line: dict[str, Any] = dataclasses.field(default_factory=dict)
    since_start: dict[str, float] = dataclasses.field(default_factory=dict)
    since_evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    since_log: dict[str, float] = dataclasses.field(default_factory=dict)
    files: dict[str, int] = dataclasses.field(default_factory=dict)


def train(
    plan: Plan,
    program: Program,
    state: TrainState,
    progress: Progress,
    data: Iterator[Batch],
    evaluate: Evaluate,
    writer: Writer | Silent,
    checkpoints: Checkpoints | None,
    asked_to_stop: Callable[[], bool],
    on_draw: OnDraw | None = None,
    on_chosen: Callable[[Array], None] | None = None,
) -> None:
    """Trains on from `state` until the plan is fulfilled or `asked_to_stop`; updates `progress`.

    `data` gives each call of the program what it is to train on. With `on_draw` each step's draw is
    passed to it, as NumPy arrays, while later steps run; with `on_chosen` the ids of the batches to
    load, [steps, b], while they are still being computed.

    Raises:
        FloatingPointError: with `plan.stop_on_nonfinite`.
    """
    evaluations = plan.evaluations()
    bar = tqdm(
        total=plan.num_steps,
        initial=progress.step,
        desc=plan.name,
        unit="step",
        disable=None if is_main() else True,
    )

    number = functools.cache(lambda num: number_of_steps(num, state))

    def record(output: Output, num: int) -> None:
        """Adds the metrics of a call, and writes a line of diagnostics where one is due."""
        rows, draws = jax.device_get((output.metrics, output.draw if on_draw else None))
        for number, row in enumerate(rows[:num].tolist()):
            progress.step += 1
            for sums in (progress.since_start, progress.since_evaluation, progress.since_log):
                for name, value in zip(program.names, row, strict=True):
                    sums[name] = sums.get(name, 0.0) + value
            if on_draw:
                on_draw(progress.step, jax.tree.map(lambda x: x[number], draws))  # noqa: B023
            if progress.step % plan.log_every == 0:
                means = _means(progress.since_log, progress.step - progress.logged)
                writer.write("training", {"step": progress.step, **means, **_counts(progress)})
                progress.logged, progress.since_log = progress.step, {}
        bar.update(progress.step - bar.n)

    def advance(state: TrainState, stop: int) -> TrainState:
        """Trains up to step `stop`; the metrics of a call are fetched while the next one runs."""
        start = time.perf_counter()
        taken, pending = progress.step, None
        while taken < stop and not asked_to_stop():
            num = min(program.steps, stop - taken)
            state, output = program.run(state, next(data), number(num))
            if on_chosen:
                on_chosen(output.chosen)
            if pending:
                record(*pending)
            taken, pending = taken + num, (output, num)
        if pending:
            record(*pending)
        progress.seconds += time.perf_counter() - start
        return state

    def evaluated_best(state: TrainState) -> bool:
        """Writes the line of an evaluation, and says whether it is the best so far."""
        start = time.perf_counter()
        evaluated = evaluate(state, asked_to_stop)
        progress.eval_seconds += time.perf_counter() - start
        if evaluated is None:  # asked to stop: evaluated when the run is resumed
            return False
        steps = progress.step - progress.evaluated
        skipped = progress.since_evaluation.get("skipped", 0)
        progress.line = {
            "step": progress.step,
            "seconds": round(progress.seconds, 4),
            "compile_seconds": round(progress.compile_seconds, 4),
            "eval_seconds": round(progress.eval_seconds, 4),
            **{name: _total(progress, name) for name in _EXAMPLES},
            **evaluated,
            **_means(progress.since_evaluation, steps),
            **_counts(progress),
        }
        progress.evaluated, progress.since_evaluation = progress.step, {}
        writer.write("evaluation", progress.line)
        bar.set_postfix_str(describe(progress.line))
        if bar.disable:
            took = f"{progress.seconds:.1f} s"
            print(f"step {progress.step}, {took}: {describe(progress.line)}", flush=True)
        if plan.stop_on_nonfinite and skipped == steps:
            raise FloatingPointError(
                f"stopped at step {progress.step}: each of the {steps} steps since the last "
                "evaluation was skipped, since losses or gradients were not finite; lower the "
                "learning rate, clip the gradient, or look at the data"
            )
        loss = progress.line.get("valid_loss", progress.line["test_loss"])
        if not loss < progress.best_loss:  # worse, or not a number
            return False
        progress.best_loss = loss
        return True

    with bar:
        while True:
            due = progress.step in evaluations and progress.evaluated < progress.step
            best = due and evaluated_best(state)
            ended = progress.step >= plan.num_steps or asked_to_stop()
            wanted = best or ended or (checkpoints and progress.step % plan.checkpoint_every == 0)
            if checkpoints and wanted and checkpoints.step != progress.step:
                progress.files = writer.sizes()
                loss = progress.best_loss if best else math.inf
                checkpoints.save(state, dataclasses.asdict(progress), loss)
            if ended:
                return
            state = advance(state, plan.next_pause(progress.step))


def describe(line: dict[str, Any]) -> str:
    """An evaluation in a few words."""
    shown = ("train_loss", "test_loss", "test_accuracy", "test_perplexity")
    text = ", ".join(f"{name.replace('_', ' ')} {line[name]:.4f}" for name in shown if name in line)
    if line["nonfinite"] or line["skipped"]:
        text += f", NOT FINITE: {line['nonfinite']} losses, {line['skipped']} steps skipped"
    return text


def _means(sums: dict[str, float], steps: int) -> dict[str, float]:
    totals = {*_COUNTED, *_EXAMPLES}
    return {name: total / steps for name, total in sums.items() if name not in totals}


def _counts(progress: Progress) -> dict[str, int]:
    return {name: _total(progress, name) for name in _COUNTED}


def _total(progress: Progress, name: str) -> int:
    return round(progress.since_start.get(name, 0))
