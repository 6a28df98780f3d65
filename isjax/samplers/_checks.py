"""Refusals that samplers share."""

from typing import Any

import jax

from isjax.base import Array, Batch, Sampler


def require_kind(given: Any, kind: type, name: str) -> None:
    """Refuses what is no scorer or transform; `name` is the argument's."""
    if not isinstance(given, kind):
        raise TypeError(
            f"{name} is {getattr(given, '__name__', given)}, no isjax.{kind.__name__}; pass what "
            "its function returns, as in importance_sampler(scorers.last_loss(), "
            "transforms.smooth(0.1), batch_size=128)"
        )


def require_batch_size(batch_size: int) -> None:
    """Refuses an empty batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 example")


def require_pool_of(batch_size: int, pool_size: int) -> None:
    """Refuses a pool that is smaller than the batch."""
    if pool_size < batch_size:
        raise ValueError(
            f"a pool of {pool_size} is smaller than the batch of {batch_size}; "
            "enlarge the pool or shrink the batch"
        )


def refuse_ids(ids: Array | None, subject: str) -> None:
    """Refuses a pool from outside; `subject` says which sampler chooses, and where."""
    if ids is not None:
        raise ValueError(f"{subject}; pass no ids, no pool_size")


def require_pool(sampler: Sampler, pool_size: int | None, name: str) -> None:
    """Refuses a presample for a sampler that has a pool of its own, or none for one without."""
    if sampler.own_pool and pool_size is not None:
        raise ValueError(f"{name}: this sampler has a pool of its own; leave pool_size out")
    if not sampler.own_pool and pool_size is None:
        raise ValueError(f"{name}: give pool_size, of the presample to choose from")


def require_weights_of_the_draw(sampler: Sampler, name: str, remedy: str) -> None:
    """Refuses a sampler that is gated, or weighs by the losses of a batch."""
    if sampler.reweigh is not None:
        raise ValueError(
            f"{name}: this sampler is gated, or weighs by the losses of a batch; {remedy}"
        )


def require_whole(batch: Batch, size: int, name: str) -> None:
    """Refuses a batch that is less than the data set of `size`; `name` is for the message.

    It may have more rows than that, which are no examples: see `isjax.parallel.padding`.
    """
    sizes = sorted({leaf.shape[0] for leaf in jax.tree.leaves(batch)})
    if sizes and (sizes[0] < size or len(sizes) > 1):
        wrong = next(number for number in sizes if number != size)
        raise ValueError(
            f"{name}: got a batch of {wrong} examples, but the data set has {size}; pass all of "
            "it, or none"
        )
