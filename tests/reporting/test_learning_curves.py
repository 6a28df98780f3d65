import numpy as np
import pytest
from helpers import rows, write_run

from isjax.reporting.learning_curves import draw_learning_curves
from isjax.reporting.runs import load_runs


def legends(figure):
    return [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]


def test_lines_and_scales(folder):
    figure = draw_learning_curves(load_runs([folder]))
    names = ["uniform", "approx", "loss", "uniform's final value"]
    for ax in figure.axes:
        assert [line.get_label() for line in ax.get_lines()] == names
        assert len(ax.collections) == 2  # a band for the two methods with two seeds
    time, steps, _, _, _, error = figure.axes
    assert time.get_yscale() == steps.get_yscale() == error.get_yscale() == "log"
    np.testing.assert_allclose(steps.get_lines()[0].get_xydata(), [(0, 2), (10, 0.95), (20, 0.4)])
    np.testing.assert_allclose(error.get_lines()[2].get_ydata(), [0.9, 0.5, 0.35])
    # Over time, the mean stops with the quicker seed; both are interpolated on a log scale.
    x, y = time.get_lines()[0].get_data()
    assert (x[0], x[-1]) == (0, 3)
    assert y[-1] == pytest.approx((0.5 + 0.9 * (0.3 / 0.9) ** 0.2) / 2)
    assert time.get_lines()[3].get_ydata()[0] == pytest.approx(0.4)
    assert error.get_lines()[3].get_ydata()[0] == pytest.approx(0.2)
    labels = ["train loss", "test loss", "test error (fraction)"]
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == labels
    np.testing.assert_array_equal(figure.axes[3].get_lines()[0].get_ydata(), 1.0)
    assert legends(figure) == [names]  # none of budgets


def test_a_colour_per_method_and_a_dash_per_budget(budgets):
    figure = draw_learning_curves(load_runs([budgets]))
    names = ["uniform", "uniform 50%", "loss 70%", "loss 50%", "uniform's final value"]
    for ax in figure.axes:
        lines = ax.get_lines()
        assert [line.get_label() for line in lines] == names
        assert [line.get_linestyle() for line in lines] == ["-", ":", "--", ":", "-"]
        colours = [line.get_color() for line in lines]
        assert colours[0] == colours[1] == colours[4] != colours[2] == colours[3]
    assert legends(figure) == [["uniform", "loss", names[-1]], ["100%", "70%", "50%"]]
    methods, shares = figure.legends
    assert [line.get_linestyle() for line in methods.get_lines()] == ["-"] * 3
    assert [line.get_linestyle() for line in shares.get_lines()] == ["-", "--", ":"]


def test_perplexity_is_drawn_unchanged(budgets):
    figure = draw_learning_curves(load_runs([budgets]))
    panel = figure.axes[3]
    assert figure.axes[2].get_ylabel() == "test perplexity"
    assert panel.get_yscale() == "log"
    np.testing.assert_array_equal(panel.get_lines()[4].get_ydata(), 8.0)
    np.testing.assert_allclose(panel.get_lines()[2].get_xydata(), [(0, 60), (7, 20), (14, 7)])


def test_test_loss_is_drawn_without_other_metrics(tmp_path):
    write_run(tmp_path, rows=rows([2.0, 1.0], [0.9, 0.6], 1.0), metric="test_loss")
    figure = draw_learning_curves(load_runs([tmp_path]))
    assert figure.axes[2].get_ylabel() == "test loss"
    np.testing.assert_allclose(figure.axes[3].get_lines()[0].get_ydata(), [0.9, 0.6])


def test_uniforms_largest_budget_is_the_baseline(budgets):
    figure = draw_learning_curves(load_runs([budgets / "u50", budgets / "l50"]))
    line = figure.axes[3].get_lines()[-1]
    assert line.get_label() == "uniform 50%'s final value"
    np.testing.assert_array_equal(line.get_ydata(), 20.0)
    assert legends(figure)[1] == ["50%"]


def test_methods_beyond_the_colours_have_markers(tmp_path):
    for number in range(9):
        write_run(tmp_path / str(number), f"m{number}", rows=rows([2.0, 1.0], [0.5, 0.6], 1.0))
    figure = draw_learning_curves(load_runs([tmp_path]))
    styles = [(line.get_color(), line.get_marker()) for line in figure.axes[0].get_lines()]
    assert len(set(styles)) == 9
    assert [marker for _, marker in styles] == [""] * 7 + ["o"] * 2


def test_figure_without_uniform_on_linear_scale(tmp_path):
    write_run(tmp_path, "loss", rows=rows([2.0, 1.0, 0.5], [0.5, 0.6, 0.7], 1.0))
    figure = draw_learning_curves(load_runs([tmp_path]))
    assert [len(ax.get_lines()) for ax in figure.axes] == [1] * 6
    assert [ax.get_yscale() for ax in figure.axes] == ["log"] * 2 + ["linear"] * 4


def test_dollar_signs_are_no_mathematics(tmp_path):
    for name in ("a$b$", "$x^{", r"\$"):
        write_run(tmp_path / name, name, rows=rows([2.0, 1.0], [0.5, 0.6], 1.0), dataset="$_$")
    figure = draw_learning_curves(load_runs([tmp_path]))
    figure.savefig(tmp_path / "figure.svg")
    svg = (tmp_path / "figure.svg").read_text()
    assert all(f"<!-- {text} -->" in svg for text in ("a$b$", "$x^{", r"\$", "$_$: one seed each"))


@pytest.mark.parametrize("values", [(1.1, 2.3), (0.004, 0.9), (1e-6, 2.0), (2.301, 2.302)])
def test_log_axis_has_legible_ticks(tmp_path, values):
    low, high = values
    write_run(tmp_path, rows=rows([high, low], [0.1, 0.2], 1.0))
    ax = draw_learning_curves(load_runs([tmp_path])).axes[0]
    bottom, top = ax.get_ylim()
    shown = [
        text.get_text()
        for text, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
        if bottom <= y <= top
    ]
    assert 2 <= len(shown) <= 10
    assert len(set(shown)) == len(shown)
