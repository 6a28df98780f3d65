"""A package of isjax imports only from those before it in ORDER."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import isjax

ROOT = Path(isjax.__file__).parent
ORDER = [
    "base",
    "_numerics",
    "networks",
    "distributions",
    "gradients",
    "buffer",
    "transforms",
    "resampling",
    "weights",
    "conditions",
    "diagnostics",
    "scorers",
    "samplers",
    "recipes",
    "parallel",
    "training",
    "data",
    "tasks",
    "reporting",
    "experiment",
    "report",
    "main",
    "quality",
    "compare",
]
CORE = ORDER[: ORDER.index("training") + 1]
MAX_MODULES = 16
MAX_LINES = 400

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
ORDERED = [module for module in MODULES if module != "__init__"]


def package(module):
    return module.split(".")[0]


def imported_names(source):
    """Dotted names that a module of isjax imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            # `from isjax import buffer` names a module; `from isjax.buffer import read` does not.
            names = (f"isjax.{alias.name}" for alias in node.names)
            yield from names if node.module == "isjax" else [node.module]
        elif isinstance(node, ast.Call) and _name(node.func) in {"import_module", "__import__"}:
            yield _literal(node.args[0])


def _name(function):
    return getattr(function, "attr", getattr(function, "id", None))


def _literal(node):
    assert isinstance(node, ast.Constant), "an import by computed name cannot be checked"
    return node.value


def own_imports(source):
    """Packages and modules directly in isjax that it imports; "isjax" for the package itself."""
    names = (name.split(".") for name in imported_names(source) if name != "isjax.__version__")
    return {parts[1] if len(parts) > 1 else "isjax" for parts in names if parts[0] == "isjax"}


def foreign_imports(source):
    """Packages outside isjax and the standard library."""
    roots = {name.split(".")[0] for name in imported_names(source)}
    return roots - {"isjax"} - set(sys.stdlib_module_names)


def not_before(module, source):
    """Imports of isjax that are neither the module's own package nor before it in ORDER."""
    allowed = [*ORDER[: ORDER.index(package(module))], package(module)]
    return own_imports(source) - set(allowed)


def top_level_names(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def exported(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(_name(t) == "__all__" for t in node.targets):
            return ast.literal_eval(node.value)
    return []


def test_every_package_and_module_has_its_place_in_the_order():
    assert {package(module) for module in ORDERED} == set(ORDER)


def test_few_modules_lie_directly_in_isjax():
    assert len([module for module in MODULES if MODULES[module].parent == ROOT]) <= MAX_MODULES


@pytest.mark.parametrize("module", ORDERED)
def test_a_module_imports_only_from_packages_before_its_own(module):
    assert not not_before(module, MODULES[module].read_text())


def test_networks_imports_nothing_else_of_isjax():
    for module in ORDERED:
        if package(module) == "networks":
            assert own_imports(MODULES[module].read_text()) <= {"networks"}


def test_no_module_outside_samplers_names_the_type_of_a_samplers_state():
    states = {
        node.name
        for module in ORDERED
        if package(module) == "samplers"
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("State")
    }
    assert {"SamplerState", "TreeState", "GateState", "EpochState", "LagState"} < states
    for module in ORDERED:
        if package(module) != "samplers":
            names = {getattr(n, "id", getattr(n, "attr", getattr(n, "name", None)))
                     for n in ast.walk(ast.parse(MODULES[module].read_text()))}  # fmt: skip
            assert not names & states, module


@pytest.mark.parametrize("module", [module for module in ORDERED if package(module) in CORE])
def test_the_core_needs_jax_flax_optax_and_numpy_alone(module):
    assert foreign_imports(MODULES[module].read_text()) <= {"jax", "flax", "optax", "numpy"}


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_all_names_exist_once(module):
    tree = ast.parse(MODULES[module].read_text())
    names = exported(tree)
    assert len(set(names)) == len(names)
    assert set(names) <= set(top_level_names(tree))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_hidden_by_a_function_of_its_name(module):
    path = "isjax" if module == "__init__" else f"isjax.{module}"
    found, parent = importlib.import_module(path), path.rpartition(".")
    if parent[0]:
        assert getattr(importlib.import_module(parent[0]), parent[2]) is found


@pytest.mark.parametrize("module", ["isjax", "isjax.resampling", "isjax.transforms"])
def test_the_checker_finds_the_names_exported(module):
    path = MODULES[module.removeprefix("isjax").lstrip(".") or "__init__"]
    assert exported(ast.parse(path.read_text())) == sys.modules[module].__all__


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from isjax.samplers import gate", {"samplers"}),
        ("from isjax import samplers, base", {"samplers"}),
        ("import isjax.training as t", {"training"}),
        ("def lazy():\n    from isjax import main", {"main"}),
        ("if TYPE_CHECKING:\n    from isjax.samplers import gate", {"samplers"}),
        ("importlib.import_module('isjax.samplers')", {"samplers"}),
        ("from isjax.samplers._importance import importance_sampler", {"samplers"}),
        ("from isjax import Draw", {"Draw"}),  # isjax itself comes after all packages
        ("import isjax", {"isjax"}),
        ("from isjax.new import thing", {"new"}),
        ("from isjax.base import Array\nfrom isjax import buffer\nimport jax", set()),
        ("from isjax.scorers._learned import Network, learned", set()),  # its own package
    ],
)
def test_the_checker_sees_every_form_of_import(source, found):
    assert not_before("scorers.views", source) == found


def test_the_checker_sees_foreign_packages():
    source = "import os\nimport jax.numpy as jnp\ndef f():\n    from flax import linen\nimport tqdm"
    assert foreign_imports(source) == {"jax", "flax", "tqdm"}
