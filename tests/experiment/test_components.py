import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import BY_CONFIG, compiled, innermost, with_innermost

from isjax import buffer, conditions, data, networks, recipes, tasks, weights
from isjax.data.dataset import from_arrays
from isjax.experiment import components
from isjax.experiment.config import ConfigError, default_config
from isjax.experiment.reference_models import placeholders
from isjax.tasks import Task, augmentations
from isjax.training import init_train_state, make_train_step

KEY = jax.random.key(0)


def make_config(**settings):
    config = default_config()
    config.update({"network": "MLP", "network_options": {"hidden": (4,)}, "num_steps": 60})
    config.update({"batch_size": 16, "pool_size": 32, "learning_rate": 0.1} | settings)
    return config


def make_classes(size=40):
    x = np.random.default_rng(0).normal(size=(size, 8)).astype(np.float32)
    part = {"x": x, "label": x[:, :3].argmax(axis=1).astype(np.int32)}
    return from_arrays(part, {name: value[-20:] for name, value in part.items()}, 3)


def make_words(windows):
    tokens = np.random.default_rng(0).integers(0, 4, (20, 6)).astype(np.int32)
    part = {"x": tokens[:, :-1], "y": tokens[:, 1:] if windows else tokens[:, -1]}
    return from_arrays(part, part, vocabulary=("a", "b", "c", "d"))


def make_numbers():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    return from_arrays(*[{"x": x, "y": x[:, :2]}] * 2)


# The optimiser, against itself written out in NumPy, float64.

GRADIENTS = 5


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "bias": (2,), "scale": (), "filter": (2, 1, 2, 2)}
    return {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}


def gradients():
    rng = np.random.default_rng(1)
    return [
        {name: np.float32(size * rng.normal(size=x.shape)) for name, x in parameters().items()}
        for size in np.linspace(0.01, 2.0, GRADIENTS)  # the first are not clipped
    ]


def updated(config, grads=None):
    """The parameters after a step for each gradient."""
    tx = components.make_optimizer(config)

    @jax.jit
    def train(params, grads):
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return train(parameters(), gradients() if grads is None else grads)


def clipped(grads, limit):
    """The whole gradient scaled to the norm `limit` where it is longer."""
    norm = math.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
    factor = min(1.0, limit / norm) if limit else 1.0
    return {name: factor * g for name, g in grads.items()}


def cosine(config, step):
    num_steps = round(config.num_steps * config.budget)
    return config.learning_rate * (1 + math.cos(math.pi * min(step / num_steps, 1))) / 2


def as_float64(tree):
    return {name: np.asarray(value, np.float64) for name, value in tree.items()}


def sgd_by_hand(config, momentum):
    weights = as_float64(parameters())
    velocity = {name: np.zeros_like(w) for name, w in weights.items()}
    for step, grads in enumerate(gradients()):
        grads = clipped(as_float64(grads), config.clip_norm)
        for name, w in weights.items():
            grad = grads[name] + (config.weight_decay * w if w.ndim > 1 else 0.0)
            velocity[name] = momentum * velocity[name] + grad
            weights[name] = w - cosine(config, step) * velocity[name]
    return weights


def adam_by_hand(config, decoupled):
    weights = as_float64(parameters())
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    for step, grads in enumerate(gradients()):
        grads = clipped(as_float64(grads), config.clip_norm)
        for name, w in weights.items():
            decay = config.weight_decay * w if w.ndim > 1 else 0.0
            grad = grads[name] + (0.0 if decoupled else decay)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name]
            direction = mean / (np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8)
            direction = direction + (decay if decoupled else 0.0)
            weights[name] = w - cosine(config, step) * direction
    return weights


def assert_same(params, expected, atol=1e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=2e-5, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize(
    ("options", "momentum"),
    [({}, 0.9), ({"momentum": None}, 0.0), ({"momentum": 0.5}, 0.5)],
    ids=["default momentum", "none", "half"],
)
def test_sgd_clips_then_decays_then_has_momentum(clip_norm, weight_decay, options, momentum):
    """Weight decay is L2, of what has two axes or more; it is neither clipped nor left out of m."""
    config = make_config(clip_norm=clip_norm, weight_decay=weight_decay, num_steps=8)
    config.optimizer_options = options
    assert_same(updated(config), sgd_by_hand(config, momentum))


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_is_decoupled_where_the_optimiser_has_its_own(
    optimizer, weight_decay, clip_norm
):
    config = make_config(optimizer=optimizer, weight_decay=weight_decay, clip_norm=clip_norm)
    config.num_steps = 8
    expected = adam_by_hand(config, decoupled=optimizer == "adamw")
    assert_same(updated(config), expected, atol=2e-5)  # 1 - 0.999 in float32


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "nadamw", "lion", "adan"])
def test_without_weight_decay_nothing_pulls_at_the_weights(optimizer):
    """Nor does what an optimiser decays by default, such as 1e-4 of adamw."""
    zero = [jax.tree.map(np.zeros_like, parameters())] * 3
    assert_same(updated(make_config(optimizer=optimizer), zero), parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "nadamw", "lion", "adan"])
def test_decoupled_weight_decay_spares_biases_and_scales(optimizer):
    config = make_config(optimizer=optimizer, weight_decay=0.5, schedule="constant")
    zero = [jax.tree.map(np.zeros_like, parameters())]
    expected = {
        name: value * (1 - 0.1 * 0.5) if value.ndim > 1 else value
        for name, value in as_float64(parameters()).items()
    }
    assert_same(updated(config, zero), expected)


def rates(config, number):
    """The learning rate of each step: what plain SGD subtracts for a gradient of one."""
    config.optimizer, config.optimizer_options = "sgd", {"momentum": None}
    tx = components.make_optimizer(config)
    one = jnp.ones(())
    update, state, sizes = jax.jit(tx.update), tx.init(one), []
    for _ in range(number):
        change, state = update(one, state, one)
        sizes.append(-float(change))
    return np.array(sizes)


def test_the_learning_rate_decays_to_zero():
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(5) / 4))
    np.testing.assert_allclose(rates(make_config(num_steps=4), 5), expected, atol=1e-7)


@pytest.mark.parametrize(("budget", "steps"), [(0.5, 10), (0.25, 5), (1.0, 20), (0.12, 2)])
def test_the_schedule_is_over_when_the_budget_is(budget, steps):
    got = rates(make_config(num_steps=20, budget=budget), 22)
    share = np.minimum(np.arange(22) / steps, 1.0)
    np.testing.assert_allclose(got, 0.05 * (1 + np.cos(np.pi * share)), atol=1e-7)
    assert got[steps - 1] > 1e-4 and np.all(np.abs(got[steps:]) < 1e-8)


def test_a_schedule_gets_its_options():
    config = make_config(num_steps=40, budget=0.5, schedule="step")
    config.schedule_options = {"warmup": 0.2, "boundaries": (0.5,), "factor": 0.1}
    expected = 0.1 * np.array([0.0, 0.25, 0.5, 0.75] + [1.0] * 6 + [0.1] * 12)
    np.testing.assert_allclose(rates(config, 22), expected, rtol=1e-6)
    config = make_config(num_steps=40, schedule="constant")
    np.testing.assert_allclose(rates(config, 3), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_options": {"momentun": 0.9}}, "momentun is not an option of sgd; did"),
        ({"optimizer_options": {"learning_rate": 1.0}}, "learning_rate is decided by the run"),
        (
            {"optimizer": "adamw", "optimizer_options": {"weight_decay": 0.1}},
            r"optimizer_options\.weight_decay is decided by the run",
        ),
        ({"schedule_options": {"warmpu": 0.1}}, "warmpu is not an option of cosine; did"),
        ({"schedule_options": {"warmup": 2.0}}, r"config\.schedule_options: warmup: 2.0 is no sh"),
        ({"schedule_options": {"num_steps": 9}}, r"schedule_options\.num_steps is decided by the"),
        ({"schedule_options": {"factor": 0.1}}, "factor is not an option"),  # of cosine
    ],
)
def test_a_bad_option_of_the_optimiser_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        components.make_optimizer(make_config(**settings))


# The task.


@pytest.fixture
def network_given(monkeypatch):
    """What the network CNN is made from."""
    given = {}

    def network(outputs, every_position=None, channels=7):
        given.update(outputs=outputs, every_position=every_position, channels=channels)
        return networks.MLP(outputs)

    monkeypatch.setattr(networks, "CNN", network)
    return given


@pytest.mark.parametrize(
    ("task", "dataset", "outputs", "every_position"),
    [
        ("classification", make_classes(), 3, False),
        ("language", make_words(windows=True), 4, True),
        ("language", make_words(windows=False), 4, False),
        ("regression", make_numbers(), 2, False),
    ],
    ids=["classification", "windows", "next word", "regression"],
)
def test_a_network_fits_its_task(network_given, task, dataset, outputs, every_position):
    config = make_config(task=task, network="CNN")
    config.network_options = {"channels": 9}
    made = components.make_task(config, dataset)
    wanted = {"outputs": outputs, "every_position": every_position, "channels": 9}
    assert network_given == wanted
    assert isinstance(made, Task) and made.dataset is dataset


@pytest.mark.parametrize("windows", [True, False])
def test_an_lstm_predicts_after_every_token_or_after_the_last(windows):
    config = make_config(task="language", network="LSTM")
    config.network_options = {"features": 3, "layers": 1, "embedding": 2}
    task = components.make_task(config, make_words(windows))
    params, model_state = jax.eval_shape(task.init, KEY)
    scores = jax.eval_shape(task.score_fn, params, model_state, task.dataset.train)
    assert scores.shape == (20,) and task.initial_loss == math.log(4)


def test_a_task_is_what_its_name_says():
    dataset, config = make_classes(), make_config()
    task = components.make_task(config, dataset)
    params, model_state = jax.jit(task.init)(KEY)
    by_hand = tasks.classification(dataset, networks.MLP(3, hidden=(4,)))
    np.testing.assert_array_equal(
        task.score_fn(params, model_state, dataset.test),
        by_hand.score_fn(params, model_state, dataset.test),
    )


@pytest.mark.parametrize(("data_dir", "passed"), [("", None), ("/some/where", "/some/where")])
def test_a_data_set_is_made_from_its_folder_and_options(monkeypatch, data_dir, passed):
    given = []

    def build(data_dir="unset", number=1):
        given.append((data_dir, number))
        return make_classes()

    monkeypatch.setattr(data, "builder", {"mine": build}.get)
    config = make_config(dataset="mine", data_dir=data_dir, dataset_options={"number": 5})
    assert components.make_task(config).dataset.num_classes == 3
    assert given == [(passed, 5)]


def test_a_data_set_that_is_generated_needs_no_folder():
    config = make_config(task="regression", dataset="friedman", data_dir="/nowhere")
    config.dataset_options = {"num_train": 5, "num_test": 3, "seed": 4}
    dataset, wanted = components.make_task(config).dataset, data.friedman(5, 3, seed=4)
    jax.tree.map(np.testing.assert_array_equal, dataset.train, wanted.train)


def test_a_data_set_that_is_given_is_not_made(monkeypatch):
    monkeypatch.setattr(data, "builder", None)
    dataset = make_classes()
    assert components.make_task(make_config(dataset="nowhere"), dataset).dataset is dataset


@pytest.mark.parametrize("names", [(), ("flip",), ("crop", "flip"), ("flip", "crop")])
def test_augmentations_are_passed_by_name_in_order(monkeypatch, names):
    given = []
    monkeypatch.setattr(tasks, "classification", lambda *arguments: given.append(arguments))
    config, dataset = make_config(augment=names), make_classes()
    components.make_task(config, dataset)
    assert given[0][0] is dataset and given[0][1].init.__self__ == networks.MLP(3, hidden=(4,))
    made = [(augment.func, augment.keywords) for augment in given[0][2]]
    assert made == [(getattr(augmentations, name), {}) for name in names]


@pytest.mark.slow
def test_an_augmentation_gets_its_options(monkeypatch):
    given = []
    monkeypatch.setattr(tasks, "classification", lambda *arguments: given.append(arguments))
    config = make_config(augment=("crop", "mixup", "flip"))
    config.augment_options = {"mixup": {"alpha": 0.25}, "crop": {"padding": 1}}
    components.make_task(config, make_classes())
    made = [(augment.func, augment.keywords) for augment in given[0][2]]
    assert made == [
        (augmentations.crop, {"padding": 1}),
        (augmentations.mixup, {"alpha": 0.25}),
        (augmentations.flip, {}),
    ]
    # And applies them: of a crop by one pixel the middle is what is within one pixel of it.
    crop, images = given[0][2][0], jnp.arange(49.0).reshape(1, 7, 7, 1)
    middles = {float(crop(jax.random.key(seed), images)[0, 3, 3, 0]) for seed in range(40)}
    assert middles == {24.0 + 7 * i + j for i in (-1, 0, 1) for j in (-1, 0, 1)}


# Wrong labels.


@pytest.mark.parametrize("seed", [0, 1])
def test_label_noise_gives_a_share_of_the_training_examples_a_wrong_label(seed):
    dataset = make_classes()
    before = dataset.train["label"].copy()
    noisy = components.make_task(make_config(label_noise=0.3, seed=seed), dataset).dataset
    wrong = noisy.train["label"] != before
    assert wrong.sum() == 12 and noisy.train["label"].dtype == np.int32
    np.testing.assert_array_equal(dataset.train["label"], before)  # a copy is changed
    np.testing.assert_array_equal(noisy.train["x"], dataset.train["x"])
    np.testing.assert_array_equal(noisy.test["label"], dataset.test["label"])
    again = components.make_task(make_config(label_noise=0.3, seed=seed), dataset).dataset
    np.testing.assert_array_equal(again.train["label"], noisy.train["label"])
    other = components.make_task(make_config(label_noise=0.3, seed=seed + 5), dataset).dataset
    assert np.any((other.train["label"] != before) != wrong)


@pytest.mark.parametrize(
    ("settings", "dataset", "message"),
    [
        ({"label_noise": 1.5}, make_classes(), r"label_noise is 1.5; choose a share in \[0, 1\]"),
        ({"label_noise": -0.1}, make_classes(), "label_noise is -0.1; choose a share"),
        ({"label_noise": float("nan")}, make_classes(), "label_noise is nan; choose a share"),
        (
            {"label_noise": 0.1, "task": "regression"},
            make_numbers(),
            "label_noise is 0.1, but the data set has no classes; leave it out",
        ),
    ],
)
def test_label_noise_that_cannot_be_is_refused(settings, dataset, message):
    with pytest.raises(ConfigError, match=message):
        components.make_task(make_config(**settings), dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network_options": {"hiden": (3,)}}, "hiden is not an option of MLP; did"),
        ({"network_options": {"outputs": 4}}, r"network_options\.outputs is decided by the run"),
        ({"dataset": "friedman", "dataset_options": {"nois": 1.0}}, "nois .* did you mean noise"),
        ({"dataset": "friedman", "dataset_options": {"noise": -1.0}}, "noise = -1.0; choose a fin"),
        ({"dataset": "ptb"}, r"config\.dataset_options: ptb: no data_dir given"),
        ({"dataset": "ptb", "dataset_options": {"data_dir": "x"}}, "data_dir is decided by the r"),
        ({"dataset": "mnist2d"}, r"config\..*no data set mnist2d; did you mean .*mnist1d"),
    ],
)
def test_a_bad_option_of_the_task_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        components.make_task(make_config(**settings))


# The sampler.


@pytest.fixture
def sampler_given(monkeypatch):
    """What the method last_loss is made from."""
    given = {}

    def recipe(
        *,
        batch_size,
        loss_fn,
        pool_size,
        num_steps,
        num_classes=None,
        label_fn=None,
        logits_fn=None,
        initial_loss=1.0,
        k=0.5,
    ):
        given.update(locals())
        return recipes.uniform(batch_size=batch_size)

    monkeypatch.setattr(recipes, "last_loss", recipe)
    return given


def test_the_sampler_gets_what_the_task_knows(sampler_given):
    config = make_config(method="last_loss", method_options={"k": 0.25})
    task = components.make_task(config, make_classes())
    components.make_sampler(config, task)
    assert (sampler_given["batch_size"], sampler_given["k"]) == (16, 0.25)
    assert (sampler_given["pool_size"], sampler_given["num_steps"]) == (32, 60)
    assert sampler_given["num_classes"] == 3 and sampler_given["label_fn"] is task.label_fn
    assert sampler_given["initial_loss"] == math.log(3)
    params, _ = jax.jit(task.init)(KEY)
    batch = task.dataset.test
    np.testing.assert_array_equal(
        sampler_given["loss_fn"](params, batch), task.score_fn(params, None, batch)
    )
    np.testing.assert_array_equal(
        sampler_given["logits_fn"](params, batch), task.output_fn(params, None, batch)
    )


def test_the_sampler_is_told_how_many_steps_the_budget_allows(sampler_given):
    config = make_config(method="last_loss", budget=0.25)
    components.make_sampler(config, components.make_task(config, make_classes()))
    assert sampler_given["num_steps"] == 15


@pytest.mark.parametrize(
    ("task", "dataset", "initial_loss"),
    [
        ("language", make_words(windows=True), math.log(4)),
        ("regression", make_numbers(), np.var(make_numbers().train["y"].astype(float), 0).mean()),
    ],
    ids=["language", "regression"],
)
def test_without_classes_the_sampler_gets_none(sampler_given, task, dataset, initial_loss):
    config = make_config(method="last_loss", task=task)
    components.make_sampler(config, components.make_task(config, dataset))
    assert sampler_given["num_classes"] is None and sampler_given["label_fn"] is None
    assert sampler_given["logits_fn"] is None  # outputs are no logits, or not of one class each
    assert sampler_given["initial_loss"] == pytest.approx(initial_loss, rel=1e-9)


def test_the_initial_loss_can_be_given(sampler_given):
    config = make_config(method="last_loss", method_options={"initial_loss": 0.7})
    components.make_sampler(config, components.make_task(config, make_classes()))
    assert sampler_given["initial_loss"] == 0.7


@pytest.mark.parametrize("method", ["last_loss", "learned_loss"])
@pytest.mark.parametrize("given", [None, 0.7])
def test_an_unseen_example_is_thought_to_lose_the_initial_loss(method, given):
    config = make_config(method=method, task="regression")
    config.method_options = {} if given is None else {"initial_loss": given}
    task = components.make_task(config, make_numbers())
    sampler = components.make_sampler(config, task)
    losses = jax.jit(lambda: sampler.init(KEY, 20).buffer.losses)()
    np.testing.assert_allclose(losses, given or task.initial_loss, rtol=1e-6)


class Stateful(nn.Module):
    """What dropout and the statistics of the batch would change."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.slow
@pytest.mark.parametrize("stateful", [True, False])
def test_a_pool_is_scored_in_evaluation_mode(stateful):
    """Of a network with state the sampler is given the pair of params and state."""
    network = Stateful() if stateful else networks.MLP(3, hidden=(4,))
    config, task = make_config(method="biased_loss"), tasks.classification(make_classes(), network)
    params, model_state = jax.jit(task.init)(KEY)
    if stateful:
        model_state = jax.tree.map(lambda x: x + 0.5, model_state)
    sampler = components.make_sampler(config, task, model_state)
    pool = jax.tree.map(jnp.asarray, task.dataset.train)
    variables = (params, model_state) if stateful else params
    state = compiled(sampler).init(KEY, 40)
    draw, _ = compiled(sampler).sample(KEY, state, jnp.arange(40), pool, variables)
    scores = np.asarray(task.score_fn(params, model_state, pool))
    np.testing.assert_allclose(draw.scores, scores[draw.index], rtol=1e-5)
    assert draw.ids.shape == (16,)


@pytest.mark.slow
@pytest.mark.parametrize("method", BY_CONFIG)
@pytest.mark.parametrize(
    ("task", "dataset"),
    [
        ("classification", make_classes()),
        ("language", make_words(windows=False)),
        ("regression", make_numbers()),
    ],
    ids=["classification", "language", "regression"],
)
def test_every_method_trains_every_kind_of_task_that_has_what_it_needs(method, task, dataset):
    """Traced, not run: what the parts give each other has the shapes they expect."""
    config = make_config(method=method, task=task, batch_size=4, optimizer="adamw")
    config.companion, config.companion_options = config.network, config.network_options
    task = components.make_task(config, dataset)
    size = len(dataset.train["x"])
    made = placeholders(config, size)
    missing = {
        "el2n": "logits_fn",
        "grad_norm_bound": "logits_fn",
        "per_class_gaussian": "num_classes",
        "proxy_loss": "num_classes",
    }.get(method)
    if missing and config.task != "classification":
        message = f"{method} needs {missing}, which the task {config.task} on mnist1d does not have"
        with pytest.raises(ConfigError, match=message):
            components.make_sampler(config, task, None, made)
        return

    def train(key, examples):
        params, model_state = task.init(key)
        tx, sampler = (
            components.make_optimizer(config),
            components.make_sampler(config, task, model_state, made),
        )
        state = init_train_state(key, params, tx, sampler, size, model_state)
        pool_size = None if sampler.own_pool else 8
        step = make_train_step(task.loss_fn, tx, sampler, pool_size=pool_size)
        return state, step(state, examples)

    before, (after, metrics) = jax.eval_shape(train, KEY, dataset.train)
    assert after == before and metrics["loss"].shape == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "last_loss", "method_options": {"kk": 1.0}}, "kk is not an option of"),
        ({"method": "last_loss", "method_options": {"k": 2.0}}, "k is 2.0; choose k <= 1"),
        ({"method": "uniform", "method_options": {"k": 0.5}}, "k is not an option"),
        ({"method_options": {"batch_size": 9}}, "batch_size is decided by the run"),
        ({"method": "learned_loss", "method_options": {"num_classes": 9}}, "num_classes is decid"),
        (
            {"method": "learned_loss", "method_options": {"history": 0}},
            "history is 0; choose 1 or more",
        ),
        ({"method": "biased_loss", "method_options": {"view": "half"}}, "view is 'half'; choose"),
        ({"method": "proxy_loss", "method_options": {"example": 1}}, "example is decided by the r"),
        (
            {"method": "companion_loss"},
            "needs companion, a small network of",
        ),
        ({"method": "by_source"}, "needs source, the source of each example in memory; take text"),
        ({"method": "by_source", "lag": 2}, "needs source, the source of each example"),
    ],
)
def test_a_bad_option_of_the_method_is_named(settings, message):
    config = make_config(**settings)
    with pytest.raises(ConfigError, match=message):
        components.make_sampler(config, components.make_task(config, make_classes()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "passes"),
    [("biased_loss", {"view": "half_resolution"}, 8), ("proxy_loss", {"step_size": 0.01}, 0)],
)
def test_a_method_for_streams_is_to_be_had_from_a_config(method, options, passes):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    part = {"x": x, "label": np.arange(40, dtype=np.int32) % 3}
    config = default_config()
    network = {"channels": (4,), "kernel": 3, "hidden": 4, "pooled": True}
    config.update({"network": "CNN", "network_options": network, "batch_size": 16})
    config.update({"method": method, "method_options": options})
    task = components.make_task(config, from_arrays(part, part, 3))
    sampler, params = compiled(components.make_sampler(config, task)), jax.jit(task.init)(KEY)[0]
    state = sampler.init(KEY, 40)
    assert buffer.size(state.buffer) == 0
    pool = jax.tree.map(lambda x: x[:32], part)
    draw, _ = sampler.sample(KEY, state, jnp.arange(32), pool, params)
    assert float(draw.info.passes) == passes and np.ptp(draw.draw_probs) > 0


@pytest.mark.slow
def test_sequences_are_scored_by_a_transformer_of_half_the_depth():
    config = make_config(method="companion_loss", task="language", batch_size=8)
    config.network = config.companion = "Transformer"
    config.network_options = {"features": 8, "layers": 4, "heads": 2}
    config.companion_options = {"features": 8, "layers": 2, "heads": 2}
    task = components.make_task(config, make_words(windows=True))
    sampler = components.make_sampler(config, task)
    pool = jax.tree.map(jnp.asarray, task.dataset.train)
    state = jax.jit(lambda: sampler.init(KEY, 20))()
    draw, _ = jax.jit(sampler.sample)(KEY, state, jnp.arange(20), pool)
    half = config.copy_and_resolve_references()
    half.network_options = config.companion_options
    score_fn = components.make_task(half, task.dataset).score_fn
    losses = jax.jit(score_fn)(state.scorer.params, None, pool)
    np.testing.assert_allclose(draw.scores, np.asarray(losses)[draw.index], rtol=1e-5)
    passes = float(draw.info.passes) / (20 + 3 * 2 * 20 / 32)  # a quarter of 8 in a pool of 32
    assert 0.45 < passes < 0.65


@pytest.mark.parametrize(("method", "name"), [("reducible_loss", "reference"), ("el2n", "scores")])
def test_what_is_made_before_training_is_missed_where_it_was_not_made(method, name):
    config = make_config(method=method)
    task = components.make_task(config, make_classes())
    with pytest.raises(ConfigError, match=f"{method} needs {name}, which the task classification"):
        components.make_sampler(config, task)
    config.method_options = {name: [1.0] * 40}  # or given
    sampler = compiled(components.make_sampler(config, task))
    assert sampler.init(KEY, 40).scorer.shape == (40,)


def first_draw(losses, **settings):
    """What a sampler draws of 40 examples with these last losses, and its weights for `seen`."""
    config = make_config(method="last_loss", batch_size=8, **settings)
    sampler = components.make_sampler(config, components.make_task(config, make_classes()))
    sampler = compiled(sampler)
    state = sampler.init(KEY, 40)
    known = innermost(state).buffer._replace(losses=losses)
    draw, state = sampler.sample(KEY, with_innermost(state, buffer=known), jnp.arange(40))
    return sampler, state, draw


LOSSES = jnp.linspace(0.1, 4.0, 40)
GATES = {
    "after": ({"steps": 0}, {"steps": 1}),
    "until": ({"steps": 1}, {"steps": 0}),
    "error_rate": ({"threshold": 0.5}, {"threshold": float("inf")}),
    "mean_loss": ({"threshold": 1e9}, {"threshold": 0.0}),
    "tau": ({"threshold": 0.9}, {"threshold": 1.1}),
    "total_variation": ({"threshold": -1.0}, {"threshold": 0.5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", conditions.__all__)
def test_a_gate_says_when_to_sample_by_the_method(name):
    """Open, the draw is the method's own; closed, uniform."""
    _, _, plain = first_draw(LOSSES)
    opened, closed = GATES[name]
    _, state, draw = first_draw(LOSSES, gate=name, gate_options=opened)
    if name == "mean_loss":  # no loss was seen: the mean is thought to be infinite
        assert np.all(np.asarray(draw.weights) == 1)
    else:
        assert state.is_open and np.ptp(np.asarray(draw.weights)) > 0.1
        jax.tree.map(np.testing.assert_array_equal, draw, plain)
    _, state, draw = first_draw(LOSSES, gate=name, gate_options=closed)
    assert not state.is_open
    np.testing.assert_array_equal(draw.weights, np.ones(8))
    np.testing.assert_allclose(draw.draw_probs, 1 / 40)


def test_a_gate_by_the_mean_loss_opens_when_losses_are_low():
    options = {"threshold": 1.0, "decay": 0.0}
    sampler, state, draw = first_draw(LOSSES, gate="mean_loss", gate_options=options)
    for seen, is_open in ((2.0, False), (0.5, True)):
        after = sampler.update(state, draw, jnp.full(8, seen))
        _, after = sampler.sample(KEY, after, jnp.arange(40))
        assert after.is_open == is_open


@pytest.mark.slow
@pytest.mark.parametrize("name", weights.__all__)
def test_a_weighting_replaces_the_methods_weights(name):
    """Those that config names are those of the module, for the losses of the batch."""
    options = {"k": 0.25} if name in ("adjusted", "biased") else {}
    sampler, state, draw = first_draw(LOSSES, weighting=name, weighting_options=options)
    losses = jnp.linspace(3.0, 0.5, 8)
    given = np.asarray(sampler.weigh(state, draw, losses))
    np.testing.assert_allclose(given, getattr(weights, name)(**options)(draw, losses), rtol=1e-6)
    probs, scores = (np.asarray(x, np.float64) for x in (draw.draw_probs, draw.scores))
    if name == "none":
        assert np.all(given == 1)
    if name == "biased":
        biased, unbiased = (40 * probs) ** -0.25, 1 / (40 * probs)
        by_hand = biased * (unbiased @ scores) / (biased @ scores)
        np.testing.assert_allclose(given, by_hand, rtol=1e-5)
    if name == "correcting":
        ratio = np.clip(scores / np.asarray(losses, np.float64), 0, 2)
        np.testing.assert_allclose(given, (40 * probs) ** -0.5 * ratio, rtol=1e-5)


def test_inside_a_closed_gate_a_weighting_is_idle():
    settings = {"weighting": "correcting", "gate": "after", "gate_options": {"steps": 1}}
    sampler, state, draw = first_draw(LOSSES, **settings)
    losses = jnp.linspace(3.0, 0.5, 8)
    np.testing.assert_array_equal(sampler.weigh(state, draw, losses), np.ones(8))
    draw, state = sampler.sample(KEY, state, jnp.arange(40))
    assert np.ptp(np.asarray(sampler.weigh(state, draw, losses))) > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "after"}, r"config\.gate_options {}, of after: .*steps"),
        ({"gate": "after", "gate_options": {"step": 3}}, "step is not an option of after; did"),
        ({"gate": "tau", "gate_options": {"threshold": 1.0, "decay": 2.0}}, "decay is 2.0; choose"),
        ({"weighting": "biased", "weighting_options": {"k": 2.0}}, "k is 2.0; choose k <= 1"),
        ({"weighting": "none", "weighting_options": {"k": 0.5}}, "weighting_options.k is not an"),
        (
            {"method": "reshuffled", "gate": "until", "gate_options": {"steps": 3}},
            r"config\.gate: reshuffled cannot have one; a gate draws from the pool it is given",
        ),
        (
            {"method": "cached", "gate": "until", "gate_options": {"steps": 3}},
            r"config\.gate: cached cannot have one",
        ),
        (
            {"method": "infobatch", "weighting": "correcting"},
            r"config\.weighting: infobatch cannot have one; reweight: this sampler is gated",
        ),
    ],
)
def test_a_bad_gate_or_weighting_is_named(settings, message):
    config = make_config(**settings)
    with pytest.raises(ConfigError, match=message):
        components.make_sampler(config, components.make_task(config, make_classes()))


@pytest.mark.parametrize("option", ["alpa", "key", "images"])
def test_a_bad_option_of_an_augmentation_is_named(option):
    config = make_config(augment=("mixup",), augment_options={"mixup": {option: 0.5}})
    message = rf"config\.augment_options\.mixup\.{option} is not an option of mixup; .*alpha"
    with pytest.raises(ConfigError, match=message):
        components.make_task(config, make_classes())


def test_a_part_of_one_example_passes_and_a_mean_loss_there_does_not():
    one = {"x": np.ones((1, 8), np.float32), "label": np.zeros(1, np.int32)}
    for dataset in (make_classes()._replace(valid=one), from_arrays(one, one, 3)):
        task = components.make_task(make_config(), dataset)
        components.check_task(task)

        def loss_fn(*args, of=task.loss_fn):
            losses, model_state = of(*args)
            return losses.mean(keepdims=True), model_state

        with pytest.raises(ConfigError, match=r"got losses of shape \(1,\) for 2 examples"):
            components.check_task(task._replace(loss_fn=loss_fn))


def images_of(size=6):
    x = np.random.default_rng(0).integers(0, 256, (size, 8, 8, 3)).astype(np.uint8)
    part = {"x": x, "label": np.arange(size, dtype=np.int32) % 3}
    return from_arrays(part, part, 3)


def test_a_value_that_an_augmentation_refuses_is_an_error_of_the_config():
    config = make_config(augment=("crop",), augment_options={"crop": {"padding": 9}})
    task = components.make_task(config, images_of())
    with pytest.raises(ConfigError, match="padding is 9, but images of 8 x 8 reflect 0 to 7"):
        components.check_task(task)


@pytest.mark.parametrize("names", [("mixup", "ricap"), ("mixup", "flip", "mixup")])
def test_two_augmentations_that_mix_are_refused(names):
    task = components.make_task(make_config(augment=names), images_of())
    with pytest.raises(ConfigError, match="two augmentations mix images; leave one of them out"):
        components.check_task(task)


@pytest.mark.parametrize("names", [(name,) for name in augmentations.__all__] + [("flip", "ricap")])
def test_every_augmentation_fits_images(names):
    components.check_task(components.make_task(make_config(augment=names), images_of()))
