"""Stored notebooks are valid, small, and were run from top to bottom without errors."""

import pathlib
import re

import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_there():
    assert [path.stem for path in PATHS] == [
        "anatomy_of_a_draw",
        "diffusion",
        "is_it_worth_it",
        "language_models",
        "neural_fields",
        "physics",
        "wrap_your_own_loop",
    ]


def test_it_is_valid_and_asks_for_the_kernel_alone(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(cell.metadata == {} for cell in notebook.cells)


def test_every_cell_was_run_in_order(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_outputs_hold_neither_errors_nor_warnings(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_it_is_small_and_names_no_path_of_a_machine(path):
    text = path.read_text()
    assert len(text.encode()) <= MAX_BYTES
    assert not re.findall(r"/(?:home|root|Users|tmp|work)/|site-packages|C:\\\\", text)


def test_it_begins_with_what_one_learns_and_ends_with_where_to_go_on(notebook):
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert re.match(r"# .+\n\nYou learn ", first.source)
    assert "## Where to go on" in last.source


def test_files_and_commands_that_it_names_exist(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    files = re.findall(r"(?:benchmarks|examples|isjax)/\w+\.py", text)
    modules = re.findall(r"python -m (isjax)\.(\w+)", text)
    assert links
    missing = [link for link in links if not (FOLDER / link).exists()]
    missing += [file for file in files if not (FOLDER.parent / file).exists()]
    missing += ["/".join(m) for m in modules if not (FOLDER.parent / f"{'/'.join(m)}.py").exists()]
    assert not missing
