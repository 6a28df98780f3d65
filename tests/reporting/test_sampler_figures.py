import io
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from isjax.reporting.run_artifacts import RunArtifacts
from isjax.reporting.runs import Group, Run
from isjax.reporting.sampler_figures import (
    draw_diagnostics,
    draw_histograms,
    draw_score_against_loss,
    draw_step_time,
)
from isjax.reporting.timeline import PARTS

UNIFORM, LOSS = Group("uniform", 1.0), Group("loss", 1.0)


@pytest.fixture(autouse=True)
def strict():
    """Numbers that cannot be drawn must not cause warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def behaved(steps=None, evaluations=None, draws=None, seconds=None):
    columns = (
        {k: np.asarray(v, float) for k, v in (c or {}).items()} for c in (steps, evaluations)
    )
    arrays = {name: np.asarray(values) for name, values in (draws or {}).items()}
    return RunArtifacts(*columns, arrays, {}, seconds or {})


def drawn(scores, losses=None, probs=None, count=(0, 1, 2)):
    scores = np.asarray(scores, np.float32)
    losses = scores if losses is None else np.asarray(losses, np.float32)
    probs = np.ones(len(scores)) if probs is None else probs
    return behaved(
        draws={
            "scores": scores,
            "losses": losses,
            "probs": np.asarray(probs, np.float32),
            "count": np.asarray(count, np.int32),
        }
    )


def svg(figure):
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def visible(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


# Step time


def run_of(group, steps, seconds):
    metrics = {"step": np.array([0, steps]), "seconds": np.array([0.0, seconds])}
    return Run(Path("x"), group.method, 0, steps, "mnist", metrics)


def bars_of(figure):
    """Widths of each part's bars, from above; each begins where the last one ends."""
    (ax,) = figure.axes
    widths, left = {}, 0.0
    for container in ax.containers:
        widths[container.get_label()] = np.array([bar.get_width() for bar in container])
        np.testing.assert_allclose([bar.get_x() for bar in container], left)
        left = left + widths[container.get_label()]
    return widths, [text.get_text().strip() for text in ax.texts]


def test_a_step_has_the_measured_seconds_of_its_parts_and_the_rest_of_the_clock():
    runs = {
        UNIFORM: [run_of(UNIFORM, 100, 0.2), run_of(UNIFORM, 200, 0.8)],  # 0.5 s / 150 steps
        LOSS: [run_of(LOSS, 100, 0.5)] * 3,
    }
    seeds = [{"train": 1e-3}, {"train": 2e-3, "draw": 1e-3}]
    artifacts = {
        UNIFORM: [behaved(seconds=s) for s in seeds],
        LOSS: [behaved(), behaved(seconds={"score": 5e-3, "train": 1.5e-3}), behaved()],
    }
    figure = draw_step_time(runs, artifacts)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["uniform", "loss"]
    widths, texts = bars_of(figure)
    assert list(widths)[-1] == "waiting" and len(widths) == len(PARTS) + 1
    np.testing.assert_allclose(widths["training"], [1.5, 1.5])  # as much as the work is
    np.testing.assert_allclose(widths["drawing"], [0.5, 0])
    np.testing.assert_allclose(widths["scoring"], [0, 5])
    # Operations of 2 ms in 3.33 ms; operations of 6.5 ms in 5 ms, some at the same time.
    np.testing.assert_allclose(widths["waiting"], [1e3 * 0.5 / 150 - 2, 0], atol=1e-9)
    assert texts == ["3.33 ms", "5 ms"]
    assert svg(figure).count("<path") > 10
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1  # none of its names is cut


def test_methods_without_a_step_time_are_left_out():
    runs = {UNIFORM: [run_of(UNIFORM, 0, 0.0)], LOSS: [run_of(LOSS, 10, 1.0)]}
    known = behaved(seconds={"train": 1.0})
    assert draw_step_time(runs, {UNIFORM: [behaved()], LOSS: [behaved()]}) is None
    assert draw_step_time(runs, {UNIFORM: [known], LOSS: [behaved()]}) is None  # has not trained
    figure = draw_step_time(runs, {UNIFORM: [known], LOSS: [known]})
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["loss"]


# Diagnostics


def test_diagnostics_are_means_over_seeds_with_a_band():
    some = [
        behaved({"step": [10, 20, 30], "ess": [1.0, 0.8, 0.6], "max_weight": [1, 2, 3]}),
        behaved({"step": [10, 20], "ess": [0.5, 0.2]}),  # still going
    ]
    evaluations = {"step": [0, 20, 40], "coverage": [0, 0.5, 0.7]}
    figure = draw_diagnostics({LOSS: some, UNIFORM: [behaved(evaluations=evaluations)]})
    ess, weight, coverage = visible(figure)
    assert ess.get_title(loc="left").startswith("effective sample size")
    np.testing.assert_allclose(ess.get_lines()[0].get_xydata(), [(10, 0.75), (20, 0.5)])
    (band,) = ess.collections
    assert {(10, 0.5), (10, 1.0), (20, 0.2), (20, 0.8)} <= set(
        map(tuple, band.get_paths()[0].vertices)
    )
    np.testing.assert_allclose(weight.get_lines()[0].get_ydata(), [1, 2, 3])
    assert not weight.collections  # one seed alone has it
    np.testing.assert_allclose(coverage.get_lines()[0].get_xydata(), [(0, 0), (20, 0.5), (40, 0.7)])
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["loss", "uniform"]


@pytest.mark.parametrize(
    "some",
    [[], [behaved()], [behaved({"step": [10], "ess": [1.0]}, {"step": [0], "coverage": [0]})]],
)
def test_fewer_than_two_values_give_no_figure(some):
    assert draw_diagnostics({LOSS: some}) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_diagnostic_leaves_a_gap(bad):
    some = [behaved({"step": [10, 20, 30], "tau": [1, bad, 2], "ess": [bad] * 3})] * 2
    figure = draw_diagnostics({LOSS: some})
    svg(figure)
    tau = visible(figure)[1]
    assert np.isfinite(tau.get_ylim()).all() and tau.get_ylim()[1] > 2


@pytest.mark.slow
def test_each_of_twelve_methods_has_a_line_and_a_legend_entry():
    one = behaved({"step": [1, 2], "ess": [1, 0.5], "tau": [1, 1.4]})
    artifacts = {Group(f"m{i:02}", 1.0): [one] for i in range(12)}
    figure = draw_diagnostics(artifacts)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"m{i:02}" for i in range(12)]
    for ax in visible(figure):
        looks = {(x.get_color(), x.get_marker()) for x in ax.get_lines()}
        assert len(looks) == len(ax.get_lines()) == 12
    svg(figure)


# Histograms


def histograms(ax):
    """Heights and edges of the data set's scores, and heights of those drawn."""
    (bars,) = ax.containers
    heights = np.array([bar.get_height() for bar in bars])
    edges = np.array([bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()])
    return heights, edges, ax.patches[-1].get_xy()[1:-1:2, 1]


def test_histograms_separate_the_data_set_from_the_draws():
    """Scores 1, 2, 3, 4 are drawn in proportion; each is a quarter of the data set."""
    scores = np.repeat([1, 2, 3, 4], [10, 20, 30, 40])
    figure = draw_histograms({LOSS: [drawn(scores, probs=scores / 2.5)]})
    data, edges, as_drawn = histograms(visible(figure)[0])
    inside = np.searchsorted(edges, [1, 2, 3, 4], "right") - 1
    inside[-1] = len(data) - 1  # the last bin has both of its ends
    np.testing.assert_allclose(data[inside], 0.25, rtol=1e-5)
    np.testing.assert_allclose(as_drawn[inside], [0.1, 0.2, 0.3, 0.4], rtol=1e-5)
    assert data.sum() == pytest.approx(1) and as_drawn.sum() == pytest.approx(1)
    _, labels = visible(figure)[0].get_legend_handles_labels()
    assert labels == ["whole data set", "drawn"] and len(figure.legends) == 1


def test_histograms_of_six_decades_equal_numpys_on_a_log_scale():
    rng = np.random.default_rng(0)
    scores = np.float32(10 ** rng.uniform(-6, 0, 3000))
    probs = np.float32(rng.uniform(0.1, 3, 3000))
    bad = [5, 77]
    noisy = scores.copy()
    noisy[bad] = [np.nan, np.inf]
    ax = visible(draw_histograms({LOSS: [drawn(noisy, probs=probs)]}))[0]
    data, edges, as_drawn = histograms(ax)
    assert ax.get_xscale() == "log"
    scores, weights = (np.delete(x, bad).astype(float) for x in (scores, 1 / probs))
    scores = scores.clip(edges[0])  # what is smaller is in the first bin
    np.testing.assert_allclose(
        data, np.histogram(scores, edges, weights=weights / weights.sum())[0], atol=2e-3
    )
    np.testing.assert_allclose(as_drawn, np.histogram(scores, edges)[0] / 2998, atol=2e-3)
    assert abs(data.sum() - 1) < 2e-3 and edges[-1] >= scores.max()


@pytest.mark.parametrize(
    "count",
    [
        np.arange(30) % 7,
        np.full(9, 4),  # all tied
        np.array([0, 61, 61, 3]),
        np.array([0, 5, 2**31 - 1]),
        np.random.default_rng(0).poisson(300, 5000),
    ],
    ids=["few", "tied", "uneven", "huge", "many"],
)
def test_every_example_is_counted_in_bins_of_equal_width(count):
    ax = visible(draw_histograms({LOSS: [drawn(np.arange(30), count=count)]}))[1]
    (bars,) = ax.containers
    heights = [bar.get_height() for bar in bars]
    edges = [bars[0].get_x(), *(bar.get_x() + bar.get_width() for bar in bars)]
    assert sum(heights) == len(count) and len(heights) <= 40
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
    assert edges[0] == -0.5 and (edges[1] - edges[0]) % 1 == pytest.approx(0, abs=1e-6)
    if count.max() < 40:  # a bin for each
        np.testing.assert_array_equal(heights, np.bincount(count))
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize("scores", [[2.0] * 30, [np.nan] * 30, [0.0] * 30, [np.nan] * 29 + [1.0]])
def test_equal_scores_give_no_histogram(scores):
    figure = draw_histograms({LOSS: [drawn(scores)]})
    above, below = visible(figure)
    assert [text.get_text() for text in above.texts] == ["all values are equal"]
    assert below.containers and not figure.legends
    svg(figure)


def test_the_first_seed_with_at_least_20_draws_is_drawn():
    few, enough, more = (drawn(np.arange(n), count=[n]) for n in (19, 20, 25))
    assert draw_histograms({}) is draw_histograms({LOSS: [few, behaved()]}) is None
    assert draw_score_against_loss({LOSS: [few]}) is None
    below = visible(draw_histograms({UNIFORM: [behaved()], LOSS: [few, enough, more]}))[1]
    assert below.containers[0][-1].get_height() == 1 and below.get_xlim()[1] < 24


def test_twelve_methods_have_two_panels_each():
    rng = np.random.default_rng(0)
    some = {Group(f"m{i:02}", 1.0): [drawn(rng.uniform(1, 3, 50))] for i in range(12)}
    figure = draw_histograms(some)
    titles = [ax.get_title(loc="left") for ax in visible(figure)]
    assert sorted(filter(None, titles)) == [f"m{i:02}" for i in range(12)] and len(titles) == 24
    five = draw_score_against_loss(dict(list(some.items())[:5]))
    assert len(visible(five)) == 5 and len(five.axes) == 8  # two rows of four


# Scores against losses


def test_heat_map_shows_every_pair_and_their_correlation():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500).astype(np.float32)
    losses = scores + rng.normal(size=500).astype(np.float32)
    scores[3], losses[4] = np.nan, np.inf
    (ax,) = visible(draw_score_against_loss({LOSS: [drawn(scores, losses)]}))
    good = np.isfinite(scores) & np.isfinite(losses)
    (mesh,) = ax.collections
    assert mesh.get_array().sum() == good.sum() == 498
    r = np.corrcoef(scores[good].astype(float), losses[good].astype(float))[0, 1]
    assert [text.get_text() for text in ax.texts] == [f"r = {r:.2f}"]
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_array_equal(x, y)  # where the score was the loss
    both = (scores[good], losses[good])
    assert x[0] == max(map(np.min, both)) and x[-1] == min(map(np.max, both))


def scales(*draws):
    """The scales of all panels' axes, a panel per method."""
    figure = draw_score_against_loss({Group(str(i), 1.0): [one] for i, one in enumerate(draws)})
    svg(figure)
    return {(ax.get_xscale(), ax.get_yscale()) for ax in visible(figure)}


@pytest.mark.slow
def test_all_axes_are_of_like_kind():
    """Else a line of equality is a curve, and panels side by side cannot be compared."""
    wide, narrow = np.geomspace(0.01, 1.0, 200), np.linspace(1.0, 2.0, 200)
    mostly_zero = np.where(np.arange(200) % 5 < 3, 0.0, wide)
    some_zero = np.where(np.arange(200) % 5 == 0, 0.0, wide)
    one_value = np.where(np.arange(200) % 5 == 0, 0.0, 3.0)
    assert scales(drawn(wide, narrow)) == scales(drawn(narrow, wide)) == {("log", "log")}
    assert scales(drawn(wide, wide), drawn(narrow, narrow)) == {("log", "log")}
    assert scales(drawn(wide, some_zero), drawn(wide, one_value)) == {("log", "log")}
    assert scales(drawn(narrow, narrow)) == {("linear", "linear")}
    assert scales(drawn(wide, mostly_zero), drawn(wide, wide)) == {("linear", "linear")}
    assert scales(drawn(wide, wide - 0.5), drawn(wide, wide)) == {("linear", "linear")}


@pytest.mark.parametrize("losses", [[1.0] * 30, [np.nan] * 30], ids=["equal", "nan"])
def test_equal_or_nan_losses_give_no_heat_map(losses):
    (ax,) = visible(draw_score_against_loss({LOSS: [drawn(np.arange(30), losses)]}))
    assert [text.get_text() for text in ax.texts] == ["all values are equal"] and not ax.collections


def test_methods_with_equal_scores_are_left_out():
    alike, differing = drawn([1.0] * 30), drawn(np.arange(30), np.arange(30)[::-1])
    nan, infinite = drawn([np.nan] * 30), drawn([np.inf, *range(29)])
    assert draw_score_against_loss({UNIFORM: [alike], Group("nan", 1.0): [nan]}) is None
    figure = draw_score_against_loss(
        {UNIFORM: [alike], LOSS: [differing], Group("inf", 1.0): [infinite]}
    )
    assert [ax.get_title(loc="left") for ax in visible(figure)] == ["loss", "inf"]
    assert visible(figure)[0].texts[0].get_text() == "r = -1.00"


@pytest.mark.slow
def test_figures_are_the_same_at_every_call():
    rng = np.random.default_rng(0)
    some = {LOSS: [drawn(rng.uniform(1, 9, 60)), behaved({"step": [1, 2], "ess": [1, 0.5]})]}
    with matplotlib.rc_context({"svg.hashsalt": "x"}):
        for draw in (draw_diagnostics, draw_histograms, draw_score_against_loss):
            assert svg(draw(some)) == svg(draw(some))
