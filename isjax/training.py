"""Training steps: draw a batch, train on it, update the sampler."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isjax import resampling
from isjax._numerics.leading_axis import keeps_examples
from isjax.base import Array, Batch, Draw, Params, PyTree, Sampler, require_integer
from isjax.diagnostics import draw_metrics
from isjax.gradients import (
    all_finite,
    kind_of,
    require_arguments,
    require_floats,
    weighted_value_and_grad,
)
from isjax.parallel.mesh import gathered, spread, take_by_part
from isjax.samplers import pending

__all__ = [
    "TrainState",
    "init_train_state",
    "make_eval_step",
    "make_loaded_step",
    "make_train_step",
    "num_examples",
]

LossFn = Callable[[Params, PyTree, Batch, Array], tuple[Array, PyTree]]
EvalFn = Callable[[Params, PyTree, Batch], PyTree]


class TrainState(NamedTuple):
    """Everything that training changes; arrays only: donated, sharded and checkpointed whole.

    Attributes:
        step: [] int32.
        key: typed PRNG key; a step's randomness is `fold_in(key, step)`.
        params: the main model's.
        model_state: what else the model carries, such as batch statistics; None if nothing.
        opt_state: the optimiser's.
        sampler: the sampler's.
        record: what is kept of the draws, `isjax.experiment.draw_statistics`; None if nothing.
    """

    step: Array
    key: Array
    params: Params
    model_state: PyTree
    opt_state: optax.OptState
    sampler: PyTree
    record: PyTree = None


def init_train_state(
    key: Array,
    params: Params,
    tx: optax.GradientTransformation,
    sampler: Sampler,
    num_examples: int,
    model_state: PyTree = None,
) -> TrainState:
    """The state before the first step, a copy of what it is made from, since steps donate it.

    Args:
        key: typed PRNG key.
        params: the main model's, a pytree of float arrays.
        tx: the optimiser.
        sampler: chooses the batch.
        num_examples: N.
        model_state: what else the model carries, such as batch statistics; None if nothing.

    Raises:
        TypeError: if params hold anything but floats, such as a whole module of Flax NNX or
            Equinox.
        ValueError: if there are no examples, or the sampler cannot take as many.
    """
    require_floats(params)
    key, sampler_key = jax.random.split(key)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        sampler=sampler.init(sampler_key, num_examples),
    )
    # With an explicit dtype: a weakly typed array would have the step compiled again.
    return jax.tree.map(lambda x: jnp.array(x, jnp.asarray(x).dtype), state)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    sampler: Sampler,
    *,
    pool_size: int | None = None,
    with_draw: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """One step of training: pool, draw, weighted gradient, write-back.

    A scorer that runs the main model gets as its params `state.params`, or the pair
    `(state.params, state.model_state)` where the model has state.

    Args:
        loss_fn: `(params, model_state, batch, key) -> (losses [b], model_state)`, the training
            view of the model, with dropout and augmentation.
        tx: the optimiser, which sees only gradients that are finite. One that asks for `value`,
            such as `optax.contrib.reduce_on_plateau`, gets the unbiased loss of the step. With
            `optax.MultiSteps` the sampler learns from every small batch at once.
        sampler: chooses the batch.
        pool_size: B, of the uniform presample that the sampler chooses from; None = the sampler has
            a pool of its own, or looks in the whole data set.
        with_draw: also return `metrics["draw"]`, with the weights used, and `metrics["losses"]`.

    Returns:
        `step(state, data) -> (state, metrics)`, jitted, the state donated; `data` is a pytree with
        leading axis N, of arrays on the device: NumPy arrays are sent there at each step. The
        metrics are those of `diagnostics.draw_metrics` and `skipped`, 1 where a gradient that was
        not finite left the model as it was, while step and sampler went on.

    In `jax.set_mesh(mesh)` batch and pool lie on its data axis; see `isjax.parallel.sharding`.

    Raises:
        TypeError: if `loss_fn` takes other arguments, or `pool_size` is no integer; when first
            called, if the optimiser asks for more than the loss.
        ValueError: here if the sampler has a pool of its own and is given another; when first
            called, if the data set is empty, ragged, or not the one that the sampler was
            initialised for (it may be padded for devices: see `isjax.parallel.padding`); if the
            pool does not fit between batch and data set; or if `loss_fn` does not return one loss
            per example.
    """
    if sampler.own_pool and pool_size is not None:
        raise ValueError(
            f"pool_size is {pool_size}, but this sampler has a pool of its own; leave it out"
        )
    if pool_size is not None:
        require_integer("pool_size", pool_size)
    train = _trainer(loss_fn, tx, sampler, with_draw)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, data: Batch) -> tuple[TrainState, dict[str, Any]]:
        span, rows = state.sampler.span, num_examples(data)
        if pool_size is not None or sampler.own_pool or keeps_examples(state.sampler):
            _check_rows(state.sampler, rows)
        pool_key, draw_key, loss_key = _keys(state)

        with jax.named_scope("draw"):
            # XLA drops what no scorer reads of the pool.
            ids, pool = None, data
            if pool_size is not None:
                ids = resampling.presample(pool_key, span.size, pool_size)
                pool = spread(take_by_part(data, ids))
            stateful = bool(jax.tree.leaves(state.model_state))
            variables = (state.params, state.model_state) if stateful else state.params
            draw, sampler_state = sampler.sample(draw_key, state.sampler, ids, pool, variables)
        with jax.named_scope("train"):
            batch = spread(take_by_part(data, draw.ids, sampler.parts))
        return train(state, sampler_state, draw, batch, loss_key)

    return step


def make_loaded_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    sampler: Sampler,
    *,
    with_draw: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """One step of training on a batch that was chosen before, and loaded since.

    Args:
        loss_fn: as in `make_train_step`, as are `tx` and `with_draw`.
        tx: the optimiser.
        sampler: `lagged`, by any number of steps.
        with_draw: also return the draw trained on, and the losses.

    Returns:
        `step(state, batch) -> (state, metrics)`, jitted, the state donated. `batch` holds the
        examples `pending(state.sampler)[0]`; of the metrics, `chosen`, [b] int32, are the ids of
        the batch that is now pending last. The same is computed as by `make_train_step` with that
        sampler and all of the data.

    Raises:
        TypeError: if `loss_fn` takes other arguments.
        ValueError: when first called, if the sampler is not lagged, or the batch not of b examples.
    """
    train = _trainer(loss_fn, tx, sampler, with_draw)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        batch_size = pending(state.sampler).shape[1]
        if num_examples(batch) != batch_size:
            raise ValueError(
                f"the batch has {num_examples(batch)} examples, but {batch_size} were chosen; load "
                "those that pending(state.sampler)[0] says"
            )
        _, draw_key, loss_key = _keys(state)
        draw, sampler_state = sampler.sample(draw_key, state.sampler)
        state, metrics = train(state, sampler_state, draw, spread(batch), loss_key)
        return state, metrics | {"chosen": pending(state.sampler)[-1]}

    return step


def make_eval_step(metrics_fn: EvalFn) -> Callable[[TrainState, Batch], PyTree]:
    """Evaluation of a batch: `(state, batch) -> metrics`, jitted.

    Args:
        metrics_fn: `(params, model_state, batch) -> metrics`, in evaluation mode: a pytree of [b]
            arrays, one value per example, so that the caller can average batches of any size.

    Raises:
        TypeError: if `metrics_fn` takes other arguments.
    """
    require_arguments(
        metrics_fn, ("params", "model_state", "batch"), "take the three, and ignore what is None"
    )

    @jax.jit
    def evaluate(state: TrainState, batch: Batch) -> PyTree:
        return gathered(metrics_fn(state.params, state.model_state, spread(batch)))

    return evaluate


def num_examples(data: Batch) -> int:
    """N, the length that the leading axes of all arrays in `data` share.

    Args:
        data: pytree of arrays.

    Raises:
        ValueError: if there is no array, no example, or no common length, or if an array holds
            strings or objects.
    """
    require_numbers(data)
    found = {}  # an array of each length
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        shape = np.shape(leaf)
        found.setdefault(shape[:1], f"{jax.tree_util.keystr(path) or 'data'}: {shape}")
    size = next(iter(found), ())
    if len(found) != 1 or size in ((), (0,)):
        listed = ", ".join(list(found.values())[:3]) or "no arrays"
        remedy = "; make an array of a list by np.asarray" if () in found else ""
        raise ValueError(
            "a data set needs arrays with one common, non-empty leading axis, an example each; "
            f"got {listed}{remedy}"
        )
    return size[0]


def require_numbers(data: Batch) -> None:
    """Refuses what JAX cannot take: arrays of strings, of objects, of dates.

    Args:
        data: pytree of arrays.

    Raises:
        ValueError: with the name of such an array.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "U" if isinstance(leaf, str) else "f")
        if kind in "SUTOMm":
            what = "strings" if kind in "SUT" else f"values of type {leaf.dtype}"
            raise ValueError(
                f"{jax.tree_util.keystr(path) or 'data'} holds {what}, but JAX computes with "
                "numbers alone; number them, as in np.unique(labels, return_inverse=True)[1]"
            )


def _trainer(
    loss_fn: LossFn, tx: optax.GradientTransformation, sampler: Sampler, with_draw: bool
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """The step once its batch is drawn and gathered."""
    require_arguments(
        loss_fn,
        ("params", "model_state", "batch", "key"),
        "wrap a function of (params, batch), as in lambda params, model_state, batch, key: "
        "(loss_fn(params, batch), model_state)",
    )
    value_and_grad = weighted_value_and_grad(
        lambda params, batch, model_state, key: loss_fn(params, model_state, batch, key),
        has_aux=True,
    )
    optimizer = optax.with_extra_args_support(tx)

    def train(
        state: TrainState, sampler_state: PyTree, draw: Draw, batch: Batch, loss_key: Array
    ) -> tuple[TrainState, dict[str, Any]]:
        with jax.named_scope("train"):
            weights = draw.weights
            if sampler.reweigh is not None:
                weights = functools.partial(sampler.reweigh, sampler_state, draw)
            (_, (losses, model_state)), grads = value_and_grad(
                state.params, batch, weights, state.model_state, loss_key
            )
            sound = all_finite((losses, grads, model_state))
            if sampler.reweigh is not None:
                draw = draw._replace(weights=sampler.reweigh(sampler_state, draw, losses))
        with jax.named_scope("diagnose"):
            metrics = draw_metrics(draw, losses)
        with jax.named_scope("train"):
            _check_model_state(model_state, state.model_state)

            def accepted():
                try:
                    updates, opt_state = optimizer.update(
                        grads, state.opt_state, state.params, value=metrics["loss"]
                    )
                except TypeError as error:
                    raise TypeError(
                        "a step gives the optimiser gradients, state, params and value=, the loss, "
                        f"but it asks for more ({error}); use it in a loop of your own, or "
                        "another optimiser"
                    ) from error
                return optax.apply_updates(state.params, updates), model_state, opt_state

            before = state.params, state.model_state, state.opt_state
            params, model_state, opt_state = jax.lax.platform_dependent(
                cpu=lambda: jax.lax.cond(sound, accepted, lambda: before),
                # An accelerator would wait for the host to choose.
                default=lambda: jax.tree.map(
                    functools.partial(jnp.where, sound), accepted(), before
                ),
            )
        with jax.named_scope("buffer"):
            sampler_state = sampler.update(sampler_state, draw, losses, batch)
        new_state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            sampler=sampler_state,
            record=state.record,
        )
        metrics |= {"skipped": ~sound}
        return new_state, metrics | {"draw": draw, "losses": losses} if with_draw else metrics

    return train


def _keys(state: TrainState) -> tuple[Array, ...]:
    """Keys of a step for the pool, the draw and the loss.

    They are those of `split`, but each alone: XLA drops those that are not used.
    """
    key = jax.random.fold_in(state.key, state.step)
    return tuple(jax.random.fold_in(key, i) for i in range(3))


def _check_rows(state: PyTree, rows: int) -> None:
    """Refuses data of another number of rows than the sampler was initialised for."""
    span = state.span
    if rows == span.size < span.rows:
        raise ValueError(
            f"this sampler takes {span.size} examples in {span.rows} rows, but the data set has "
            f"{rows}; pad it to a multiple of the strata or devices, as in "
            "isjax.parallel.padding.pad(data, 8)"
        )
    if rows != span.rows:
        stream = ""
        if keeps_examples(state):
            stream = (
                ". This sampler remembers examples by their ids: for a stream, take a recipe that "
                "remembers none, such as biased_loss or proxy_loss"
            )
        raise ValueError(
            f"the sampler was initialised for {span.size} examples in {span.rows} rows, but the "
            f"data set has {rows}; call init_train_state with num_examples={rows}, or pad the data "
            f"and the state alike, see isjax.parallel.padding{stream}"
        )


def _check_model_state(new: PyTree, old: PyTree) -> None:
    """Refuses model state of other names, shapes or types than the old one."""

    def kinds(tree: PyTree) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): kind_of(jnp.asarray(leaf)) for path, leaf in leaves}

    found, wanted = kinds(new), kinds(old)
    differ = [name for name in wanted | found if found.get(name) != wanted.get(name)]
    if differ or jax.tree.structure(new) != jax.tree.structure(old):
        name = differ[0] if differ else ""
        raise ValueError(
            f"loss_fn returned model_state{name} {found.get(name)}, but the train state holds "
            f"{wanted.get(name)}; return what it was given, updated, and pass the first one as "
            "init_train_state(model_state=...)"
        )
