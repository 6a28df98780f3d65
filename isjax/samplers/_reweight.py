"""`reweight`: weights that depend on the losses of the batch."""

from isjax.base import Sampler
from isjax.samplers._refusals import require_weights_of_the_draw
from isjax.weights import Policy

__all__ = ["reweight"]


def reweight(sampler: Sampler, policy: Policy) -> Sampler:
    """Weighs by a policy that sees the losses of the batch; see `isjax.weights`.

    In a loop of one's own the weights are then `sampler.weigh(state, draw, losses)`, which
    `weighted_value_and_grad` takes as a function of the losses in place of an array.

    Raises:
        TypeError: if `policy` is not callable.
        ValueError: if the sampler weighs by the losses already, or is gated: a policy is for what
            a gate lets through, and uniform draws weigh one.
    """
    if not callable(policy):
        raise TypeError(
            f"reweight: policy is {policy!r}; pass what a function of isjax.weights returns, such "
            "as weights.correcting()"
        )
    require_weights_of_the_draw(
        sampler, "reweight", "put it inside, as in gate(reweight(...), condition), and once"
    )
    return sampler._replace(reweigh=lambda state, draw, losses: policy(draw, losses))
