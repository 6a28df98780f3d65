"""Pages of docs/ are correct: their Python runs, their commands parse, their names exist."""

import functools
import inspect
import pathlib
import re
import runpy
import shlex

import jax
import pytest

import isjax
from isjax import recipes
from isjax.experiment import config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    page.relative_to(ROOT / "docs").as_posix(): page.read_text()
    for page in sorted((ROOT / "docs").rglob("*.md"))
}
# A block below a line such as "% not run: needs Fashion-MNIST" is not run here.
BLOCK = re.compile(r"^(% not run: .+\n)?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ python -m isjax\.(?:main|compare|quality) (.*)$", re.MULTILINE)
COMMANDS = [(page, found) for page, text in PAGES.items() for found in COMMAND.findall(text)]


def code_of(text):
    return [block for not_run, block in BLOCK.findall(text) if not not_run]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if code_of(text)])
@pytest.mark.slow
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # the tests' setting is stricter than a reader's
        names = {"__name__": "page"}
        for block in code_of(PAGES[page]):
            exec(compile(block, page, "exec"), names)


def test_there_is_python_to_run():
    assert sum(len(code_of(text)) for text in PAGES.values()) > 15


@pytest.mark.parametrize(("page", "arguments"), COMMANDS)
def test_the_config_of_a_command_can_be_run(page, arguments):
    given = dict(argument.lstrip("-").split("=", 1) for argument in shlex.split(arguments))
    settings = runpy.run_path(ROOT / given.pop("config"))["get_config"]()
    for name, value in given.items():
        if name.startswith("config."):
            *folders, leaf = name.split(".")[1:]
            part = functools.reduce(getattr, folders, settings)
            part[leaf] = type(part[leaf])(value) if leaf in part else float(value)
    config.check(settings)
    for method in [settings.method, *given.get("methods", "uniform").split(",")]:
        assert method in recipes.__all__
    options = inspect.signature(getattr(recipes, settings.method)).parameters
    assert set(settings.method_options) <= set(options)


@pytest.mark.parametrize("page", PAGES)
def test_a_setting_named_in_the_text_exists(page):
    known = config.default_config()
    for name in re.findall(r"`[^`]*?--config\.(\w+)[^`]*`", PAGES[page]):
        assert name in known or name == "NAME", f"{page}: there is no config.{name}"


def test_every_recipe_is_in_the_table_of_methods():
    first_column = "\n".join(re.findall(r"^\| (`.*?) \|", PAGES["methods.md"], re.M))
    named = re.findall(r"`(\w+)`", first_column)
    assert sorted(named) == sorted(recipes.__all__)


def test_every_name_of_isjax_is_in_the_table_of_short_names():
    table = re.findall(r"^\| `isjax\.(\w+)`", PAGES["api/index.md"], re.M)
    functions = [name for name in isjax.__all__ if not inspect.ismodule(getattr(isjax, name))]
    assert sorted(table) == sorted(functions)
