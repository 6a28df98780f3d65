"""The command of each config on real data, without a network: a whole run, if a short one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ALWAYS = {"step", "seconds", "examples_forward", "examples_backward", "train_loss", "test_loss"}


@pytest.fixture
def folder():
    if "ISJAX_DATA_DIR" not in os.environ:
        pytest.fail("ISJAX_DATA_DIR is not set; see .ci/prepare_data")
    return pathlib.Path(os.environ["ISJAX_DATA_DIR"])


def run(name, data_dir, workdir, *settings):
    short = ["--config.num_steps=4", "--config.num_evals=2", "--config.eval_examples=500"]
    places = [
        f"--config=configs/{name}.py",
        f"--config.data_dir={data_dir}",
        f"--workdir={workdir}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "isjax.main", *places, *short, *settings],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert "tensorflow" not in done.stderr.lower()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(line.keys() >= ALWAYS for line in lines)
    assert lines[-1]["train_loss"] != lines[0]["train_loss"]
    assert any((workdir / "tensorboard").iterdir()) and (workdir / "checkpoints/4").is_dir()
    return lines[-1]


@pytest.mark.data
@pytest.mark.parametrize("name", ["fashion_mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_image_classification(tmp_path, folder, name):
    last = run(name, folder, tmp_path)
    assert 0 <= last["test_accuracy"] <= 1 and "test_perplexity" not in last


@pytest.mark.slow
@pytest.mark.data
def test_tiny_shakespeare(tmp_path, folder):
    last = run("tiny_shakespeare", folder, tmp_path, "--config.dataset_options.length=16")
    assert 1 < last["test_perplexity"] < 70 and 1 < last["valid_perplexity"] < 70


@pytest.mark.slow
@pytest.mark.parametrize("format", ["next_word", "windows"])
def test_ptb_from_files_of_ones_own(tmp_path, format):
    sentence = "no it was n't black monday but while the new york stock exchange did n't fall apart"
    for part, number in (("train", 300), ("valid", 50), ("test", 50)):
        (tmp_path / f"ptb.{part}.txt").write_text(f" {sentence} \n" * number)
    settings = ["--config.method=learned_loss", f"--config.dataset_options.format={format}"]
    small = ["--config.dataset_options.length=8", "--config.pool_size=128"]
    last = run("ptb", tmp_path, tmp_path / "run", *settings, *small)
    assert 1 < last["test_perplexity"] < 20
