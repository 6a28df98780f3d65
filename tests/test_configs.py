"""The files in configs/: each is a config that can be run, on data of its data set's shape."""

import importlib.util
import inspect
import pathlib
import re

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from isjax import data, networks, recipes, tasks
from isjax.data.dataset import from_arrays
from isjax.experiment import components, config, schedules
from isjax.experiment.config import ConfigError
from isjax.experiment.reference_models import placeholders
from isjax.tasks import augmentations

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
PATHS = sorted(FOLDER.glob("*.py"))
PAGES = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def images(size, channels, classes=10):
    x = np.random.default_rng(0).integers(0, 256, (20, size, size, channels)).astype(np.uint8)
    part = {"x": x, "label": np.arange(20, dtype=np.int32) % classes}
    return from_arrays(part, part, classes)


def signals():
    part = {"x": np.zeros((20, 40, 1), np.float32), "label": np.arange(20, dtype=np.int32) % 10}
    return from_arrays(part, part, 10)


def text(words, length, next_word):
    tokens = np.random.default_rng(0).integers(0, words, (20, length + 1)).astype(np.int32)
    part = {"x": tokens[:, :-1], "y": tokens[:, -1] if next_word else tokens[:, 1:]}
    return from_arrays(part, part, valid=part, vocabulary=[str(word) for word in range(words)])


# A few examples as each data set has them by default.
FAKES = {
    "cifar10": lambda: images(32, 3),
    "cifar100": lambda: images(32, 3, classes=100),
    "fashion_mnist": lambda: images(28, 1),
    "friedman": lambda: data.friedman(20, 20),
    "mnist": lambda: images(28, 1),
    "mnist1d": signals,
    "ptb": lambda: text(100, 20, next_word=True),
    "svhn_cropped": lambda: images(32, 3),
    "tiny_shakespeare": lambda: text(65, 64, next_word=False),
}


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(path):
    return module_of(path).get_config()


def commands_of(path):
    """The commands in the docstring, each as its arguments."""
    paragraphs = module_of(path).__doc__.split("\n\n")
    return [p.split()[3:] for p in paragraphs if p.startswith("python -m isjax.main ")]


def settings_of(path):
    """The `--config.name=value` that its docstring mentions, outside of commands too."""
    return re.findall(r"--config\.([a-z_.]+)=([^\s;,]+?)\.?(?=[\s;,)]|$)", module_of(path).__doc__)


def parsed(path, settings):
    """The config as the command makes it of these settings."""
    argv = ["main", f"--config={path}", *(f"--config.{name}={value}" for name, value in settings)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,
        sys_argv=argv,
    )
    values(argv)
    return values.config


def task_of(settings, dataset):
    """Its task, tried for shapes alone: no network is run."""
    task = components.make_task(settings, dataset)
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    batch = dataset.train
    losses, updated = jax.eval_shape(task.loss_fn, params, model_state, batch, jax.random.key(1))
    assert losses.shape == (20,) and losses.dtype == np.float32 and updated == model_state
    assert jax.eval_shape(task.score_fn, params, model_state, batch).shape == (20,)
    metrics = jax.eval_shape(task.metrics_fn, params, model_state, batch)
    assert {values.shape for values in metrics.values()} == {(20,)}
    return task, params, model_state


def test_there_are_configs():
    assert {"cifar10", "mnist1d", "ptb", "friedman"} <= {path.stem for path in PATHS}


@PAGES
def test_a_config_is_sound(path):
    config.check(config_of(path))


@PAGES
def test_its_names_exist(path):
    settings = config_of(path)
    for module, name in (
        (tasks, settings.task),
        (networks, settings.network),
        (recipes, settings.method),
        (schedules, settings.schedule),
        *((augmentations, name) for name in settings.augment),
    ):
        assert name in module.__all__ and callable(getattr(module, name))
    if settings.dataset not in data.SETS:
        import tensorflow_datasets as tfds

        assert settings.dataset in tfds.list_builders(with_community_datasets=False)
    options = inspect.signature(data.builder(settings.dataset)).parameters
    assert set(settings.dataset_options) <= set(options)
    assert settings.dataset.startswith(path.stem)  # so that a file is found by its data set


@PAGES
def test_its_docstring_says_how_to_run_it(path):
    (command,) = commands_of(path)
    assert command[0] == f"--config=configs/{path.name}" and command[-1] == "--workdir=DIR"
    assert all(argument.startswith("--config.") for argument in command[1:-1])
    # A folder is asked for just where one is read, and nothing is asked for that is not there.
    reads = "data_dir" in inspect.signature(data.builder(config_of(path).dataset)).parameters
    asked = "--config.data_dir=DATA" in command
    assert asked <= reads and (asked or config_of(path).dataset in ("friedman", "mnist1d"))


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@PAGES
def test_the_settings_in_its_docstring_can_be_given(path):
    """All at once: the command accepts them, and what they ask for can be made."""
    given = settings_of(path)
    settings = parsed(path, given)
    config.check(settings)
    if dict(given).get("dataset_options.format") == "windows":
        dataset = text(100, int(settings.dataset_options.length), next_word=False)
    else:
        dataset = FAKES[settings.dataset]()
    task_of(settings, dataset)
    parameters = inspect.signature(data.builder(settings.dataset)).parameters
    assert set(settings.dataset_options) <= set(parameters)


@PAGES
def test_all_that_a_run_needs_can_be_made(path):
    settings = config_of(path)
    settings.batch_size = 4  # of the few examples there are here
    task, params, model_state = task_of(settings, FAKES[settings.dataset]())
    assert task.dataset.train["x"].shape[0] == 20 and task.initial_loss > 0
    tx = components.make_optimizer(settings)
    jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)
    unfitting = set()
    for method in recipes.__all__:  # each can be compared on it, unless it needs classes
        settings.method = method
        made = placeholders(settings, 1000)
        try:
            sampler = components.make_sampler(settings, task, model_state, made)
        except ConfigError as error:
            assert re.search(
                rf"{method} needs (importances|logits_fn|num_classes), which the task", str(error)
            )
            unfitting.add(method)
            continue
        jax.eval_shape(lambda key, sampler=sampler: sampler.init(key, 1000), jax.random.key(0))
    of_classes = {"el2n", "grad_norm_bound", "per_class_gaussian", "proxy_loss"}
    given = {"given"}  # needs numbers that no config holds
    assert unfitting == (given if settings.task == "classification" else of_classes | given)


@PAGES
def test_the_network_returns_what_its_task_needs(path):
    """A number for each class or word, or the numbers to predict."""
    settings = config_of(path)
    dataset = FAKES[settings.dataset]()
    task, params, _ = task_of(settings, dataset)
    last = max((name for name in params if name.startswith("Dense")), key=lambda n: int(n[6:]))
    outputs = {
        "classification": dataset.num_classes,
        "language": len(dataset.vocabulary or ()),
        "regression": 1,
    }
    assert params[last]["bias"].shape == (outputs[settings.task],)
    assert (task.label_fn is not None) == (settings.task == "classification")
