"""benchmarks/iso_accuracy.py and the methods of time_to_target.py, on made-up results."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
BUDGETS = [0.25, 0.5, 1.0]


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


def module(name):
    return importlib.import_module(name)


def rows(method, curves, metric="test_accuracy"):
    """A run per seed and budget."""
    return [
        {"method": method, "seed": seed, "budget": budget, metric: value}
        for seed, curve in enumerate(curves)
        for budget, value in zip(BUDGETS, curve, strict=True)
    ]


def iso(*arguments):
    return module("iso_accuracy").iso_curve(*arguments)


def at(curve, budget):
    return next(point for point in curve if np.isclose(point["at"], budget))


# Accuracy 0.8 + 0.1 log2(budget): linear in the logarithm, so that interpolation is exact.
UNIFORM = np.array([[0.6, 0.7, 0.8]])


def test_a_method_as_good_at_half_of_the_budget_has_a_ratio_of_one_half():
    curve = iso(BUDGETS, UNIFORM, UNIFORM + 0.1, "test_accuracy")
    assert [point["at"] for point in curve] == sorted(point["at"] for point in curve)
    for point in curve:
        assert point["target"] == pytest.approx(0.8 + 0.1 * np.log2(point["at"]))
        assert point["baseline"] == pytest.approx(point["at"])
        if point["at"] < 0.5:  # the method is there at its smallest budget already
            assert point["at_most"] and point["ratio"] == pytest.approx(0.25 / point["at"])
        elif point["at"] > 0.5001:
            assert not point["at_most"] and point["ratio"] == pytest.approx(0.5)
        assert point["low"] == point["high"] == point["ratio"]  # one seed


def test_a_method_that_is_behind_has_a_ratio_above_one_until_it_is_never_reached():
    curve = iso(BUDGETS, UNIFORM, UNIFORM - 0.05, "test_accuracy")
    assert at(curve, 0.25)["ratio"] == pytest.approx(2**0.5)
    assert at(curve, 0.5)["ratio"] == pytest.approx(2**0.5)
    assert at(curve, 1.0)["ratio"] == np.inf
    assert not any(point["at_most"] for point in curve)


def test_a_method_ahead_at_first_and_behind_at_the_end():
    curve = iso(BUDGETS, UNIFORM, np.array([[0.65, 0.72, 0.78]]), "test_accuracy")
    assert at(curve, 0.25)["ratio"] == 1 and at(curve, 0.25)["at_most"]
    assert at(curve, 0.5)["ratio"] == pytest.approx(2 ** (5 / 7 - 1))
    assert at(curve, 1.0)["ratio"] == np.inf


def test_the_least_budget_of_a_baseline_that_gets_worse_is_before_the_end():
    curve = iso(BUDGETS, np.array([[0.6, 0.8, 0.7]]), np.array([[0.6, 0.8, 0.9]]), "test_accuracy")
    last = at(curve, 1.0)
    assert last["target"] == pytest.approx(0.7)
    assert last["baseline"] == pytest.approx(0.25 * 2**0.5)
    assert last["ratio"] == pytest.approx(1)


def test_lower_losses_are_better_and_targets_are_losses():
    uniform = np.array([[0.4, 0.2, 0.1]])
    curve = iso(BUDGETS, uniform, uniform / 2, "test_loss")
    assert at(curve, 0.5)["target"] == pytest.approx(0.2)
    assert at(curve, 1.0)["target"] == pytest.approx(0.1)
    assert at(curve, 1.0)["ratio"] == pytest.approx(0.5)


@pytest.mark.slow
def test_intervals_resample_the_seeds_of_both_methods_alike():
    # A seed raises both methods alike, as data and initial weights do: the ratio does not change.
    shared = UNIFORM + np.array([[0.0], [0.02], [-0.03], [0.05]])
    point = at(iso(BUDGETS, shared, shared + 0.05, "test_accuracy"), 1.0)
    assert point["low"] == pytest.approx(point["high"]) == pytest.approx(2**-0.5)
    noisy = shared + 0.05 + np.array([[0.03], [-0.02], [0.04], [-0.03]])
    point = at(iso(BUDGETS, shared, noisy, "test_accuracy"), 1.0)
    assert point["low"] < point["ratio"] < point["high"]


def test_seeds_missing_from_a_pair_are_left_out():
    made = rows("uniform", np.vstack([UNIFORM, UNIFORM + 0.01, UNIFORM + 0.5]))
    made += [row for row in rows("default", np.vstack([UNIFORM, UNIFORM])) if row["budget"] != 0.5]
    curves_of = module("iso_accuracy").curves_of
    budgets, pairs = curves_of(made, "test_accuracy")
    assert budgets == BUDGETS and list(pairs) == ["uniform"]
    budgets, pairs = curves_of(made, "test_accuracy", budgets=[1.0, 0.25])
    assert budgets == [0.25, 1.0] and list(pairs) == ["uniform", "default"]
    base, own = pairs["default"]
    np.testing.assert_allclose(base, [[0.6, 0.8], [0.61, 0.81]])
    np.testing.assert_allclose(own, [[0.6, 0.8]] * 2)
    assert pairs["uniform"][0].shape == (3, 2)
    with pytest.raises(ValueError, match="no runs of reshuffled with test_accuracy"):
        curves_of(made, "test_accuracy", "reshuffled")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_command_prints_and_draws(suffix, tmp_path, monkeypatch, capsys):
    made = rows("uniform", np.vstack([UNIFORM, UNIFORM + 0.01]))
    made += rows("default", np.vstack([UNIFORM + 0.04, UNIFORM + 0.07]))
    made += rows("behind", np.vstack([UNIFORM - 0.5] * 2))
    file, out = tmp_path / "runs.jsonl", tmp_path / f"iso.{suffix}"
    file.write_text("a line of text\n" + "".join(json.dumps(row) + "\n" for row in made))
    monkeypatch.setattr(sys, "argv", ["iso_accuracy", str(file), "--out", str(out)])
    module("iso_accuracy").main()
    printed = capsys.readouterr().out
    assert "default, 2 seeds: 25% +0.0500 ± 0.0100" in printed
    assert "100%, 0.8050: default 0.71 [0.66, 0.76], behind inf [inf, inf]" in printed
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert {line["method"] for line in found} == {"default", "behind"}
    assert out.stat().st_size > 5000
    if suffix == "svg":
        assert "sampling is ahead" in out.read_text() or "<path" in out.read_text()


def test_the_region_where_sampling_is_ahead_is_shaded(tmp_path):
    draw_iso, curves_of = module("iso_accuracy").draw_iso, module("iso_accuracy").curves_of
    made = rows("uniform", UNIFORM) + rows("default", UNIFORM + 0.05)
    budgets, pairs = curves_of(made, "test_accuracy")
    figure = draw_iso(budgets, pairs, "test_accuracy", "uniform", "", tmp_path / "iso.svg")
    _, ratios = figure.axes
    (shade,) = ratios.patches
    assert shade.get_y() + shade.get_height() == 1 and shade.get_y() == 0
    assert "sampling is ahead" in [text.get_text() for text in ratios.texts]
    (line,) = [line for line in ratios.lines if len(line.get_xdata()) > 10]
    assert np.min(line.get_ydata()) < 1


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("uniform", {}),
        ("default,k=0", {"method": "default", "method_options.k": 0}),
        ("biased_loss,pool_size=256", {"method": "biased_loss", "pool_size": 256}),
        (
            "paper:biased_loss",
            {
                "method": "biased_loss",
                "method_options.k": 0.5,
                "method_options.resample": "categorical",
                "method_options.smoothing": 0.0,
                "weighting": "biased",
                "weighting_options.k": 0.5,
            },
        ),
    ],
)
def test_the_methods_of_time_to_target(method, changed):
    from isjax.experiment.config import check, default_config, differences

    base = default_config()
    base.learning_rate = 0.3
    one = module("time_to_target").config_of(base, method)
    check(one)
    assert {key: new for key, (_, new) in differences(base, one).items()} == changed
    again = module("time_to_target").config_of(one, "uniform")
    assert {key for key in differences(base, again)} <= {"pool_size"}
