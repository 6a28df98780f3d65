"""The page of a comparison: one HTML file that needs no other, and its figures as PNG."""

import base64
import inspect
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax import recipes
from isjax.reporting.behaviour import Behaviour, load_behaviour
from isjax.reporting.behaviour_figures import (
    draw_behaviour,
    draw_draws,
    draw_predictions,
    draw_time,
)
from isjax.reporting.figures import draw_curves
from isjax.reporting.runs import TRAIN_LOSS, Group, Run, by_group, final, reference
from isjax.reporting.tables import (
    Outcome,
    Summary,
    columns,
    explanation,
    interval,
    notes,
    summarise,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_page"]

# What is drawn in these colours takes those of the page, which has two themes.
_THEMED = {
    "#222222": "--ink",
    "#444444": "--strong",
    "#888888": "--muted",
    "#bbbbbb": "--faint",
    "#e6e6e6": "--line",
    "#0072b2": "--blue",
    "#d55e00": "--vermilion",
    "#009e73": "--green",
    "#cc79a7": "--pink",
    "#56b4e9": "--sky",
    "#e69f00": "--orange",
    "#f0e442": "--yellow",
}
_INK = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
_TEXT: Any = dict.fromkeys(_INK, "#222222") | {"axes.edgecolor": "#888888"}
_LONGEST = 140  # characters of an example


def write_page(runs: Sequence[Run], folder: str | Path) -> Path:
    """Writes `index.html` and the figures, in place of what an earlier report left there.

    Args:
        runs: on one data set; they may still be going.
        folder: made if need be.

    Returns:
        The path of the page.

    Raises:
        ImportError: without matplotlib, jinja2 or pillow.
        OSError: if the folder cannot be written.
    """
    try:
        import jinja2
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError(f"no page without {error.name}; pip install 'isjax[run]'") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups = by_group(runs)
    behaviours = {g: [load_behaviour(run) for run in some] for g, some in groups.items()}
    with rc_context(_TEXT):
        drawn = {
            "curves": draw_curves(runs),
            "time": draw_time(groups, behaviours),
            "behaviour": draw_behaviour(behaviours),
            "draws": draw_draws(behaviours),
            "predictions": draw_predictions(behaviours),
        }
        figures = {name: _save(figure, name, folder) for name, figure in drawn.items() if figure}
    for name in drawn.keys() - figures.keys():  # of an earlier report
        (folder / f"{name}.png").unlink(missing_ok=True)
    summaries = summarise(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isjax.reporting", "."), autoescape=True, trim_blocks=True
    )
    html = environment.get_template("page.html").render(
        dataset=runs[0].dataset,
        counted=f"{len(runs)} run{'s' if len(runs) > 1 else ''} of "
        + ", ".join(dict.fromkeys(group.method for group in groups)),
        methods=_methods(groups),
        verdicts=_verdicts(summaries, groups),
        table=_table(summaries),
        explanation=explanation(runs),
        notes=notes(runs),
        figures=figures,
        galleries=_galleries(behaviours),
    )
    path = folder / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def _save(figure: "Figure", name: str, folder: Path) -> str:
    """Writes a PNG, and returns the figure as SVG in the colours of the page."""
    from matplotlib import rc_context

    figure.savefig(folder / f"{name}.png", facecolor="white")
    file = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # ids that differ between figures
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'id="(?!m[0-9a-f]{10}|p[0-9a-f]{10})', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)(?!m[0-9a-f]{10}|p[0-9a-f]{10})', rf"\g<1>{name}-", svg)
    return re.sub(
        "|".join(_THEMED), lambda found: f"var({_THEMED[found[0].lower()]})", svg, flags=re.I
    )


def _methods(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """What each of the methods is, by the first line of its docstring."""
    names = dict.fromkeys(group.method for group in groups if group.method in recipes.__all__)
    about = {name: inspect.getdoc(getattr(recipes, name)) or "" for name in names}
    return [(name, text.partition("\n")[0].replace("`", "")) for name, text in about.items()]


def _verdicts(summaries: Sequence[Summary], groups: Mapping[Group, Sequence[Run]]) -> list[str]:
    """What each method comes to beside uniform draws, a sentence each; none before all is done."""
    uniform = reference(groups)
    base = next((s for s in summaries if s.group == uniform), None)
    if base is None or not all(map(_ended, groups[base.group])):
        return []
    name, verdicts = base.group.label, []
    ends = f"{name}'s final train loss"
    for summary in summaries:
        if summary.group == uniform or not all(map(_ended, groups[summary.group])):
            continue
        times = summary.train_loss.time or ()
        reached = [time for time in times if np.isfinite(time)]
        diverged = np.sum(~np.isfinite(summary.train_loss.final))
        if diverged:
            some = f" ({diverged} of {len(times)} seeds)" if diverged < len(times) else ""
            first = f"diverged: its final train loss is not finite{some}"
        elif not np.isfinite(base.train_loss.final).all():
            first = f"ends at a train loss of {_mean(summary.train_loss)}, where {name} diverged"
        elif reached:
            some = "" if len(reached) == len(times) else f" ({len(reached)} of {len(times)} seeds)"
            share = np.mean(reached)
            first = f"reaches {ends} in {share:.2f} of the time that {name} takes{some}"
        elif _mean(summary.train_loss) == _mean(base.train_loss):
            first = f"ends at {ends}, {_mean(base.train_loss)}"
        else:
            first = f"never reaches {ends}"
        label = summary.score.metric.label
        verdicts.append(
            f"{summary.group.label} {first}; its final {label} is {_mean(summary.score)}, "
            f"{name}'s {_mean(base.score)}."
        )
    return verdicts


def _ended(run: Run) -> bool:
    """Whether it is finished, or has diverged, as one that was stopped for NaN."""
    return run.finished or not np.isfinite(final([run], TRAIN_LOSS.name)).all()


def _mean(outcome: Outcome) -> str:
    return f"{np.mean(outcome.final):.4g}"


def _table(summaries: Sequence[Summary]) -> list[list[str]]:
    """The rows of the table, the heading first, with intervals after the final values."""
    table = columns(summaries)
    for place, name in ((6, "score"), (5, "train_loss")):
        ranges = [interval(getattr(summary, name).final) for summary in summaries]
        if any(ranges):
            cells = [f"{r[0]:.4g} to {r[1]:.4g}" if r else "" for r in ranges]
            table.insert(place, ["95% interval of the mean", *cells])
    return [list(row) for row in zip(*table, strict=True)]


def _galleries(behaviours: Mapping[Group, Sequence[Behaviour]]) -> list[dict[str, Any]]:
    """Of each method, the examples that its first seed drew most and least."""
    galleries = []
    for group, some in behaviours.items():
        examples = next((b.examples for b in some if b.examples.get("ids", np.empty(0)).size), {})
        if not examples or group.method in ("uniform", "reshuffled"):
            continue
        cards = [_card(examples, i) for i in range(len(examples["ids"]))]
        half = len(cards) // 2
        galleries.append({"name": group.label, "most": cards[:half], "least": cards[half:]})
    return galleries


def _card(examples: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    card: dict[str, Any] = {"id": examples["ids"][i], "count": examples["count"][i]}
    card["loss"] = f"{examples['loss'][i]:.3g}"
    card |= {name: str(examples[name][i]) for name in ("label", "prediction") if name in examples}
    if "text" in examples:
        text = str(examples["text"][i])
        card["text"] = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    elif "x" in examples:
        card |= _shown(examples["x"][i])
    return card


def _shown(x: np.ndarray) -> dict[str, Any]:
    """An image as PNG, a signal as the points of a line; nothing of what is neither."""
    if x.dtype == np.uint8 and x.ndim in (2, 3) and x.shape[2:] in ((), (1,), (3,), (4,)):
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(x[..., 0] if x.shape[2:] == (1,) else x).save(file, "PNG")
        return {"image": base64.b64encode(file.getvalue()).decode()}
    values = np.asarray(x, float).squeeze()
    if values.ndim != 1 or not 2 <= len(values) <= 4096 or not np.isfinite(values).all():
        return {}
    across = np.linspace(2, 98, len(values))
    spread = np.ptp(values) or 1.0
    down = 58 - 56 * (values - values.min()) / spread
    return {"line": " ".join(f"{u:.1f},{v:.1f}" for u, v in zip(across, down, strict=True))}
