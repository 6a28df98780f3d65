"""What the benchmarks share."""

import importlib.util
import pathlib

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def load_config(name):
    """The config that configs/NAME.py returns."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
