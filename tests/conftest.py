import gc
import itertools
import os
import pathlib
import zlib

import jax
import jaxlib
import pytest
from helpers import accelerator, rows, write_run
from jax.experimental.compilation_cache import compilation_cache

ROOT = pathlib.Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--part", default="0/1", help="K/N, of the slow tests part K of N; K from 0")


def pytest_configure(config):
    """Keeps compiled functions in .pytest_cache/jax, for other workers and later runs.

    `make clean` removes the folder; `pytest --cache-clear` keeps it. Cached functions gave the same
    bits as newly compiled ones. The cache's keys hold the version of jaxlib, the flags of XLA and
    the features of the CPU, so another machine compiles its own. Workers write without a lock: a
    file read half-written is a warning, and its function is compiled again. Processes that tests
    start use the cache, too, but for those of test_survival.
    """
    gc.set_threshold(100_000, 50, 50)  # tracing makes many objects, of which few are garbage
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Most of the suite's time is compilation, and optimised programs run little here.
    jax.config.update("jax_disable_most_optimizations", True)
    # A second thread to compile only adds work where two workers share two cores.
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if jaxlib.version.__version_info__[:2] == (0, 10):  # one that does not know a flag aborts
        flags.append("--xla_cpu_use_fusion_emitters=false")  # several times as long to compile
    given = os.environ.get("XLA_FLAGS", "").split()  # a worker's has them already
    os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in flags if flag not in given)])


_LONG = ("test_survival.py", "test_many_processes.py", "test_many_devices.py")


def pytest_collection_modifyitems(config, items):
    """Begins with the files that take minutes, so that no worker ends with one of them.

    Marks runs of `learned_loss` as slow: its LSTM takes seconds to compile in each. Leaves out slow
    tests of parts other than `--part`.
    """
    items.sort(key=lambda item: item.path.name not in _LONG)
    for item in items:
        values = getattr(item, "callspec", None) and item.callspec.params.values()
        if values and "learned_loss" in map(str, values) and "recipes" not in item.path.parts:
            item.add_marker(pytest.mark.slow)
    part, parts = map(int, config.getoption("part").split("/"))

    def left_out(item):
        function = item.nodeid.partition("[")[0]
        return "slow" in item.keywords and zlib.crc32(function.encode()) % parts != part

    config.hook.pytest_deselected(items=list(filter(left_out, items)))
    items[:] = itertools.filterfalse(left_out, items)


@pytest.fixture
def compiled_as_for_users():
    """Makes a test compile all that it runs, with all optimisations and without the cache."""

    def switch(quick):
        jax.clear_caches()
        compilation_cache.reset_cache()
        jax.config.update("jax_enable_compilation_cache", quick)
        jax.config.update("jax_disable_most_optimizations", quick)

    switch(quick=False)
    yield
    switch(quick=True)


@pytest.fixture
def as_on_an_accelerator():
    """Makes a test run what isjax would run on an accelerator."""
    with accelerator():
        yield


@pytest.fixture
def folder(tmp_path):
    """Five runs; uniform ends at mean loss 0.4, accuracy 0.8, after 4 seconds on average."""
    write_run(tmp_path / "u0", "uniform", 0, rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.78], 1.5))
    write_run(tmp_path / "u1", "uniform", 1, rows([2.0, 0.9, 0.3], [0.1, 0.5, 0.82], 2.5))
    write_run(tmp_path / "deep/l0", "loss", 0, rows([2.0, 0.4, 0.2], [0.1, 0.5, 0.6], 3.0))
    write_run(tmp_path / "deep/l1", "loss", 1, rows([2.0, 0.6, 0.4], [0.1, 0.5, 0.7], 2.0))
    write_run(tmp_path / "a0", "approx", 0, rows([2.0, 0.1, 0.7], [0.1, 0.9, 0.5], 1.0))
    return tmp_path


@pytest.fixture
def budgets(tmp_path):
    """Runs of all 20 steps, 70% and 50% of them.

    Uniform sampling takes 4 seconds for all steps, to perplexity 8 and loss 0.4.
    """

    def write(name, method, budget, rows):
        write_run(tmp_path / name, method, rows=rows, budget=budget, metric="test_perplexity")

    write("u50", "uniform", 0.5, [(0, 0.0, 2.0, 60.0), (10, 2.0, 0.8, 20.0)])
    write("u", "uniform", 1.0, [(0, 0.0, 2.0, 60.0), (10, 2.0, 1.0, 30.0), (20, 4.0, 0.4, 8.0)])
    write("l50", "loss", 0.5, [(0, 0.0, 2.0, 60.0), (5, 1.5, 0.4, 20.0), (10, 3.0, 0.3, 9.0)])
    write("l70", "loss", 0.7, [(0, 0.0, 2.0, 60.0), (7, 2.0, 0.9, 20.0), (14, 5.0, 0.2, 7.0)])
    return tmp_path
