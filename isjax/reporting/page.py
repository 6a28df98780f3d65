"""HTML page of a report: one file that needs no other, and its figures as PNG."""

import base64
import inspect
import io
import xml.etree.ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isjax import recipes
from isjax.reporting.gallery import MAX_CHARACTERS
from isjax.reporting.learning_curves import draw_learning_curves
from isjax.reporting.notes import configuration, notes
from isjax.reporting.run_artifacts import RunArtifacts, load_artifacts
from isjax.reporting.runs import TEST_LOSS, TRAIN_LOSS, Group, Run, by_group, final, reference
from isjax.reporting.sampler_figures import (
    draw_diagnostics,
    draw_histograms,
    draw_score_against_loss,
    draw_step_time,
)
from isjax.reporting.tables import (
    Outcome,
    Summary,
    columns,
    explanation,
    interval,
    summarise,
)
from isjax.reporting.text import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_page"]

# Colours of the figures, each with the CSS variable that replaces it: a page has two themes.
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


def write_page(runs: Sequence[Run], folder: str | Path, origin: str = "isjax") -> Path:
    """Writes `index.html` and the figures of a report.

    Overwrites an earlier report in the folder and deletes those of its figures that are out of
    date.

    Args:
        runs: Runs on one data set, at least one; they may still be going.
        folder: Output folder; it is created if missing.
        origin: Version, date and command that made the report, shown at the end of the page.

    Returns:
        The path of the page.

    Raises:
        ImportError: Matplotlib, Jinja2 or Pillow is not installed.
        OSError: The folder cannot be written.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"no page without {error.name}; pip install '.[run]' in a checkout of isjax"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups = by_group(runs)
    artifacts = {g: [load_artifacts(run) for run in of_group] for g, of_group in groups.items()}
    summaries = summarise(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isjax.reporting", "."), autoescape=True, trim_blocks=True
    )
    html = environment.get_template("page.html").render(
        dataset=shown(runs[0].dataset),
        num_runs=len(runs),
        names=list(dict.fromkeys(shown(group.method) for group in groups)),
        methods=_methods(groups),
        verdicts=_verdicts(summaries, groups),
        table=_table(summaries),
        explanation=explanation(runs),
        notes=notes(runs),
        figures=_write_figures(runs, groups, artifacts, folder),
        galleries=_galleries(artifacts),
        configuration=configuration(runs),
        origin=shown(origin, 1000),
    )
    path = folder / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


def _write_figures(
    runs: Sequence[Run],
    groups: Mapping[Group, Sequence[Run]],
    artifacts: Mapping[Group, Sequence[RunArtifacts]],
    folder: Path,
) -> dict[str, str]:
    """Writes each figure as PNG and returns it as SVG; deletes PNGs of figures without data."""
    from matplotlib import rc_context

    with rc_context(_TEXT):
        figures = {
            "curves": draw_learning_curves(runs),
            "time": draw_step_time(groups, artifacts),
            "diagnostics": draw_diagnostics(artifacts),
            "draws": draw_histograms(artifacts),
            "predictions": draw_score_against_loss(artifacts),
        }
        written = {}
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                figure.savefig(path, facecolor="white")
                figure.set_layout_engine("none")  # keep the layout: computing it again is slow
                written[name] = _svg(figure, name)
    return written


def _svg(figure: "Figure", name: str) -> str:
    """Returns a figure as SVG for the page: it fills the width and uses the colours of the theme.

    Every id begins with `name`, since all figures are in one document.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # the same ids at every call
        figure.savefig(file, format="svg", transparent=True)
    root = xml.etree.ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = _local_name(element.tag)  # HTML needs no namespaces
        element.attrib = {
            _local_name(key): _adapt_attribute(_local_name(key), value, name)
            for key, value in element.attrib.items()
        }
    del root.attrib["width"], root.attrib["height"]
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    return xml.etree.ElementTree.tostring(root, encoding="unicode")


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _adapt_attribute(key: str, value: str, name: str) -> str:
    """Prefixes ids and references to them with `name`; replaces colours by CSS variables."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if key == "style":
        for colour, variable in _THEMED.items():
            value = value.replace(colour, f"var({variable})")
    return value.replace("url(#", f"url(#{name}-")


def _methods(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """Returns the recipes among the methods, each with the summary line of its docstring."""
    names = dict.fromkeys(group.method for group in groups if group.method in recipes.__all__)
    about = {name: inspect.getdoc(getattr(recipes, name)) or "" for name in names}
    return [(name, text.partition("\n")[0].replace("`", "")) for name, text in about.items()]


def _verdicts(summaries: Sequence[Summary], groups: Mapping[Group, Sequence[Run]]) -> list[str]:
    """Compares each finished method with uniform in words; empty until uniform has finished."""
    uniform = reference(groups)
    base = next((summary for summary in summaries if summary.group == uniform), None)
    if base is None or not all(map(_ended, groups[base.group])):
        return []
    finished = (s for s in summaries if s.group != uniform and all(map(_ended, groups[s.group])))
    return [
        *([f"{base.group.label} {diverged}."] if (diverged := _diverged(base)) else []),
        *(f"{s.group.label} {_against(base, s)}. {_compared(base, s)}." for s in finished),
    ]


def _compared(base: Summary, summary: Summary) -> str:
    """Compares final values of the test metric; says when they may differ by noise alone."""
    values, others = summary.score.final, base.score.final
    text = f"Final {summary.score.metric.label}: {_mean(summary.score)} against {_mean(base.score)}"
    if values == others or not np.isfinite([*values, *others]).all():
        return text
    seeds = min(len(values), len(others))
    if seeds == 1:
        return f"{text}, one seed: it may be noise, so compare three or more"
    if _may_be_noise(values, others):
        return f"{text}, {seeds} seeds: within noise"
    return f"{text}, {seeds} seeds: more than noise"


def _may_be_noise(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether Welch's t-test of two means has a p value of at least 5%."""
    from scipy.stats import ttest_ind_from_stats

    if np.ptp(one) == np.ptp(other) == 0:
        return False
    moments = [f(x) for x in (one, other) for f in (np.mean, lambda x: np.std(x, ddof=1), len)]
    return bool(ttest_ind_from_stats(*moments, equal_var=False).pvalue >= 0.05)


def _diverged(summary: Summary) -> str:
    """Says that runs lost finite examples; empty if none did."""
    losses = summary.train_loss.final
    diverged = np.sum(~np.isfinite(losses))
    some = f" ({diverged} of {len(losses)} seeds)" if diverged < len(losses) else ""
    return f"diverged: its final train loss is not finite{some}" if diverged else ""


def _against(base: Summary, summary: Summary) -> str:
    """Says how soon a method reaches the final train loss of the baseline."""
    name = base.group.label
    goal = f"{name}'s final train loss"
    times = summary.train_loss.time or ()
    reached = [time for time in times if np.isfinite(time)]
    if diverged := _diverged(summary):
        return diverged
    if not np.isfinite(base.train_loss.final).all():
        return f"ends at a train loss of {_mean(summary.train_loss)}, but {name} diverged"
    if reached:
        some = "" if len(reached) == len(times) else f" ({len(reached)} of {len(times)} seeds)"
        return f"reaches {goal} in {np.mean(reached):.0%} of {name}'s training time{some}"
    if _mean(summary.train_loss) == _mean(base.train_loss):
        return f"ends at {goal}, {_mean(base.train_loss)}"
    return f"never reaches {goal}"


def _ended(run: Run) -> bool:
    """Whether a run has finished or, with a non-finite train loss, has diverged."""
    return run.finished or not np.isfinite(final([run], TRAIN_LOSS.name)).all()


def _mean(outcome: Outcome) -> str:
    return f"{np.mean(outcome.final):.4g}"


def _table(summaries: Sequence[Summary]) -> list[list[str]]:
    """Returns the rows of the table, headings first; intervals follow the final values."""
    finals = {
        f"final {summaries[0].score.metric.label}": [s.score.final for s in summaries],
        f"final {TEST_LOSS.label}": [s.test_loss or s.score.final for s in summaries],
        f"final {TRAIN_LOSS.label}": [s.train_loss.final for s in summaries],
    }
    table = []
    for column in columns(summaries):
        table.append(column)
        ranges = [interval(values) for values in finals.get(column[0], ())]
        if any(ranges):
            cells = [f"{r[0]:.4g} to {r[1]:.4g}" if r else "" for r in ranges]
            table.append(["95% interval of the mean", *cells])
    return [list(row) for row in zip(*table, strict=True)]


def _galleries(artifacts: Mapping[Group, Sequence[RunArtifacts]]) -> list[dict[str, Any]]:
    """Returns the gallery of each method's first seed that has one; uniform draws have none."""
    galleries = []
    for group, of_group in artifacts.items():
        examples = next(
            (a.examples for a in of_group if a.examples.get("ids", np.empty(0)).size), {}
        )
        if not examples or group.method in ("uniform", "reshuffled"):
            continue
        cards = [_card(examples, i) for i in range(len(examples["ids"]))]
        half = len(cards) // 2
        galleries.append({"name": group.label, "most": cards[:half], "least": cards[half:]})
    return galleries


def _card(examples: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    """Returns the fields of the card of example i."""
    card: dict[str, Any] = {"id": examples["ids"][i], "count": examples["count"][i]}
    card["loss"] = f"{examples['loss'][i]:.3g}"
    card |= {
        name: shown(examples[name][i], MAX_CHARACTERS)
        for name in ("label", "prediction")
        if name in examples
    }
    if "text" in examples:
        card["text"] = shown(examples["text"][i], MAX_CHARACTERS + 1, newlines=True)
    elif "x" in examples:
        card |= _picture(examples["x"][i])
    return card


def _picture(x: np.ndarray) -> dict[str, str]:
    """Returns an image as `image`, a PNG, and a signal as `line`, its points; else nothing."""
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
