"""Pages of docs/ are correct: their Python runs, their commands parse, their names exist."""

import ast
import functools
import inspect
import json
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


def programs():
    """Python shown to users, by file."""
    for page, text in {**PAGES, "README.md": (ROOT / "README.md").read_text()}.items():
        yield page, "\n".join(code_of(text))
    for path in [*(ROOT / "examples").glob("*.py"), ROOT / "benchmarks" / "own_loop.py"]:
        yield path.name, path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [c["source"] for c in json.loads(path.read_text())["cells"] if is_code(c)]
        lines = "\n".join(map("".join, cells)).split("\n")
        yield path.name, "\n".join(line for line in lines if not line.startswith("%"))


def is_code(cell):
    return cell["cell_type"] == "code"


def steps_by_hand(source):
    """Functions that compute a weighted gradient and update a sampler; innermost ones alone."""
    calls = ("value_and_grad(", ".update(is_state, draw")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    segments = [ast.get_source_segment(source, function) for function in functions]
    found = [text for text in segments if all(call in text for call in calls)]
    return [text for text in found if not any(o != text and o in text for o in found)]


STEPS = [(name, step) for name, source in programs() for step in steps_by_hand(source)]


@pytest.mark.parametrize(("name", "step"), STEPS, ids=[name for name, _ in STEPS])
def test_a_step_that_is_shown_returns_the_unbiased_loss_and_ess(name, step):
    assert "isjax.diagnostics.mean_loss(draw, losses)" in step
    returned = step[step.rindex("return") :]
    assert "draw.ess" in returned and ("loss," in returned or "mean_loss(" in returned)
    assert re.search(r"\(_, (losses|\(losses, \w+\))\), grads = value_and_grad\(", step)


def test_steps_are_found_in_every_kind_of_place():
    found = {name for name, _ in STEPS}
    assert found >= {"README.md", "start.md", "own_loop.py", "wrap_your_own_loop.ipynb"}
    assert found >= {"guides/own_loop.md", "guides/loading.md", "guides/whole_data_set.md"}


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
            part[leaf] = type(part[leaf])(value) if leaf in part else ast.literal_eval(value)
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
