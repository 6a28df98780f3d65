"""The files in configs/: each is a config that can be run, on data of its data set's shape."""

import importlib.util
import inspect
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from isjax import data, experiment, networks, recipes, scorers, tasks
from isjax.base import Rows
from isjax.data.dataset import from_arrays
from isjax.experiment import components, config, schedules
from isjax.experiment.config import ConfigError
from isjax.experiment.reference_models import placeholders
from isjax.tasks import augmentations

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
PATHS = sorted(FOLDER.rglob("*.py"))


def name_of(path):
    return path.relative_to(FOLDER).with_suffix("").as_posix()


PAGES = pytest.mark.parametrize("path", PATHS, ids=name_of)
PAPER = [path for path in PATHS if path.parent.name == "paper"]


def images(size, channels, classes=10):
    x = np.random.default_rng(0).integers(0, 256, (20, size, size, channels)).astype(np.uint8)
    part = {"x": x, "label": np.arange(20, dtype=np.int32) % classes}
    return from_arrays(part, part, classes)


def signals():
    part = {"x": np.zeros((20, 40, 1), np.float32), "label": np.arange(20, dtype=np.int32) % 10}
    return from_arrays(part, part, 10)


def pixels():
    part = {name: values[:20] for name, values in data.image_field(size=8).train.items()}
    return from_arrays(part, part)


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
    "image_field": pixels,
    "mnist": lambda: images(28, 1),
    "mnist1d": signals,
    "ptb": lambda: text(100, 20, next_word=True),
    "svhn_cropped": lambda: images(32, 3),
    "text_files": lambda: text(256, 128, next_word=False),
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
    assert {"cifar10", "mnist1d", "ptb", "friedman"} <= {name_of(path) for path in PATHS}
    assert [path.stem for path in PAPER] == ["cifar10", "mnist", "ptb"]


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
    names = settings.dataset, path.stem  # a file is found by its data set
    assert names[0].startswith(names[1]) or names[1].startswith(names[0])


@PAGES
def test_its_docstring_says_how_to_run_it(path):
    (command,) = commands_of(path)
    assert command[0] == f"--config=configs/{name_of(path)}.py" and command[-1] == "--workdir=DIR"
    assert all(argument.startswith("--config.") for argument in command[1:-1])
    # A folder is asked for just where one is read, and nothing is asked for that is not there.
    reads = "data_dir" in inspect.signature(data.builder(config_of(path).dataset)).parameters
    asked = "--config.data_dir=DATA" in command
    made = ("friedman", "image_field", "mnist1d")
    assert asked <= reads and (asked or config_of(path).dataset in made)


@pytest.mark.slow
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


@pytest.mark.slow
@PAGES
def test_all_that_a_run_needs_can_be_made(path):
    settings = config_of(path)
    settings.batch_size = 4  # of the few examples there are here
    settings.gate = settings.weighting = ""  # which some methods cannot have
    for part in ("method", "gate", "weighting"):
        settings[f"{part}_options"] = {}
    task, params, model_state = task_of(settings, FAKES[settings.dataset]())
    assert task.dataset.train["x"].shape[0] == 20 and task.initial_loss > 0
    tx = components.make_optimizer(settings)
    jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)
    unfitting = set()
    settings.companion, settings.companion_options = settings.network, settings.network_options
    for method in recipes.__all__:  # each can be compared on it, unless it needs classes
        settings.method = method
        made = placeholders(settings, 1000)
        try:
            sampler = components.make_sampler(settings, task, model_state, made)
        except ConfigError as error:
            assert re.search(
                rf"{method} needs (source, the|(importances|logits_fn|num_classes), which the t)",
                str(error),
            )
            unfitting.add(method)
            continue
        jax.eval_shape(lambda key, sampler=sampler: sampler.init(key, 1000), jax.random.key(0))
    of_classes = {"el2n", "grad_norm_bound", "per_class_gaussian", "proxy_loss"}
    given = {"by_source", "given"}  # need sources, or numbers that no config holds
    assert unfitting == (given if settings.task == "classification" else of_classes | given)


@PAGES
def test_the_network_returns_what_its_task_needs(path):
    """A number for each class or word, or the numbers to predict."""
    settings = config_of(path)
    dataset = FAKES[settings.dataset]()
    task, params, model_state = task_of(settings, dataset)
    outputs = {
        "classification": dataset.num_classes,
        "language": len(dataset.vocabulary or ()),
        "regression": 1,
    }
    output = jax.eval_shape(task.output_fn, params, model_state, dataset.train)
    assert output.shape[-1] == outputs[settings.task]
    assert (task.label_fn is not None) == (settings.task == "classification")


# The authors' code of July 2017 (its first commit, 53ea5c8), against its preset.


def config_of_paper(name, method="learned_loss"):
    return module_of(FOLDER / "paper" / f"{name}.py").get_config(method)


PAPER_CASES = pytest.mark.parametrize("name", [path.stem for path in PAPER])


@PAPER_CASES
def test_the_papers_optimiser_and_draws(name):
    settings = config_of_paper(name)
    assert settings.method == "learned_loss" and settings.batch_size == 128
    assert settings.optimizer == "adam" and not settings.optimizer_options
    assert settings.weight_decay == settings.clip_norm == 0 and settings.precision == "float32"
    assert settings.method_options.k == settings.weighting_options.k == 0.5
    assert settings.method_options.smoothing == 0
    assert settings.method_options.resample == "categorical"
    assert settings.weighting == "biased"
    assert (settings.gate, dict(settings.gate_options)) == ("after", {"steps": 100})
    assert settings.pool_size == 2048 and settings.method_options.history == 10
    assert settings.method_options.linear and settings.method_options.initial_observed
    by_model = config_of_paper(name, "biased_loss")
    assert by_model.pool_size == 1024 and not by_model.gate  # only their LSTM warmed up
    changed = config.differences(settings, by_model)
    assert {key.partition(".")[0] for key in changed} == {
        *("method", "method_options", "pool_size", "gate", "gate_options")
    }
    uniform = config_of_paper(name, "uniform")
    assert not (uniform.gate or uniform.weighting or uniform.method_options)
    with pytest.raises(ConfigError, match="method is lstm; choose one of uniform, biased_loss, le"):
        config_of_paper(name, "lstm")


@PAPER_CASES
def test_the_papers_rate_drops_by_ten(name):
    settings = config_of_paper(name)
    schedule = getattr(schedules, settings.schedule)(
        settings.learning_rate, settings.num_steps, **settings.schedule_options
    )
    rates = [float(schedule(share * settings.num_steps)) for share in (0, 0.49, 0.51, 0.79, 0.81)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-5)


@pytest.mark.slow
@PAPER_CASES
def test_the_papers_loss_predictor(name):
    """Two LSTMs of 32, a class embedding of 32, and a history that begins with log(classes)."""
    settings = config_of_paper(name)
    settings.batch_size = 4
    dataset = FAKES[name]()
    task, _, model_state = task_of(settings, dataset)
    sampler = components.make_sampler(settings, task, model_state)
    state = jax.eval_shape(lambda key: sampler.init(key, 20), jax.random.key(0)).inner
    assert state.buffer.losses.shape == (20, 10)
    assert task.initial_loss == pytest.approx(np.log(100 if name == "ptb" else 10))
    layers = state.scorer.params["params"]
    lstm = layers["_StackedLSTM_0"]
    sizes = [(lstm[f"kernel_{i}"].shape, lstm[f"recurrent_{i}"].shape) for i in range(2)]
    assert sizes == [((1, 4 * 32), (32, 4 * 32)), ((32, 4 * 32), (32, 4 * 32))]
    by_class = name != "ptb"  # of words there are too many; see docs/methods.md
    assert layers["Dense_0"]["kernel"].shape == (64 if by_class else 32, 1)
    assert ("Embed_0" in layers) == by_class
    assert not by_class or layers["Embed_0"]["embedding"].shape == (10, 32)


@PAPER_CASES
def test_the_papers_networks(name):
    settings = config_of_paper(name)
    _, params, _ = task_of(settings, FAKES[name]())
    kernels = [
        params[f"{kind}_{i}"]["kernel"].shape[-1]
        for kind in ("Conv", "Dense")
        for i in range(sum(key.startswith(kind) for key in params))
    ]
    outputs = {
        "mnist": [32, 32, 64, 64, 512, 512, 10],
        "cifar10": [64, 64, 128, 128, 256, 256, 1024, 512, 10],
        "ptb": [100],
    }
    assert kernels == outputs[name]
    assert sum(key.startswith("BatchNorm") for key in params) == 6 * (name == "cifar10")
    if name == "ptb":
        assert params["Embed_0"]["embedding"].shape == (100, 64)
        assert params["OptimizedLSTMCell_1"]["hi"]["kernel"].shape == (256, 256)
        assert settings.network_options.dropout == 0.5
        assert not settings.network_options.drop_embedding


def test_the_papers_other_language_models_are_in_the_docstring():
    text = " ".join(module_of(FOLDER / "paper" / "ptb.py").__doc__.split())
    for features, embedding in ((384, "embedding=128"), (650, "the same embedding")):
        assert re.search(rf"features={features} and [^,]*{embedding}[,.]", text)


@PAPER_CASES
def test_the_papers_docstrings_say_cost_and_result(name):
    text = module_of(FOLDER / "paper" / f"{name}.py").__doc__
    assert text.startswith("The authors' code, July 2017: ")
    for heading in ("Cost", "Result"):
        assert re.search(rf"^{heading}: [a-z0-9 ]+", text, re.M), heading


def test_the_papers_pixels_and_augmentation():
    for name in ("mnist", "cifar10"):
        assert config_of_paper(name).pixels == "unit"
    assert config_of_paper("mnist").augment == ()
    settings = config_of_paper("cifar10")
    assert settings.augment == ("flip", "crop")
    assert settings.augment_options.crop.padding == round(0.1 * 32)


@pytest.mark.slow
def test_the_papers_draws_are_uniform_for_100_batches_then_by_the_clamped_prediction():
    settings = config_of_paper("mnist")
    settings.batch_size, settings.network_options.width = 6, 1
    task = components.make_task(settings, FAKES["mnist"]())
    sampler = components.make_sampler(settings, task)
    state = jax.jit(lambda: sampler.init(jax.random.key(0), 20))()
    ids, train = np.arange(20), task.dataset.train
    sample = jax.jit(lambda state: sampler.sample(jax.random.key(1), state, ids, train))

    def at(step):
        inner = state.inner._replace(step=np.int32(step))
        return sample(state._replace(inner=inner))

    draw, _ = at(99)
    np.testing.assert_allclose(draw.draw_probs, 1 / 20, rtol=1e-6)
    np.testing.assert_array_equal(draw.weights, 1.0)
    draw, opened = at(100)
    by_hand = scorers.learned(num_classes=10, linear=True, initial_observed=True)
    history = np.full((20, 10), np.log(10), np.float32)
    rows = Rows(history, np.zeros(20, np.int32), train)
    scores = np.asarray(jax.jit(by_hand.score)(state.inner.scorer, rows), np.float64)
    assert 2 < len(set(scores)) <= 10  # by the class: nothing else is known yet
    np.testing.assert_allclose(draw.draw_probs, (scores / scores.sum())[draw.ids], rtol=1e-4)
    unbiased = 1 / (20 * np.asarray(draw.draw_probs, np.float64))
    biased, drawn = unbiased**0.5, scores[draw.ids]
    weights = sampler.weigh(opened, draw, np.zeros(6, np.float32))
    expected = biased * (unbiased @ drawn) / (biased @ drawn)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    assert np.ptp(weights) > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["learned_loss", "biased_loss", "uniform"])
@PAPER_CASES
def test_the_papers_experiments_run(name, method, tmp_path):
    settings = config_of_paper(name, method)
    settings.update({"num_steps": 8, "num_evals": 1, "batch_size": 6, "pool_size": 12})
    settings.update({"artifacts": False, "checkpoint_every": 0, "log_every": 1})
    if settings.gate:
        settings.gate_options.steps = 4
    small = {"features": 8, "embedding": 4} if name == "ptb" else {"width": 2}
    settings.network_options.update(small)
    settings.reestimate_batches = 2 if name == "cifar10" else 0
    settings.seed = 1  # with others the linear, clamped predictions may all begin at 0
    last = experiment.run(settings, tmp_path, FAKES[name]())
    assert last["step"] == 8 and last["skipped"] == 0 and np.isfinite(last["test_loss"])
    lines = [json.loads(x) for x in (tmp_path / "training.jsonl").read_text().splitlines()]
    uneven = [line["max_weight"] != 1 for line in lines]
    start = {"learned_loss": 4, "biased_loss": 0, "uniform": 8}[method]
    assert not any(uneven[:start]) and all(uneven[start:])
