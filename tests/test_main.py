"""The commands themselves: runs, mistakes, help."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from commands import ENVIRONMENT, ROOT, run_command

from isjax import data, networks, recipes, tasks
from isjax.experiment.config import names

NEEDED = "runs from a config need ml_collections: pip install '.[run]' in a checkout of isjax"
CONFIG = """
from isjax.experiment.config import default_config

def get_config():
    config = default_config()
    config.dataset_options = {"num_train": 200, "num_test": 50}
    config.update({"num_steps": 20, "num_evals": 2, "batch_size": 16, "pool_size": 64})
    return config
"""


def command(tmp_path, *arguments):
    (tmp_path / "config.py").write_text(CONFIG)
    return run_command("main", f"--config={tmp_path}/config.py", *arguments)


def test_a_run_from_the_command_line(tmp_path):
    """In a process of its own."""
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = [
        f"--config={tmp_path}/config.py",
        "--config.method=last_loss",
        "--config.method_options.k=0.25",
        f"--workdir={tmp_path}/run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "isjax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["method"] == "last_loss" and config["method_options"] == {"k": 0.25}
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 10, 20]
    assert "last_loss, seed 0: train loss" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.methd=uniform", "--workdir=unused"], "--config.methd is not a setting; did"),
        (["--config.method_option.k=1"], "method_option is not a setting; did you mean method_opt"),
        (["--config.method=lastloss", "--workdir=unused"], "did you mean last_loss?"),
        (["--workdr=unused"], "--workdr is not a flag; did you mean workdir?"),
        (["--method=uniform"], "--method is not a flag; did you mean config.method?"),
        (["--lerning_rate=1"], "--lerning_rate is not a flag; did you mean config.learning_rate?"),
        (["--config=pyproject.toml", "--workdir=unused"], "pyproject.toml"),
        (["--config.seed=1"], "--workdir is missing"),
        (["--config.seed.k=1", "--workdir=unused"], "seed.k"),
        (["--workdir=unused", "seed=1"], "unexpected argument seed=1"),
        (["--config.num_steps=ten"], "flag --config.num_steps=ten: an int is needed"),
        (["--config.batch_size=1.5"], "flag --config.batch_size=1.5: an int is needed"),
        (["--config.learning_rate=fast"], "flag --config.learning_rate=fast: a number is needed"),
        (["--config.artifacts=maybe"], "flag --config.artifacts=maybe: True or False is needed"),
        (["--config.method_options=3"], "flag --config.method_options=3: "),
    ],
)
def test_a_mistake_is_one_line_without_traceback(tmp_path, arguments, message):
    done = command(tmp_path, *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("isjax: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import isjax\nnothing\n", "config.py, line 2: NameError: name 'nothing' is not defined"),
        ("def get_config():\n    return 1 / 0", "config.py, line 2: ZeroDivisionError"),
        ("def get_config(:", "config.py, line 1"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return {}", "get_config() of"),
        ("def get_config():\n    return None", "get_config() of"),
    ],
)
@pytest.mark.parametrize("further", [[], ["--config.seed=1"]])
def test_an_error_of_the_config_file_is_one_line(tmp_path, text, message, further):
    (tmp_path / "config.py").write_text(text)
    done = run_command("main", f"--config={tmp_path}/config.py", "--workdir=unused", *further)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("isjax: ")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("ValueError('example 3 of the source cannot be read')", "example 3 of the source cannot"),
        ("OSError('run/metrics.jsonl cannot be written')", "run/metrics.jsonl cannot be written"),
        ("MemoryError()", "out of memory; lower config.batch_size"),
        ("jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 5 GB')", "out of memory; lower config."),
    ],
)
def test_what_ends_a_run_is_one_line(tmp_path, raised, message):
    (tmp_path / "config.py").write_text(f"""{CONFIG}
import jax
from isjax import experiment

def fail(*args, **settings):
    raise {raised}

experiment.run = fail
""")
    done = run_command("main", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run")
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("isjax: ")


@pytest.mark.parametrize(
    ("name", "flags"),
    [("main", ["allow_config_changes"]), ("compare", ["methods", "seeds"]), ("quality", ["draws"])],
)
def test_help_says_what_there_is(name, flags):
    done = run_command(name, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith(f"usage: python -m isjax.{name} --config=FILE --workdir=DIR")
    assert f"    python -m isjax.{name} --config=configs/mnist1d.py" in done.stdout
    assert re.findall("^  --([a-z_]+)$", done.stdout, re.M) == ["config", "workdir", *flags]
    words = set(re.findall(r"[\w.]+", done.stdout))
    known = [*recipes.__all__, *data.SETS, *tasks.__all__, *networks.__all__]
    assert words >= {*known, *(f"config.{setting}" for setting in names())}
    assert "verbosity" not in words and "HistoryLSTM" not in words
    path = re.search(r"default_config of (\S+)", done.stdout)[1]
    assert "def default_config()" in pathlib.Path(path).read_text()
    assert max(map(len, done.stdout.splitlines())) <= 100 + len(path)


@pytest.mark.parametrize("name", ["main", "compare", "quality", "report"])
def test_without_arguments_there_is_the_usage(name):
    done = run_command(name)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"usage: python -m isjax.{name} ")


def without_the_extra(script):
    """Runs it where ml_collections, which nothing else installs, cannot be imported."""
    hide = "import sys; sys.modules['ml_collections'] = None"
    command = [sys.executable, "-c", f"{hide}\n{script}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_without_the_extra_it_is_named_in_one_line():
    done = without_the_extra("import runpy; runpy.run_module('isjax.main', run_name='__main__')")
    assert done.returncode == 1
    assert done.stderr == f"isjax: {NEEDED}\n"


IMPORTS = """
import importlib
for name in ("compare", "experiment", "experiment.config", "quality"):
    try:
        importlib.import_module(f"isjax.{name}")
    except ImportError as error:
        print(f"{name}: {error}")
"""


@pytest.mark.slow
def test_to_import_what_needs_the_extra_says_so():
    names = ("compare", "experiment", "experiment.config", "quality")
    done = without_the_extra(IMPORTS)
    assert done.stdout.splitlines() == [f"{name}: {NEEDED}" for name in names], done.stderr


def test_a_config_must_be_named():
    done = run_command("main", "--workdir=unused")
    assert done.returncode == 1
    assert done.stderr == "isjax: --config is missing; name a file, such as configs/mnist1d.py\n"


@pytest.mark.parametrize("name", ["mnist1d", "mnist1d.py"])
@pytest.mark.parametrize("further", [[], ["--config.seed=1"]])
def test_the_config_file_probably_meant_is_named(name, further):
    done = run_command("main", f"--config={name}", "--workdir=unused", *further)
    message = f"flag --config={name}: there is no such file; did you mean configs/mnist1d.py?"
    assert done.returncode == 1 and done.stderr == f"isjax: {message}\n"


def test_a_missing_config_file_is_named(tmp_path):
    done = command(tmp_path, f"--config={tmp_path}/nowhere.py", "--workdir=unused")
    assert done.returncode != 0 and "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr
