"""Several devices of one process against one: the same curves, and what passes between devices."""

import functools
import json

import numpy as np
import pytest
from processes import finish, metrics, python, start

SETTINGS = ("num_steps=60", "num_evals=3", "log_every=10", "checkpoint_every=20")
SETTINGS += ("network=MLP", "artifacts=False", "eval_examples=500")
UNEVEN = ("dataset_options.num_train=3997", "dataset_options.num_test=1003")

# What compiled steps and draws of samplers send between 8 devices: the size of each array.
TRAFFIC = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
import isjax
from isjax import recipes
from isjax.parallel import sharding
from isjax.parallel.mesh import make_mesh
from isjax.parallel.padding import pad_state
from isjax.samplers import stratified
from isjax.training import init_train_state, make_train_step

N, POOL, BATCH = 65_000, 1024, 128
NAMES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
mesh, tx = make_mesh(), optax.sgd(0.1)

def loss_fn(params, model_state, batch, key):
    return jnp.square(batch["x"] @ params), model_state

def sent(what, method, strata):
    options = {"num_classes": 4} if method == "learned_loss" else {}
    sampler = getattr(recipes, method)(batch_size=BATCH // strata, **options)
    pool_size = None if sampler.own_pool else POOL
    if strata > 1:
        sampler = stratified(sampler, strata, pool_size and pool_size // strata)
        pool_size = None
    begin = lambda key, params: pad_state(init_train_state(key, params, tx, sampler, N), 8)
    state = sharding.build(begin, (jax.random.key(0), jnp.zeros(5)), mesh)
    placed = jax.tree.map(lambda x: x.sharding, state)
    if what == "step":
        step = make_train_step(loss_fn, tx, sampler, pool_size=pool_size)
        program = jax.jit(step, donate_argnums=0, out_shardings=(placed, None)).lower(state, data)
    else:
        draw = lambda key, state, data: sampler.sample(key, state.sampler, batch=data)
        program = jax.jit(draw).lower(jax.random.key(0), state, data)
    found = re.findall(rf"= (.+?) (?:{NAMES})(?:-start)?\\(", program.compile().as_text())
    return [
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for result in found for shape in re.findall(r"\\[([\\d,]*)\\]", result)
    ]

with jax.set_mesh(mesh):
    data = {"x": np.zeros((N, 5), np.float32), "label": np.zeros(N, np.int32)}
    data = sharding.place(data, mesh)
    print(json.dumps([sent(*case) for case in json.loads(sys.argv[1])]))
"""
KINDS = ("default", "last_loss", "learned_loss")


@functools.cache
def traffic():
    """Sizes of what is sent: of each step, with global draws and by part, and of draws by part."""
    cases = [("step", kind, strata) for kind in KINDS for strata in (1, 8)]
    cases += [("draw", kind, 8) for kind in KINDS]
    return dict(zip(cases, python(TRAFFIC, json.dumps(cases), devices=8), strict=True))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains once for each number of devices and settings; returns the metrics."""

    @functools.cache
    def run(devices, *settings):
        workdir = tmp_path_factory.mktemp("run")
        finish(start(workdir, *SETTINGS, *settings, devices=devices))
        return metrics(workdir)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("method=default",),
        ("method=learned_loss",),
        ("method=biased_loss",),
        ("method=default", *UNEVEN),
        ("method=default", "strata=8", *UNEVEN),
        ("method=learned_loss", "strata=8"),
    ],
    ids=" ".join,
)
def test_the_curves_on_four_devices_are_those_on_one(train, settings):
    for expected, found in zip(train(1, *settings), train(4, *settings), strict=True):
        assert found.keys() == expected.keys()
        for name in ("train_loss", "test_loss", "ess", "examples_forward"):
            if name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, err_msg=name)


@pytest.mark.slow
def test_parameters_divided_over_a_model_axis_train_the_same(train):
    one, divided = train(1, "method=default"), train(4, "method=default", "mesh.model=2")
    for expected, found in zip(one, divided, strict=True):
        np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("method=default", *UNEVEN),
        ("method=last_loss", "strata=8", *UNEVEN),
    ],
    ids=" ".join,
)
def test_a_run_saved_on_four_devices_resumes_on_two(train, tmp_path, settings):
    (process,) = start(tmp_path / "parts", *SETTINGS, *settings, devices=4)
    while not (tmp_path / "parts/checkpoints/20").exists():
        assert process.poll() is None
    process.kill()
    process.communicate()
    (output,) = finish(start(tmp_path / "parts", *SETTINGS, *settings, devices=2))
    assert "resuming at step" in output
    for expected, found in zip(train(4, *settings), metrics(tmp_path / "parts"), strict=True):
        np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_gathers_the_buffer(kind):
    for strata in (1, 8):
        sizes = traffic()["step", kind, strata]
        # 65,000 examples; the most that is sent are the histories of a pool, or nodes of the tree.
        assert sizes and max(sizes) <= 1024 * 10 * 4, strata


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_by_part_sends_a_few_numbers_a_device(kind):
    assert max(traffic()["draw", kind, 8], default=0) <= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("batch_size=100",), "config.batch_size is 100, which 8 devices"),
        (("strata=12", "batch_size=96", "pool_size=960"), "config.strata is 12, which 8 devices"),
        (("mesh.data=9",), "a mesh of data=9 times model=1 was asked for, but there are 8"),
    ],
)
def test_what_the_devices_cannot_share_is_refused(tmp_path, settings, message):
    (process,) = start(tmp_path, *settings, devices=8)
    output, _ = process.communicate()
    assert process.returncode == 1 and message in output
