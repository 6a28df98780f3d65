"""What is checked before a run, with the other processes stood in for."""

import json

import optax
import pytest

from isjax.experiment import _setup
from isjax.experiment._setup import check_processes, versions
from isjax.experiment.config import ConfigError, default_config


def own(**settings):
    config = default_config()
    config.update(settings)
    return {"config": config.to_dict(), "--workdir": "runs/a", **versions()}


def test_processes_that_were_started_alike_pass(monkeypatch):
    check_processes(own())  # alone
    monkeypatch.setattr(_setup, "gather", lambda text: [text] * 3)
    check_processes(own(augment=("flip",), method_options={"schedule": optax.constant_schedule(1)}))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (own(seed=1, num_steps=5), "config.num_steps is 10000 and 5, config.seed is 0 and 1; st"),
        (own(method_options={"k": 0.5}), "config.method_options.k is None and 0.5;"),
        ({**own(), "--workdir": "runs/b"}, "--workdir is runs/a and runs/b;"),
        ({**own(), "the version of isjax": "0"}, "the version of isjax is .* and 0;"),
        ({**own(), "the number of examples": 3}, "the number of examples is None and 3;"),
    ],
)
def test_what_differs_between_processes_is_named(monkeypatch, other, message):
    monkeypatch.setattr(_setup, "gather", lambda text: [text, text, json.dumps(other)])
    with pytest.raises(ConfigError, match=f"processes 0 and 2 were started differently: {message}"):
        check_processes(own())
