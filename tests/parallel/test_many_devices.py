"""Several devices of one process against one: the same curves, and what passes between devices."""

import numpy as np
import pytest
from processes import finish, metrics, python, start

SETTINGS = ("num_steps=60", "num_evals=3", "log_every=10", "checkpoint_every=20")
SETTINGS += ("network=MLP", "artifacts=False", "eval_examples=500")
UNEVEN = ("dataset_options.num_train=3997", "dataset_options.num_test=1003")

# What the compiled step of a sampler sends between 8 devices: [shape, operation] of each.
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

QUICKLY = {"xla_backend_optimization_level": 0}
N, POOL, BATCH, kind, whole_step = 65_000, 1024, 128, sys.argv[1], sys.argv[2] == "step"
mesh, strata = make_mesh(), 8 if kind.endswith("by part") else 1
method = kind.removesuffix(", by part")
options = {"num_classes": 4} if method == "learned_loss" else {}
sampler = getattr(recipes, method)(batch_size=BATCH // strata, **options)
pool_size = None if sampler.own_pool else POOL
if strata > 1:
    sampler = stratified(sampler, strata, pool_size and pool_size // strata)
    pool_size = None
data = {"x": np.zeros((N, 5), np.float32), "label": np.zeros(N, np.int32)}

def loss_fn(params, model_state, batch, key):
    return jnp.square(batch["x"] @ params), model_state

tx = optax.sgd(0.1)
begin = lambda key, params: pad_state(init_train_state(key, params, tx, sampler, N), 8)
with jax.set_mesh(mesh):
    state = sharding.build(begin, (jax.random.key(0), jnp.zeros(5)), mesh)
    data = sharding.place(data, mesh)
    placed = jax.tree.map(lambda x: x.sharding, state)
    if whole_step:
        step = make_train_step(loss_fn, tx, sampler, pool_size=pool_size)
        program = jax.jit(step, donate_argnums=0, out_shardings=(placed, None))
        compiled = program.lower(state, data).compile(QUICKLY)
    else:
        def draw(key, state, data):
            return sampler.sample(key, state.sampler, batch=data)
        compiled = jax.jit(draw).lower(jax.random.key(0), state, data).compile(QUICKLY)
names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
found = re.findall(rf"= (.+?) (?:{names})(?:-start)?\\(", compiled.as_text())
sizes = [
    int(np.prod([int(n) for n in shape.split(",") if n]))
    for result in found for shape in re.findall(r"\\[([\\d,]*)\\]", result)
]
print(json.dumps(sizes))
"""


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
def test_the_curves_on_four_devices_are_those_on_one(tmp_path, settings):
    finish(start(tmp_path / "one", *SETTINGS, *settings))
    finish(start(tmp_path / "four", *SETTINGS, *settings, devices=4))
    one, four = (metrics(tmp_path / name) for name in ("one", "four"))
    for expected, found in zip(one, four, strict=True):
        assert found.keys() == expected.keys()
        for name in ("train_loss", "test_loss", "ess", "examples_forward"):
            if name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, err_msg=name)


@pytest.mark.slow
def test_parameters_divided_over_a_model_axis_train_the_same(tmp_path):
    finish(start(tmp_path / "one", *SETTINGS, "method=default"))
    finish(start(tmp_path / "mesh", *SETTINGS, "method=default", "mesh.model=2", devices=4))
    for expected, found in zip(metrics(tmp_path / "one"), metrics(tmp_path / "mesh"), strict=True):
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
def test_a_run_saved_on_four_devices_resumes_on_two(tmp_path, settings):
    finish(start(tmp_path / "whole", *SETTINGS, *settings, devices=4))
    (process,) = start(tmp_path / "parts", *SETTINGS, *settings, devices=4)
    while not (tmp_path / "parts/checkpoints/20").exists():
        assert process.poll() is None
    process.kill()
    process.communicate()
    (output,) = finish(start(tmp_path / "parts", *SETTINGS, *settings, devices=2))
    assert "resuming at step" in output
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    for expected, found in zip(whole, parts, strict=True):
        np.testing.assert_allclose(found["train_loss"], expected["train_loss"], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["default", "last_loss", "learned_loss"])
def test_a_step_never_gathers_the_buffer(kind):
    for name in (kind, f"{kind}, by part"):
        sizes = python(TRAFFIC, name, "step", devices=8)
        # 65,000 examples; the most that is sent are the histories of a pool, or nodes of the tree.
        assert sizes and max(sizes) <= 1024 * 10 * 4, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["default", "last_loss", "learned_loss"])
def test_a_draw_by_part_sends_a_few_numbers_a_device(kind):
    assert max(python(TRAFFIC, f"{kind}, by part", "draw", devices=8), default=0) <= 8


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
