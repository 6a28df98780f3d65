import numpy as np
import pytest

from isjax.reporting.comparison_figure import draw_comparison
from isjax.reporting.runs import SCORES, TRAIN_LOSS


def comparison(**methods):
    """Methods as (train loss, accuracy) per seed; under equal seconds the loss is 0.1 higher."""

    def lines(more):
        return {
            method: [{"train_loss": loss + more, "test_accuracy": right} for loss, right in seeds]
            for method, seeds in methods.items()
        }

    return {"steps": lines(0.0), "examples": lines(0.05), "seconds": lines(0.1)}


def test_a_row_per_method_and_a_panel_per_metric(tmp_path):
    lines = comparison(
        uniform=[(0.5, 0.8), (0.7, 0.6)], a=[(1.0, 0.7), (2.0, 0.8)], b=[(0.2, 0.5), (0.2, 0.5)]
    )
    figure = draw_comparison(lines, (TRAIN_LOSS, SCORES[0]), "a title", tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    loss, error = figure.axes
    # The best in equal seconds is at the top.
    assert [text.get_text() for text in loss.get_yticklabels()] == ["a", "uniform", "b"]
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "final train loss",
        "final test error (fraction)",
    ]
    for i, (equal, more) in enumerate([("steps", 0.0), ("examples", 0.05), ("seconds", 0.1)]):
        for y, (method, expected) in enumerate(
            [("a", [1.0, 2.0]), ("uniform", [0.5, 0.7]), ("b", [0.2, 0.2])]
        ):
            each, mean = loss.get_lines()[6 * i + 2 * y : 6 * i + 2 * y + 2]
            np.testing.assert_allclose(each.get_xdata(), np.add(expected, more), err_msg=equal)
            np.testing.assert_allclose(mean.get_xdata(), np.mean(expected) + more)
            assert abs(mean.get_ydata()[0] - y) < 0.5 and np.all(
                each.get_ydata() == mean.get_ydata()
            )
            assert mean.get_marker() == "osD"[i]
            errors = [1 - line["test_accuracy"] for line in lines[equal][method]]
            np.testing.assert_allclose(error.get_lines()[6 * i + 2 * y].get_xdata(), errors)
    # A line through uniform's mean in equal seconds.
    assert loss.get_lines()[18].get_xdata()[0] == pytest.approx(0.7)
    assert error.get_lines()[18].get_xdata()[0] == pytest.approx(0.3)
    assert loss.get_xscale() == "log" and error.get_xscale() == "linear"
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["equal steps", "equal examples", "equal seconds"]
    assert "a title" in legend.get_title().get_text()


@pytest.mark.parametrize("number", [1, 20])
def test_the_figure_grows_with_the_number_of_methods(tmp_path, number):
    methods = {"uniform": [(1.0, 0.5)]} | {f"m{i}": [(2.0 + i, 0.5)] for i in range(number - 1)}
    lines = comparison(**methods)
    figure = draw_comparison(lines, (TRAIN_LOSS,), "title", tmp_path / "f.svg")
    assert len(figure.axes) == 1 and len(figure.axes[0].get_yticks()) == number
    assert figure.get_size_inches()[1] > 0.3 * number and (tmp_path / "f.svg").exists()


def test_a_run_that_diverged_is_drawn(tmp_path):
    lines = comparison(uniform=[(1.0, 0.5)], a=[(float("inf"), 0.5)], b=[(float("nan"), 0.5)])
    figure = draw_comparison(lines, (TRAIN_LOSS,), "title", tmp_path / "f.png")
    names = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert names == {"uniform", "a", "b"}
