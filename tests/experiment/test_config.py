import pytest
from ml_collections import ConfigDict

from isjax import conditions, networks, recipes, tasks, weights
from isjax.experiment import config as configs
from isjax.experiment import schedules
from isjax.experiment.config import ConfigError
from isjax.tasks import augmentations

NAN, INFINITY = float("nan"), float("inf")


def with_settings(**settings):
    config = configs.default_config()
    config.update(settings)
    return config


def test_the_defaults_are_sound():
    configs.check(configs.default_config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 0.1}, r"config\.learning_rat is not a setting; did you mean learning_r"),
        ({"method": "lastloss"}, "config.method: lastloss is not a method; did you mean last_loss"),
        ({"method": "xyz"}, "choose from " + ", ".join(sorted(recipes.__all__))),
        ({"task": "regresion"}, "config.task: regresion is not a task; did you mean regression"),
        ({"task": "xyz"}, "not a task; choose from classification, language, regression"),
        (
            {"network": "HistoryLSTM"},
            "not a network; choose from CNN, LSTM, MLP, Transformer, VGG, WideResNet",
        ),
        ({"network": "WideResnet"}, "not a network; did you mean WideResNet"),
        ({"network": "max_pool"}, "config.network: max_pool is not a network"),
        ({"pixels": "units"}, "pixels: units is not a scale of pixels; did you mean unit"),
        ({"schedule": "cosin"}, "config.schedule: cosin is not a schedule; did you mean cosine"),
        ({"schedule": "xyz"}, "not a schedule; choose from constant, cosine, step"),
        ({"augment": ("flop",)}, "config.augment: flop is not an augmentation; did you mean flip"),
        ({"augment": ("flip", "crop", "xyz")}, "xyz is not an augmentation; choose from crop, fl"),
        ({"augment": (5,)}, "config.augment: 5 is not an augmentation; choose from crop, fl"),
        ({"optimizer": "sdg"}, "sdg is not an optimizer; did you mean sgd"),
        ({"optimizer": "MultiSteps"}, "MultiSteps is not an optimizer; choose from adabelief, "),
        ({"optimizer": "apply_if_finite"}, "apply_if_finite is not an optimizer"),
        ({"optimizer": "assignment"}, "assignment is not an optimizer"),  # a module
        ({"optimizer": "scale_by_rprop"}, "scale_by_rprop is not an optimizer"),
        ({"batch_size": 0}, "batch_size is 0; choose at least 1"),
        ({"num_steps": -5}, "num_steps is -5; choose at least 1"),
        ({"num_evals": 0}, "num_evals is 0; choose at least 1"),
        ({"pool_size": 0, "batch_size": 0}, "pool_size is 0; choose at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0; choose at least 1"),
        ({"log_every": 0}, "log_every is 0; choose at least 1"),
        ({"eval_examples": -1}, "eval_examples is -1; choose at least 0"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1; choose at least 0"),
        ({"seed": -1}, "config.seed is -1; choose one from 0 to 4294967295"),
        ({"seed": 2**32}, "config.seed is 4294967296; choose one from 0 to 4294967295"),
        ({"steps_per_call": -1}, "steps_per_call is -1; choose at least 0"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; choose at least 0"),
        ({"weight_decay": NAN}, "weight_decay is nan; choose at least 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; choose at least 0"),
        ({"clip_norm": NAN}, "clip_norm is nan; choose at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; choose more than 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1; choose more than 0"),
        ({"learning_rate": NAN}, "learning_rate is nan"),
        ({"budget": 0.0}, "budget is 0.0; choose a share above 0"),
        ({"budget": -0.5}, "budget is -0.5; choose a share above 0"),
        ({"budget": NAN}, "budget is nan; choose a share above 0"),
        ({"budget": INFINITY}, "budget is inf"),
        ({"reference_budget": 0.0}, r"config\.reference_budget is 0.0; choose a share above 0"),
        ({"reference_budget": 1.5}, r"reference_budget is 1.5; choose a share above 0, at most 1"),
        ({"reference_budget": NAN}, "reference_budget is nan"),
        ({"max_skipped": -0.1}, "max_skipped is -0.1; choose a share from 0 to 1"),
        ({"max_skipped": 2.0}, "max_skipped is 2.0; choose a share from 0 to 1"),
        ({"max_skipped": NAN}, "max_skipped is nan"),
        ({"gate": "aftr"}, r"config\.gate: aftr is not a gate; did you mean after"),
        ({"gate": "xyz"}, "choose from after, error_rate, mean_loss, tau, total_variation, until$"),
        ({"weighting": "correctng"}, "correctng is not a weighting; did you mean correcting"),
        ({"weighting": "xyz"}, "choose from adjusted, biased, correcting, none$"),
        ({"weighting": "importance_weights"}, "importance_weights is not a weighting"),
        (
            {"augment": ("flip", "mixup"), "augment_options": {"mixu": {"alpha": 0.5}}},
            r"config\.augment_options\.mixu is not in config\.augment; did you mean mixup",
        ),
        (
            {"augment": ("flip",), "augment_options": {"crop": {"padding": 2}}},
            r"augment_options\.crop is not in config\.augment; choose from flip",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(settings, message):
    with pytest.raises(ConfigError, match=message):
        configs.check(with_settings(**settings))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (
            ConfigDict({"data": "x"}),
            "mesh.data is 'x'; choose a whole number of devices, at least 0",
        ),
        (ConfigDict({"data": -1}), "mesh.data is -1; choose .* at least 0"),
        (ConfigDict({"model": 0}), "mesh.model is 0; choose .* at least 1"),
        (ConfigDict({"data": 1.5}), r"mesh.data is 1\.5; choose a whole number"),
        (ConfigDict({"x": 1}), "config.mesh.x is not an axis; choose from data, model"),
        ("x", "config.mesh is 'x'; give the devices along each axis, as in config.mesh.data=2"),
    ],
)
def test_a_mesh_is_whole_numbers_of_devices(mesh, message):
    config = configs.default_config()
    with config.ignore_type():
        config.mesh = mesh
    with pytest.raises(ConfigError, match=message):
        configs.check(config)


@pytest.mark.parametrize(
    ("settings", "option", "hint"),
    [
        ({"method": "last_loss"}, "method_options.smooting", "last_loss; did you mean smoothing"),
        ({"method": "uniform"}, "method_options.k", "uniform; choose from initial_loss"),
        ({"network": "CNN"}, "network_options.chanels", "CNN; did you mean channels"),
        ({"optimizer": "adam"}, "optimizer_options.betas", "adam; choose from b1, b2, "),
        ({"optimizer": "nadam"}, "optimizer_options.nestrov", "did you mean nesterov"),
        ({"schedule": "step"}, "schedule_options.boundary", "did you mean boundaries"),
        ({"dataset": "mnist1d"}, "dataset_options.num_trian", "did you mean num_train"),
        ({"dataset": "whatever_tfds_has"}, "dataset_options.tran", "did you mean train"),
        ({"gate": "tau"}, "gate_options.treshold", "did you mean threshold"),
        ({"gate": ""}, "gate_options.threshold", "; leave it out"),
        ({"weighting": "biased"}, "weighting_options.kk", "did you mean k"),
    ],
)
def test_an_option_that_nothing_takes_is_refused_before_data_are_loaded(settings, option, hint):
    setting, name = option.split(".")
    config = with_settings(**settings, **{setting: {name: 1}})
    with pytest.raises(ConfigError, match=f"^config.{option} is not an option.*({hint})"):
        configs.check(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_examples": 0, "checkpoint_every": 0, "steps_per_call": 0},
        {"weight_decay": 0.0, "clip_norm": 0.0},
        {"batch_size": 1, "pool_size": 1, "num_steps": 1, "num_evals": 1, "eval_batch_size": 1},
        {"batch_size": 64, "pool_size": 64, "log_every": 1},
        {"budget": 1e-9, "learning_rate": 1e-9},
        {"seed": 2**32 - 1},
        {"augment": ("crop", "flip", "crop")},
        {"augment": ("flip", "mixup"), "augment_options": {"mixup": {"alpha": 0.5}}},
        {"gate": "", "weighting": "", "reference_budget": 1.0},
        {"dataset": "whatever_tensorflow_datasets_has"},  # its builder says whether there is one
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_settings_at_their_limits_are_sound(settings):
    configs.check(with_settings(**settings))


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("task", tasks.__all__),
        ("network", [name for name in networks.__all__ if not name.startswith("History")]),
        ("schedule", schedules.__all__),
        ("optimizer", ["sgd", "adam", "adamw", "nadam", "lion"]),
        ("method", recipes.__all__),
        ("gate", conditions.__all__),
        ("weighting", weights.__all__),
        ("augment", [(name,) for name in augmentations.__all__]),
        ("pixels", ["standardised", "unit"]),
    ],
)
def test_every_name_there_is_can_be_given(setting, names):
    assert names
    for name in names:
        configs.check(with_settings(**{setting: name}))


@pytest.mark.parametrize("setting", configs.default_config())
def test_a_missing_setting_is_named(setting):
    config = configs.default_config()
    del config[setting]
    with pytest.raises(
        ConfigError, match=f"config lacks {setting}; start from isjax.experiment.default_config"
    ):
        configs.check(config)


def test_all_missing_settings_are_named_at_once():
    config = configs.default_config()
    del config.seed, config.budget
    with pytest.raises(ConfigError, match="config lacks budget, seed; start from"):
        configs.check(config)


def test_defaults_are_made_anew():
    """Changing one config must not change the next."""
    configs.default_config().method_options.k = 0.5
    assert not configs.default_config().method_options


# The number of steps.


@pytest.mark.parametrize(
    ("steps", "budget", "want"),
    [
        (10_000, 1.0, 10_000),
        (10_000, 0.5, 5_000),
        (10_000, 0.7, 7_000),
        (1000, 0.29, 290),  # 289.99999999999994 as floats go
        (100, 0.3333, 33),
        (100, 0.3367, 34),
        (10, 1e-6, 1),
        (1, 1.0, 1),
        (1, 0.1, 1),
    ],
)
def test_a_budget_is_a_share_of_the_steps_and_at_least_one(steps, budget, want):
    got = configs.num_steps(with_settings(num_steps=steps, budget=budget))
    assert got == want and type(got) is int


# Differences.


def test_equal_configs_do_not_differ():
    one = with_settings(augment=("flip",), method_options={"k": 0.5, "smoothing": 0.1})
    two = with_settings(method_options={"smoothing": 0.1, "k": 0.5}, augment=("flip",))
    assert configs.differences(one, two) == configs.differences(one, one) == {}


def test_what_differs_is_named_with_both_values():
    one, two = configs.default_config(), with_settings(seed=3, method="last_loss")
    assert configs.differences(one, two) == {"method": ("uniform", "last_loss"), "seed": (0, 3)}
    assert configs.differences(two, one) == {"method": ("last_loss", "uniform"), "seed": (3, 0)}


def test_options_are_named_with_a_dot():
    one = {"seed": 0, "method_options": {"k": 0.5, "a": {"b": {"c": 1, "d": 2}}}}
    two = {"seed": 0, "method_options": {"k": 0.25, "a": {"b": {"c": 1, "d": 3}}}}
    want = {"method_options.k": (0.5, 0.25), "method_options.a.b.d": (2, 3)}
    assert configs.differences(one, two) == want
    assert list(configs.differences(one, two)) == sorted(want)


def test_options_of_config_dicts_are_named_with_a_dot_too():
    one = with_settings(method_options={"k": 0.5}, network_options={"hidden": (3, 4)})
    two = with_settings(method_options={"k": 0.25}, network_options={"hidden": [3, 4]})
    assert configs.differences(one, two) == {"method_options.k": (0.5, 0.25)}
    assert configs.differences(one.to_dict(), two) == {"method_options.k": (0.5, 0.25)}


def test_what_one_lacks_is_none_there():
    one = {"seed": 1, "method_options": {"k": 0.5}}
    two = {"num_steps": 9, "method_options": {}}
    want = {"method_options.k": (0.5, None), "num_steps": (None, 9), "seed": (1, None)}
    assert configs.differences(one, two) == want
    assert configs.differences({"method_options": {"k": 0.5}}, {}) == {
        "method_options.k": (0.5, None)
    }


def test_none_is_not_the_same_as_nothing():
    """Momentum None is plain SGD; no momentum given means 0.9."""
    plain, usual = {"optimizer_options": {"momentum": None}}, {"optimizer_options": {}}
    assert list(configs.differences(plain, usual)) == ["optimizer_options.momentum"]
    assert list(configs.differences(usual, plain)) == ["optimizer_options.momentum"]


def test_tuples_are_the_same_as_lists():
    """JSON, in which the old config is kept, has no tuples."""
    one = {"augment": ("flip",), "network_options": {"hidden": (3, 4)}}
    two = {"augment": ["flip"], "network_options": {"hidden": [3, 4]}}
    assert configs.differences(one, two) == configs.differences(two, one) == {}
    two["network_options"]["hidden"] = [4, 3]
    assert configs.differences(one, two) == {"network_options.hidden": ([3, 4], [4, 3])}


# Building what a name stands for.


def power(base, exponent=2, scale=1):
    if exponent > 3:
        raise ValueError(f"exponent is {exponent}; choose at most 3")
    return scale * base**exponent


def build(options, **kwargs):
    return configs.build("power_options", power, ConfigDict(options), {"base": 3}, **kwargs)


def test_build_passes_what_the_function_takes():
    assert build({"exponent": 3}) == 27
    assert build({}, defaults={"exponent": 1, "unknown": 5}) == 3
    assert build({"exponent": 3}, defaults={"exponent": 1}) == 27


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"exponnt": 3},
            "config.power_options.exponnt is not an option of power; did you mean exponent",
        ),
        ({"base": 3}, "config.power_options.base is decided by the run; leave it out"),
        ({"exponent": 4}, "config.power_options: exponent is 4; choose at most 3"),
        ({"exponent": "a"}, "config.power_options {'exponent': 'a'}, of power: "),
    ],
)
def test_build_says_what_is_wrong_with_an_option(options, message):
    with pytest.raises(ConfigError, match=message):
        build(options)
