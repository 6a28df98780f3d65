import inspect
import subprocess
import sys

import pytest

from isjax import data


@pytest.mark.parametrize("name", data.SETS)
def test_a_name_of_our_own_is_a_function_of_that_name(name):
    assert data.builder(name) is getattr(data, name)


def test_other_names_are_those_of_tensorflow_datasets():
    function = data.builder("cifar10")
    options = ["data_dir", "train", "test", "in_memory"]
    assert list(inspect.signature(function).parameters) == options
    assert function.args == ("cifar10",)


def test_options_can_be_read_from_every_signature():
    for name in data.SETS:
        parameters = inspect.signature(data.builder(name)).parameters.values()
        assert all(p.default is not inspect.Parameter.empty for p in parameters)


@pytest.mark.slow
def test_our_own_names_need_no_tensorflow_datasets():
    code = """
import sys
sys.modules["tensorflow_datasets"] = sys.modules["tqdm"] = None
from isjax import data
print([data.builder(name).__name__ for name in data.SETS])
print(len(data.friedman(num_train=3, num_test=2).train["x"]))
try:
    data.builder("cifar10")()
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, size, error = out.stdout.splitlines()
    assert names == str(list(data.SETS)) and size == "3"
    assert "cifar10 is none of friedman, image_field, mnist1d" in error
    assert "pip install '.[run]' in a checkout of isjax" in error
