"""The loop of a run: trains, evaluates, writes metrics and saves checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from isjax.base import Array, Batch, Draw
from isjax.experiment.checkpoints import Checkpoints
from isjax.experiment.compiled_steps import Output, Program
from isjax.experiment.evaluation import Evaluate
from isjax.experiment.writers import NullWriter, Writer
from isjax.parallel.processes import is_main
from isjax.training import TrainState

__all__ = ["Outputs", "Plan", "Progress", "Work", "describe", "train"]

# Metrics of the steps that are summed since the start; the others are averaged.
_COUNTED = ("nonfinite", "skipped")
_EXAMPLES = ("examples_forward", "examples_backward")

OnDraw = Callable[[int, Draw], None]


class Plan(NamedTuple):
    """When a run evaluates, writes, saves and ends.

    Attributes:
        num_steps: of training.
        num_evals: evenly spaced, after the one before training.
        log_every: steps over which a line of diagnostics is averaged.
        checkpoint_every: steps; 0 = never.
        stop_on_nonfinite: whether an evaluation ends the run if every step since the last one was
            skipped because a loss or the gradient was not finite. Such a run learns nothing more.
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

    def longest_stretch(self) -> int:
        """The most steps between two pauses."""
        saves = range(0, self.num_steps, self.checkpoint_every) if self.checkpoint_every else ()
        return int(np.diff(sorted({*self.evaluations(), *saves})).max())

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due at `step`."""
        return self.checkpoint_every > 0 and step % self.checkpoint_every == 0


@dataclasses.dataclass
class Progress:
    """How far a run has come, besides its train state. Plain JSON; a part of each checkpoint.

    Attributes:
        step: steps taken.
        evaluated: the step of the last evaluation; -1 = none yet.
        logged: the step of the last line of diagnostics.
        best_loss: the lowest loss of an evaluation, which decides the best checkpoint.
        first_loss: the train loss before training; None = not yet known.
        seconds: of training; without compilation and evaluation.
        compile_seconds: of compiling the training steps.
        eval_seconds: of evaluation, its compilation included.
        line: of the last evaluation.
        since_start: sums of the steps' metrics since the start.
        since_evaluation: sums since the last evaluation.
        since_log: sums since the last line of diagnostics.
        files: bytes in each file of metrics.
    """

    step: int = 0
    evaluated: int = -1
    logged: int = 0
    best_loss: float = math.inf
    first_loss: float | None = None
    seconds: float = 0.0
    compile_seconds: float = 0.0
    eval_seconds: float = 0.0
    line: dict[str, Any] = dataclasses.field(default_factory=dict)
    since_start: dict[str, float] = dataclasses.field(default_factory=dict)
    since_evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    since_log: dict[str, float] = dataclasses.field(default_factory=dict)
    files: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one more step."""
        self.step += 1
        for sums in (self.since_start, self.since_evaluation, self.since_log):
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value

    def log(self) -> dict[str, Any]:
        """A line of diagnostics: means over the steps since the last one."""
        means = _means(self.since_log, self.step - self.logged)
        self.logged, self.since_log = self.step, {}
        return {"step": self.step, **means, **self._totals(_COUNTED)}

    def evaluation(self, evaluated: dict[str, float]) -> dict[str, Any]:
        """The line of an evaluation: costs so far, `evaluated`, and means since the last one."""
        self.line = {
            "step": self.step,
            "seconds": round(self.seconds, 4),
            "compile_seconds": round(self.compile_seconds, 4),
            "eval_seconds": round(self.eval_seconds, 4),
            **self._totals(_EXAMPLES),
            **evaluated,
            **_means(self.since_evaluation, self.step - self.evaluated),
            **self._totals(_COUNTED),
        }
        if self.evaluated < 0:
            self.first_loss = self.line["train_loss"]
        self.evaluated, self.since_evaluation = self.step, {}
        return self.line

    def _totals(self, names: tuple[str, ...]) -> dict[str, int]:
        return {name: round(self.since_start.get(name, 0)) for name in names}


class Work(NamedTuple):
    """The computations of a run.

    Attributes:
        program: the compiled training steps.
        data: an iterator, one item for each call of the program.
        evaluate: of `isjax.experiment.evaluation.make_evaluation`.
    """

    program: Program
    data: Iterator[Batch]
    evaluate: Evaluate


class Outputs(NamedTuple):
    """Where the results of a run go.

    Attributes:
        writer: of the lines of metrics.
        checkpoints: of the state; None = none are saved.
        on_draw: called with each step's number and draw, as NumPy arrays, while later steps run.
        on_chosen: called with the ids of the batches to load, int32[steps, b], while they are
            still being computed.
    """

    writer: Writer | NullWriter
    checkpoints: Checkpoints | None = None
    on_draw: OnDraw | None = None
    on_chosen: Callable[[Array], None] | None = None


def train(
    plan: Plan,
    work: Work,
    outputs: Outputs,
    state: TrainState,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> None:
    """Trains until the plan is done or `should_stop()`; updates `progress` in place.

    Args:
        plan: when the run evaluates, writes, saves and ends.
        work: the computations.
        outputs: where the results go.
        state: of the step at which `progress` stands; donated.
        progress: how far the run has come.
        should_stop: asked before each call of the program and within evaluations.

    Raises:
        FloatingPointError: with `plan.stop_on_nonfinite`, at an evaluation, if every step since the
            last one was skipped.
    """
    bar = tqdm(
        total=plan.num_steps,
        initial=progress.step,
        desc=plan.name,
        unit="step",
        disable=None if is_main() else True,
    )
    with bar:
        _Loop(plan, work, outputs, progress, should_stop, bar).run(state)


@dataclasses.dataclass
class _Loop:
    """The parts of a run that training, evaluation and saving share."""

    plan: Plan
    work: Work
    outputs: Outputs
    progress: Progress
    should_stop: Callable[[], bool]
    bar: tqdm

    def run(self, state: TrainState) -> None:
        """Evaluates, saves and trains in turn until the end."""
        plan, progress, evaluations = self.plan, self.progress, self.plan.evaluations()
        while True:
            due = progress.step in evaluations and progress.evaluated < progress.step
            best = due and self.evaluate(state)
            ended = progress.step >= plan.num_steps or self.should_stop()
            if best or ended or plan.saves_at(progress.step):
                self.save(state, best)
            if ended:
                return
            state = self.advance(state, plan.next_pause(progress.step))

    def advance(self, state: TrainState, stop: int) -> TrainState:
        """Trains up to step `stop`; fetches the metrics of a call while the next one runs."""
        program, on_chosen = self.work.program, self.outputs.on_chosen
        start = time.perf_counter()
        taken, pending = self.progress.step, None
        while taken < stop and not self.should_stop():
            num = program.steps if program.steps <= stop - taken else 1
            steps = program.one if num == 1 else program.several
            state, output = steps(state, next(self.work.data))
            if on_chosen:
                on_chosen(output.chosen)
            if pending:
                self.record(pending)
            taken, pending = taken + num, output
        if pending:
            self.record(pending)
        self.progress.seconds += time.perf_counter() - start
        return state

    def record(self, output: Output) -> None:
        """Adds the metrics of a call's steps, and passes on their draws."""
        progress, on_draw = self.progress, self.outputs.on_draw
        rows, draws = jax.device_get((output.metrics, output.draw if on_draw else None))
        for number, row in enumerate(rows.tolist()):
            progress.add(dict(zip(self.work.program.names, row, strict=True)))
            if on_draw:
                on_draw(progress.step, jax.tree.map(lambda x: x[number], draws))  # noqa: B023
            if progress.step % self.plan.log_every == 0:
                self.outputs.writer.write("training", progress.log())
        self.bar.update(progress.step - self.bar.n)

    def evaluate(self, state: TrainState) -> bool:
        """Writes the line of an evaluation, and returns whether its loss is the lowest so far."""
        progress = self.progress
        start = time.perf_counter()
        evaluated = self.work.evaluate(state, self.should_stop)
        progress.eval_seconds += time.perf_counter() - start
        if evaluated is None:  # interrupted; repeated when the run is resumed
            return False
        steps = progress.step - progress.evaluated
        skipped = progress.since_evaluation.get("skipped", 0)
        line = progress.evaluation(evaluated)
        self.outputs.writer.write("evaluation", line)
        self.bar.set_postfix_str(describe(line))
        if self.bar.disable:
            took = f"{progress.seconds:.1f} s"
            print(f"step {progress.step}, {took}: {describe(line)}", flush=True)
        if self.plan.stop_on_nonfinite and skipped == steps:
            raise FloatingPointError(
                f"stopped at step {progress.step}: each of the {steps} steps since the last "
                "evaluation was skipped, because losses or gradients were not finite; lower the "
                "learning rate, clip the gradient, or look at the data"
            )
        loss = line.get("valid_loss", line["test_loss"])
        best = loss < progress.best_loss  # False for NaN
        if best:
            progress.best_loss = loss
        return best

    def save(self, state: TrainState, best: bool) -> None:
        """Saves a checkpoint, unless this step has one."""
        checkpoints, progress = self.outputs.checkpoints, self.progress
        if checkpoints and checkpoints.step != progress.step:
            progress.files = self.outputs.writer.sizes()
            loss = progress.best_loss if best else math.inf
            checkpoints.save(state, dataclasses.asdict(progress), loss)


def describe(line: dict[str, Any]) -> str:
    """An evaluation in a few words.

    Args:
        line: of `metrics.jsonl`.

    Returns:
        Losses and scores; also the counts of non-finite losses and skipped steps, if any.
    """
    shown = ("train_loss", "test_loss", "test_accuracy", "test_perplexity")
    text = ", ".join(f"{name.replace('_', ' ')} {line[name]:.4f}" for name in shown if name in line)
    if line["nonfinite"] or line["skipped"]:
        skipped = f"{line['skipped']} of {line['step']} steps skipped"
        text += f", NOT FINITE: {line['nonfinite']} losses, {skipped}"
    return text


def _means(sums: dict[str, float], steps: int) -> dict[str, float]:
    totals = {*_COUNTED, *_EXAMPLES}
    return {name: total / steps for name, total in sums.items() if name not in totals}
