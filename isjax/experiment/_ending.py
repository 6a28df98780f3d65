"""The end of a run: its last message, hints, and the examples that failed."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

from isjax.experiment._setup import Setup
from isjax.experiment.config import ConfigDict
from isjax.experiment.loop import Progress, describe
from isjax.parallel.processes import is_main
from isjax.reporting.failures import Failures, describe_failures, load_failures, save_failures
from isjax.tasks import Task

__all__ = ["check_skipped", "hint", "make_on_failures", "name_failures", "report"]

_OF_A_GUESS = 0.99  # a train loss above this share of a guess's is no better than a guess


def report(setup: Setup, progress: Progress, saved: bool) -> None:
    """Prints how the run ended, with the examples that failed and a hint if it learnt nothing.

    Args:
        setup: of the run.
        progress: how far the run has come.
        saved: whether there are checkpoints.

    Raises:
        FloatingPointError: if the run is over and skipped too many steps.
    """
    num_steps = setup.plan.num_steps
    if progress.evaluated < num_steps:
        kept = "saved; the same command resumes" if saved else "no checkpoints, all lost"
        print(f"asked to stop at step {progress.step} of {num_steps}; {kept}", flush=True)
        return
    print(_summary(setup.config, progress.line))
    name_failures(setup.workdir)
    guess = setup.task.initial_loss
    if guess == Task._field_defaults["initial_loss"]:  # a task that does not say
        guess = math.inf
    text = hint(progress.first_loss, progress.line["train_loss"], guess, setup.config.clip_norm)
    if text:
        print(f"hint: {text}", flush=True)
    check_skipped(setup.config, progress.line)


def hint(first: float | None, last: float, guess: float, clip_norm: float) -> str:
    """Says what to try where a run has collapsed.

    Args:
        first: train loss before training; None = unknown.
        last: train loss at the end.
        guess: loss of a guess; infinite = unknown.
        clip_norm: `config.clip_norm`.

    Returns:
        A sentence without full stop; empty if the last loss is below the first and the guess's.
    """
    if first is not None and not last < first:
        finding = f"not below {first:.4g}, where it began"
    elif not last < _OF_A_GUESS * guess:
        finding = f"that of a guess is {guess:.4g}"
    else:
        return ""
    clip = (
        "" if clip_norm else "clip the gradient (config.clip_norm=1, above all in small batches), "
    )
    return (
        f"the train loss ended at {last:.4g}, {finding}; {clip}lower config.learning_rate, or "
        "scale inputs that are far from 0 to 1"
    )


def check_skipped(config: ConfigDict, last: dict[str, Any]) -> None:
    """Refuses a run that skipped too many steps.

    Args:
        config: of the run.
        last: line of its last evaluation.

    Raises:
        FloatingPointError: if more than the share `config.max_skipped` of the steps was skipped.
    """
    if last["skipped"] > config.max_skipped * last["step"]:
        raise FloatingPointError(
            f"{last['skipped']} of {last['step']} steps were skipped, because losses or gradients "
            f"were not finite, which is more than config.max_skipped = {config.max_skipped:g} of "
            "them; repair the data, lower the learning rate, or accept more"
        )


def make_on_failures(workdir: pathlib.Path) -> Callable[[dict[str, Failures]], None]:
    """Makes the function that keeps the failures of each evaluation in the folder of the run.

    Args:
        workdir: folder of the run.
    """
    return lambda found: save_failures(workdir, found) if is_main() else None


def name_failures(workdir: pathlib.Path) -> None:
    """Prints which examples failed at the last evaluation.

    Args:
        workdir: folder of the run.
    """
    for sentence in describe_failures(load_failures(workdir)):
        print(f"note: {sentence}", flush=True)


def _summary(config: ConfigDict, last: dict[str, Any]) -> str:
    return (
        f"{config.method}, seed {config.seed}: {describe(last)}\n"
        f"  {last['step']} steps in {last['seconds']:.1f} s of training "
        f"({last['seconds'] / last['step'] * 1e3:.2f} ms a step; besides, "
        f"{last['compile_seconds']:.1f} s of compilation and {last['eval_seconds']:.1f} s of "
        f"evaluation); {last['examples_forward']:,} examples forward, "
        f"{last['examples_backward']:,} backward"
    )
