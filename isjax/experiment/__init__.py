"""Runs from a config, which survive: the same call on the same folder resumes."""

from isjax.experiment._run import run

__all__ = ["run"]
