"""Runs from a config, which survive: the same call on the same folder resumes."""

from isjax.experiment._run import run
from isjax.experiment.config import ConfigError, default_config

__all__ = ["ConfigError", "default_config", "run"]
