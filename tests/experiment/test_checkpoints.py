import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import file_limit

from isjax import recipes
from isjax.experiment.checkpoints import Checkpoints
from isjax.training import init_train_state, make_train_step

DATA = {"x": np.linspace(0, 1, 40, dtype=np.float32), "label": np.zeros(40, np.int32)}


def losses(params, batch):
    return (batch["x"] * params["w"] - 1) ** 2


def make_state(method="last_loss", **options):
    sampler = getattr(recipes, method)(batch_size=4, **options)
    params = {"w": jnp.ones(()), "b": jnp.zeros((2, 3))}
    tx = optax.adam(1e-2)
    state = init_train_state(jax.random.key(7), params, tx, sampler, 40, {"mean": jnp.ones(3)})
    loss_fn = lambda params, model_state, batch, key: (losses(params, batch), model_state)  # noqa: E731
    return state, make_train_step(loss_fn, tx, sampler, pool_size=8)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("uniform", {}),
        ("last_loss", {}),
        ("learned_loss", {"num_classes": 2}),
        ("biased_loss", {"loss_fn": lambda variables, batch: losses(variables[0], batch)}),
    ],
)
def test_every_recipes_state_comes_back_bit_for_bit(tmp_path, method, options):
    """Key, step, optimiser, model state and sampler."""
    state, _ = make_state(method, **options)
    with Checkpoints(tmp_path, 40) as checkpoints:
        checkpoints.save(state, {})
    template = jax.tree.map(jnp.empty_like, make_state(method, **options)[0])
    with Checkpoints(tmp_path, 40) as checkpoints:
        assert_equal(checkpoints.restore(template)[0], state)


@pytest.mark.slow
def test_training_goes_on_while_a_state_is_saved(tmp_path):
    """The next step takes the buffers of the state; what is saved is a copy."""
    state, step = make_state()
    for _ in range(3):
        state, _ = step(state, DATA)
    kept = jax.tree.map(jnp.copy, state)
    with Checkpoints(tmp_path, 40) as checkpoints:
        checkpoints.save(state, {"seconds": 0.1 + 0.2})
        for _ in range(20):
            state, _ = step(state, DATA)
    with Checkpoints(tmp_path, 40) as checkpoints:
        assert checkpoints.step == 3
        restored, progress = checkpoints.restore(state)
    assert_equal(restored, kept)
    assert progress == {"seconds": 0.1 + 0.2}


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    state, _ = make_state()
    at = lambda step: state._replace(step=jnp.int32(step))  # noqa: E731
    with Checkpoints(tmp_path, 40) as checkpoints:
        for step, loss in ((1, 3.0), (2, 1.0), (3, math.inf)):
            checkpoints.save(at(step), {}, loss)
    with Checkpoints(tmp_path, 40) as checkpoints:  # the losses are remembered across processes
        for step, loss in ((4, 2.0), (5, math.inf), (6, math.inf)):
            checkpoints.save(at(step), {}, loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    state, _ = make_state()
    with Checkpoints(tmp_path / "new", 40) as checkpoints:
        assert checkpoints.step is None and checkpoints.restore(state) is None


def test_half_a_checkpoint_does_not_count(tmp_path):
    """What a kill leaves of a checkpoint that was being written."""
    state, _ = make_state()
    with Checkpoints(tmp_path, 40) as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(4)), {})
    name = next(tmp_path.iterdir()).name
    (tmp_path / f"{name.replace('4', '8')}.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, 40) as checkpoints:
        assert checkpoints.step == 4


def test_a_state_of_another_shape_is_refused(tmp_path):
    state, _ = make_state()
    with Checkpoints(tmp_path, 40) as checkpoints:
        checkpoints.save(state, {})
        with pytest.raises(ValueError, match=r"\.params\['b'\] is float32\[2, 3\] in .* of step 0"):
            checkpoints.restore(state._replace(params={"w": jnp.ones(()), "b": jnp.zeros((4, 3))}))
        with pytest.raises(
            ValueError, match=r"count is int32\[40\] .* would be missing now: another config"
        ):
            checkpoints.restore(make_state("uniform")[0])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of checkpoints of steps 4 and 8; tests must not write there."""
    folder, (state, _) = tmp_path_factory.mktemp("kept"), make_state()
    with Checkpoints(folder, 40) as checkpoints:
        for step in (4, 8):
            params = {**state.params, "w": jnp.float32(step)}
            checkpoints.save(state._replace(step=jnp.int32(step), params=params), {"seconds": step})
    return folder


def files(checkpoint):
    return sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())


def flip(path):
    content = path.read_bytes()
    place = len(content) // 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path):
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [flip, *(pytest.param(how, marks=pytest.mark.slow) for how in (cut, remove))]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(kept, tmp_path, capfd, how):
    """Whichever of its files is damaged; some of them Orbax reads without an error."""
    state, _ = make_state()
    number = len(files(kept / "8"))
    assert number >= 5
    for i in range(number):
        folder = shutil.copytree(kept, tmp_path / str(i))
        path = files(folder / "8")[i]
        how(path)
        with Checkpoints(folder, 40) as checkpoints:
            restored, progress = checkpoints.restore(state)
            assert restored.params["w"] == restored.step == progress["seconds"] == 4
        (note,) = capfd.readouterr().err.splitlines()
        name = path.relative_to(folder / "8").as_posix()
        what = f"{name} is missing" if how is remove else f"{name} was changed"
        assert note == (
            f"note: the checkpoint of step 8 is damaged ({what}); it is now {folder}/damaged-8, "
            "and the newest that can be used is that of step 4"
        )


def test_the_step_of_a_damaged_checkpoint_is_saved_again(kept, tmp_path, capfd):
    state, _ = make_state()
    folder = shutil.copytree(kept, tmp_path / "run")
    flip(files(folder / "8")[0])
    with Checkpoints(folder, 40) as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(8)), {"seconds": 9})
    assert len(capfd.readouterr().err.splitlines()) == 1
    with Checkpoints(folder, 40) as checkpoints:
        assert checkpoints.restore(state)[1] == {"seconds": 9}
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8", "damaged-8"]
    assert not capfd.readouterr().err


def test_what_is_no_checkpoint_is_set_aside(kept, tmp_path, capfd):
    folder = shutil.copytree(kept, tmp_path / "run")
    (folder / "9999").mkdir()
    (folder / "12").write_text("mine")
    shutil.rmtree(folder / "8/state")
    (folder / "damaged-8").mkdir()
    with Checkpoints(folder, 40) as checkpoints:
        assert checkpoints.step == 4
    assert sorted(path.name for path in folder.iterdir()) == [
        *("4", "damaged-12", "damaged-8", "damaged-8-2", "damaged-9999")
    ]
    notes = capfd.readouterr().err
    assert "step 9999 is damaged (digests.json is missing)" in notes and "state/" in notes


def test_where_all_are_damaged_nothing_is_renamed(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "run")
    flip(files(folder / "4")[0])
    (folder / "8/digests.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .*run can be used, .*step 4: .* was ch"
    ):
        Checkpoints(folder, 40)
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8"]


def test_a_checkpoint_for_which_there_is_no_room_is_told_in_one_line(tmp_path, capfd):
    state, _ = make_state()
    state = state._replace(params={**state.params, "b": jnp.zeros((1000, 3))})
    with Checkpoints(tmp_path, 40) as checkpoints:
        checkpoints.save(state, {})
        with pytest.raises(OSError, match=r"checkpoints in .* File too large$"), file_limit(2000):
            checkpoints.save(state._replace(step=jnp.int32(1)), {})
            checkpoints.save(state._replace(step=jnp.int32(2)), {})
    assert not capfd.readouterr().err
    with Checkpoints(tmp_path, 40) as checkpoints:
        assert checkpoints.step == 0
