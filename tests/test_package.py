"""The installed package: its version and its type annotations."""

import ast
import importlib.metadata
import pathlib
import re
import tomllib

import pytest

import isjax

ROOT = pathlib.Path(isjax.__file__).parent


def public_functions(module):
    """Yields name and node of functions in `__all__`, and of public methods of classes there."""
    tree = ast.parse((ROOT / module).read_text())
    exported = next(
        (
            ast.literal_eval(x.value)
            for x in tree.body
            if isinstance(x, ast.Assign) and names_all(x)
        ),
        [],
    )
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in exported:
            yield node.name, node, 0
        elif isinstance(node, ast.ClassDef) and node.name in exported:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method, 1


def names_all(node):
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)


def unannotated(function, skip):
    """Lists parameters without a type, and `return` if it has none; skips the first `skip`."""
    given = function.args
    parameters = [*given.posonlyargs, *given.args][skip:]
    parameters += [*given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    missing = [parameter.arg for parameter in parameters if parameter.annotation is None]
    return missing + ["return"] * (function.returns is None)


@pytest.mark.parametrize(
    "module", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
)
def test_public_functions_are_annotated(module):
    found = {name: unannotated(*rest) for name, *rest in public_functions(module)}
    assert not {name: missing for name, missing in found.items() if missing}


def test_the_checker_finds_what_lacks():
    source = "def f(a, b: int, *c, d, e: int = 0, **g): pass"
    assert unannotated(ast.parse(source).body[0], 0) == ["a", "d", "c", "g", "return"]
    assert {"Writer.write", "Writer.close"} <= {
        name for name, *_ in public_functions("experiment/writers.py")
    }
    assert "gate" in {name for name, *_ in public_functions("samplers/_gate.py")}


def test_types_are_announced():
    assert (ROOT / "py.typed").exists()


def test_the_version_has_one_source():
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"] and "version" not in settings["project"]
    assert importlib.metadata.version("isjax") == isjax.__version__


def test_no_message_names_a_package_index_that_lacks_isjax():
    pages = [*ROOT.rglob("*.py"), *(ROOT.parent / "docs").rglob("*.md"), ROOT.parent / "README.md"]
    pages += [
        *(ROOT.parent / "examples").glob("*.py"),
        *(ROOT.parent / "notebooks").glob("*.ipynb"),
    ]
    assert not [page.name for page in pages if re.search(r"pip install '?isjax", page.read_text())]
    extras = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    named = {extra for page in pages for extra in re.findall(r"'\.\[(\w+)\]'", page.read_text())}
    assert {"run", "wandb", "tfds"} <= named <= set(extras["optional-dependencies"])
