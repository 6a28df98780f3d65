import importlib.util
import pathlib

import pytest
from ml_collections import ConfigDict

from isjax import config as configs
from isjax.config import ConfigError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def with_settings(**settings):
    config = configs.default_config()
    config.update(settings)
    return config


def test_the_defaults_are_sound():
    configs.check(configs.default_config())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_sound(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    configs.check(module.get_config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 0.1}, r"config\.learning_rat is not a setting; did you mean learning_r"),
        ({"method": "lastloss"}, "config.method: lastloss is not a method; did you mean last_loss"),
        ({"method": "xyz"}, "choose from biased_loss, last_loss, learned_loss, uniform"),
        ({"dataset": "mnist2d"}, "did you mean mnist1d"),
        ({"network": "HistoryLSTM"}, "not a network; choose from CNN, MLP"),
        ({"optimizer": "sdg"}, "did you mean sgd"),
        ({"pool_size": 100}, "pool_size is 100, smaller than config.batch_size, which is 128"),
        ({"batch_size": 0}, "batch_size is 0; choose at least 1"),
        ({"num_steps": -5}, "num_steps is -5; choose at least 1"),
        ({"num_evals": 0}, "num_evals is 0; choose at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; choose more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(settings, message):
    with pytest.raises(ConfigError, match=message):
        configs.check(with_settings(**settings))


def test_a_missing_setting_is_named():
    config = configs.default_config()
    del config.seed
    with pytest.raises(ConfigError, match="config lacks seed"):
        configs.check(config)


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
        ({"exponnt": 3}, "config.power_options.exponnt is not an option; did you mean exponent"),
        ({"base": 3}, "config.power_options.base is decided by the run; leave it out"),
        ({"exponent": 4}, "config.power_options: exponent is 4; choose at most 3"),
        ({"exponent": "a"}, "config.power_options: "),
    ],
)
def test_build_says_what_is_wrong_with_an_option(options, message):
    with pytest.raises(ConfigError, match=message):
        build(options)
