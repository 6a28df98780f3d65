"""Notes below the table of a report, and the settings in which its runs differ."""

import json
from collections.abc import Iterable, Mapping, Sequence

from isjax.reporting.failures import describe_failures, load_failures
from isjax.reporting.runs import Group, Run, by_group, final, reference
from isjax.reporting.text import shown

__all__ = ["configuration", "notes"]

# Settings that set runs of a report apart, and those that change no result.
_IDENTITY = ("method", "budget", "seed")
_EXPECTED = (
    *_IDENTITY,
    *("checkpoint_every", "data_dir", "distributed", "log_every", "mesh", "wandb"),
    *("num_steps", "artifacts", "steps_per_call", "in_memory"),
)


def notes(runs: Sequence[Run]) -> list[str]:
    """Lists reasons why the rows of the table may not be comparable.

    Args:
        runs: Runs of the table, at least one.

    Returns:
        A sentence per reason, without capital and full stop.
    """
    groups = by_group(runs)
    found = _notes_on_uniform(runs, groups)
    unfinished = [run for run in runs if run.metrics["step"][-1] != run.total_steps]
    lengths = {run.num_steps for run in runs} | {int(run.metrics["step"][-1]) for run in unfinished}
    if len(lengths) > 1:
        counts = ", ".join(map(str, sorted(lengths)))
        found.append(f"the runs have different numbers of steps: {counts}")
    for run in runs:
        if not run.finished:
            found.append(
                f"{_path(run)} is at step {run.metrics['step'][-1]:.0f} of {run.total_steps}"
            )
        found += _notes_on_losses(run)
    for key, group in groups.items():
        if len({run.seed for run in group}) < len(group):
            found.append(
                f"{key.label} has several runs with the same seed; each counts as one seed"
            )
        differing = _differing_settings(group)
        if differing:
            found.append(
                f"the runs of {key.label} differ in {', '.join(map(shown, differing))}, and yet "
                "count as seeds of one method"
            )
    return found


def _notes_on_losses(run: Run) -> list[str]:
    """Lists what was not finite in a run, and whether it learnt nothing."""
    found, step = [], run.metrics["step"][-1]
    if run.skipped:
        found.append(
            f"{_path(run)}: {run.skipped} of {step:.0f} steps skipped, because losses or gradients "
            "were not finite"
        )
    failures = describe_failures(load_failures(run.path))
    found += [f"{_path(run)}: {sentence}" for sentence in failures]
    first, last = run.metrics["train_loss"][[0, -1]]
    if run.metrics["step"][0] == 0 < step and not last < first:
        found.append(
            f"{_path(run)}: the train loss is at {last:.4g}, not below {first:.4g}, where it "
            "began; clip the gradient, or lower the learning rate"
        )
    return found


def _path(run: Run) -> str:
    return shown(run.path, 1000)


def _differing_settings(runs: Sequence[Run], ignored: Iterable[str] = _EXPECTED) -> list[str]:
    """Lists the settings in which runs differ.

    Args:
        runs: Runs with their settings.
        ignored: Settings that are left out, with all that begins with one and a dot.

    Returns:
        Dotted names, sorted.
    """
    names = sorted(set().union(*(run.config for run in runs)))
    kept = [name for name in names if not {name, name.partition(".")[0]} & set(ignored)]
    return [n for n in kept if any(_differ(run.config, runs[0].config, n) for run in runs)]


def _differ(one: Mapping[str, object], other: Mapping[str, object], name: str) -> bool:
    return (name in one) != (name in other) or one.get(name) != other.get(name)


def configuration(runs: Sequence[Run]) -> list[list[str]]:
    """Tabulates the settings in which runs differ, besides their seeds.

    Args:
        runs: Runs of the report, at least one.

    Returns:
        Rows of text, a heading and one per method, budget and configuration; empty if the runs
        differ in nothing else.
    """
    names = _differing_settings(runs, _IDENTITY)
    if not names:
        return []
    rows: dict[tuple[str, ...], list[int]] = {}
    for group, of_group in by_group(runs).items():
        for run in of_group:
            missing = "\N{EN DASH}"
            values = (json.dumps(run.config[n]) if n in run.config else missing for n in names)
            rows.setdefault((group.label, *map(shown, values)), []).append(run.seed)
    heading = ["method", "seeds", *map(shown, names)]
    cells = [[row[0], ", ".join(map(str, seeds)), *row[1:]] for row, seeds in rows.items()]
    return [heading, *cells]


def _notes_on_uniform(runs: Sequence[Run], groups: Mapping[Group, Sequence[Run]]) -> list[str]:
    """Lists what is missing of the baseline."""
    uniform = reference(groups)
    if uniform is None:
        run = f"method uniform, dataset {shown(runs[0].dataset)}, {runs[0].num_steps} steps"
        return [f"no uniform run to compare with; add one ({run})"]
    found = []
    if not any(final(groups[uniform], "seconds")):
        found.append(f"{uniform.label} has not trained yet; wait for its next evaluation")
    if uniform.budget != 1:
        found.append(f"no uniform run at the full budget; {uniform.label} is the baseline instead")
    return found
