"""Learning rate schedules, scaled to the length of the run."""

import optax

__all__ = ["constant", "cosine", "step"]


def constant(learning_rate: float, num_steps: int, *, warmup: float = 0.0) -> optax.Schedule:
    """A constant rate.

    Args:
        learning_rate: after warm-up.
        num_steps: of the run.
        warmup: share of the run in which the rate rises linearly from zero.

    Returns:
        `step -> learning rate`.

    Raises:
        ValueError: if `warmup` is outside of [0, 1).
    """
    return _after_warmup(optax.constant_schedule(learning_rate), learning_rate, num_steps, warmup)


def cosine(learning_rate: float, num_steps: int, *, warmup: float = 0.0) -> optax.Schedule:
    """A rate that decays along half a cosine, to zero at the end of the run (arXiv 1608.03983).

    Args:
        learning_rate: after warm-up.
        num_steps: of the run.
        warmup: share of the run in which the rate rises linearly from zero.

    Returns:
        `step -> learning rate`.

    Raises:
        ValueError: if `warmup` is outside of [0, 1).
    """
    remaining = max(1, num_steps - _steps("warmup", warmup, num_steps))
    decay = optax.cosine_decay_schedule(learning_rate, remaining)
    return _after_warmup(decay, learning_rate, num_steps, warmup)


def step(
    learning_rate: float,
    num_steps: int,
    *,
    warmup: float = 0.0,
    boundaries: tuple[float, ...] = (0.3, 0.6, 0.8),
    factor: float = 0.2,
) -> optax.Schedule:
    """A rate that drops at given shares of the run; by default as in arXiv 1605.07146.

    Args:
        learning_rate: before the first drop.
        num_steps: of the run.
        warmup: share of the run in which the rate rises linearly from zero.
        boundaries: shares of the run after which the rate is multiplied by `factor`.
        factor: of each drop.

    Returns:
        `step -> learning rate`.

    Raises:
        ValueError: if a share is outside of [0, 1), or a drop comes before the end of warm-up.
    """
    start = _steps("warmup", warmup, num_steps)
    drops: dict[int, float] = {}
    for share in boundaries:
        drop = _steps("boundaries", share, num_steps) - start
        drops[drop] = drops.get(drop, 1.0) * factor  # in a short run several coincide
    if any(drop < 0 for drop in drops):
        raise ValueError(f"boundaries {boundaries} begin before warmup, {warmup}, has ended")
    decay = optax.piecewise_constant_schedule(learning_rate, drops)
    return _after_warmup(decay, learning_rate, num_steps, warmup)


def _after_warmup(
    schedule: optax.Schedule, learning_rate: float, num_steps: int, warmup: float
) -> optax.Schedule:
    steps = _steps("warmup", warmup, num_steps)
    if not steps:
        return schedule
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, steps), schedule], [steps]
    )


def _steps(name: str, share: float, num_steps: int) -> int:
    if not 0 <= share < 1:
        raise ValueError(f"{name}: {share} is no share of the run; choose one in [0, 1)")
    return round(share * num_steps)
