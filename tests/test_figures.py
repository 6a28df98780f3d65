import numpy as np
import pytest
from helpers import rows, write_run

from isjax.figures import draw_figure
from isjax.runs import load_runs


def test_figure_lines_and_scales(folder):
    figure = draw_figure(load_runs([folder]), folder / "f.png")
    names = ["uniform", "approx", "loss", "uniform's final value"]
    for ax in figure.axes:
        assert [line.get_label() for line in ax.get_lines()] == names
        assert len(ax.collections) == 2  # a band for the two methods with two seeds
    time, steps, _, error = figure.axes
    assert time.get_yscale() == steps.get_yscale() == error.get_yscale() == "log"
    np.testing.assert_allclose(steps.get_lines()[0].get_xydata(), [(0, 2), (10, 0.95), (20, 0.4)])
    np.testing.assert_allclose(error.get_lines()[2].get_ydata(), [0.9, 0.5, 0.35])
    # Over time, the mean stops with the quicker seed; both are interpolated on a log scale.
    x, y = time.get_lines()[0].get_data()
    assert (x[0], x[-1]) == (0, 3)
    assert y[-1] == pytest.approx((0.5 + 0.9 * (0.3 / 0.9) ** 0.2) / 2)
    assert time.get_lines()[3].get_ydata()[0] == pytest.approx(0.4)


def test_figure_without_uniform_on_linear_scale(tmp_path):
    write_run(tmp_path, "loss", rows=rows([2.0, 1.0, 0.5], [0.5, 0.6, 0.7], 1.0))
    figure = draw_figure(load_runs([tmp_path]), tmp_path / "f.png")
    assert [len(ax.get_lines()) for ax in figure.axes] == [1] * 4
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "log", "linear", "linear"]


@pytest.mark.parametrize("values", [(1.1, 2.3), (0.004, 0.9), (1e-6, 2.0), (2.301, 2.302)])
def test_log_axis_has_legible_ticks(tmp_path, values):
    low, high = values
    write_run(tmp_path, rows=rows([high, low], [0.1, 0.2], 1.0))
    ax = draw_figure(load_runs([tmp_path]), tmp_path / "f.png").axes[0]
    bottom, top = ax.get_ylim()
    shown = [
        text.get_text()
        for text, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
        if bottom <= y <= top
    ]
    assert 2 <= len(shown) <= 10
    assert len(set(shown)) == len(shown)
