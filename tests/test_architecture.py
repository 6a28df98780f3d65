"""Each file of isjax imports only from lower floors; the core needs jax, optax, flax and numpy."""

import ast
import sys
from pathlib import Path

import pytest

import isjax

ROOT = Path(isjax.__file__).parent
FLOORS = [
    {"base"},
    {
        "conditions",
        "descent",
        "distributions",
        "duplicates",
        "files",
        "finite",
        "gradients",
        "mesh",
        "mixing",
        "networks",
        "precision",
        "randaugment",
        "records",
        "rows",
        "source",
    },
    {"augmentations", "buffer", "learned", "resampling", "transforms", "tree", "weights"},
    {"diagnostics", "padding", "sampler", "scorers"},
    {"combinators", "lagged", "strata", "tree_sampler", "views"},
    {"mistakes", "remembered", "sharding", "training"},
    {"recipes"},
    {
        "checkpoints",
        "dataset",
        "distributed",
        "loading",
        "preemption",
        "programs",
        "runs",
        "schedules",
        "tfds_source",
        "timeline",
        "wandb_writer",
        "writers",
    },
    {"behaviour", "figures", "images", "synthetic", "tables", "tasks", "text"},
    {"behaviour_figures", "data", "evaluation", "gallery"},
    {"config", "loop", "page"},
    {"exhibits", "objects", "report", "usage", "workdir"},
    {"references"},
    {"experiment"},
    {"main"},
    {"compare", "quality"},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
LAST_CORE_FLOOR = 6
MAX_LINES = 320

MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(ROOT.rglob("*.py"))
}
FLOORED = [module for module in MODULES if module != "__init__"]
CORE = [module for module in FLOORED if FLOOR.get(module, len(FLOORS)) <= LAST_CORE_FLOOR]


def imported_names(source):
    """Dotted names that a module of isjax imports, wherever in the file; relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "isjax is one flat package"
            base = ".".join(filter(None, ["isjax" if node.level else "", node.module]))
            # `from isjax import buffer` names a module; `from isjax.buffer import read` does not.
            yield from (f"{base}.{a.name}" if base == "isjax" else base for a in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in {"import_module", "__import__"}:
            yield _literal(node.args[0])


def _name(function):
    return getattr(function, "attr", getattr(function, "id", None))


def _literal(node):
    assert isinstance(node, ast.Constant), "an import by computed name cannot be checked"
    return node.value


def own_imports(source):
    """The modules of isjax that it imports; a name taken from `isjax` itself as it stands."""
    names = (name.split(".") for name in imported_names(source))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "isjax"}


def foreign_imports(source):
    """Packages outside isjax and the standard library."""
    roots = {name.split(".")[0] for name in imported_names(source)}
    return roots - {"isjax"} - set(sys.stdlib_module_names)


def not_below(module, source):
    """What `module` imports of isjax that is not on a strictly lower floor."""
    top = len(FLOORS)
    return {name for name in own_imports(source) if FLOOR.get(name, top) >= FLOOR[module]}


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


@pytest.mark.parametrize("module", FLOORED)
def test_every_module_is_on_a_floor(module):
    assert module in FLOOR


@pytest.mark.parametrize("module", [module for module in FLOORED if module in FLOOR])
def test_a_module_imports_only_from_lower_floors(module):
    assert not not_below(module, MODULES[module].read_text())


def test_networks_imports_nothing_of_isjax():
    assert not own_imports(MODULES["networks"].read_text())


@pytest.mark.parametrize("module", CORE)
def test_the_core_needs_jax_optax_and_numpy_alone_and_flax_only_for_networks(module):
    allowed = {"jax", "optax", "numpy"} | ({"flax"} if module == "networks" else set())
    assert foreign_imports(MODULES[module].read_text()) <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_all_names_exist_once(module):
    tree = ast.parse(MODULES[module].read_text())
    names = exported(tree)
    assert len(set(names)) == len(names)
    assert set(names) <= set(top_level_names(tree))


@pytest.mark.parametrize("module", ["isjax", "isjax.resampling", "isjax.transforms"])
def test_the_checker_finds_the_names_exported(module):
    path = MODULES[module.removeprefix("isjax").lstrip(".") or "__init__"]
    assert exported(ast.parse(path.read_text())) == sys.modules[module].__all__


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from isjax.samplers import gate", {"combinators"}),
        ("from isjax import combinators, base", {"combinators"}),
        ("import isjax.training as t", {"training"}),
        ("from . import recipes", {"recipes"}),
        ("from .report import figure", {"report"}),
        ("def lazy():\n    from isjax import main", {"main"}),
        ("if TYPE_CHECKING:\n    from .combinators import gate", {"combinators"}),
        ("importlib.import_module('isjax.samplers._combinators')", {"combinators"}),
        ("from isjax.samplers._importance import importance_sampler", {"sampler"}),  # its own floor
        ("from isjax import Draw", {"Draw"}),  # the package itself stands above all
        ("import isjax", {"__init__"}),
        ("from isjax.new import thing", {"new"}),
        ("from isjax.base import Array\nfrom isjax import buffer\nimport jax", set()),
        ("from isjax.scorers._learned import Network, learned", set()),  # one floor below
    ],
)
def test_the_checker_sees_every_form_of_import(source, found):
    assert not_below("scorers", source) == found


def test_the_checker_sees_foreign_packages():
    source = "import os\nimport jax.numpy as jnp\ndef f():\n    from flax import linen\nimport tqdm"
    assert foreign_imports(source) == {"jax", "flax", "tqdm"}
