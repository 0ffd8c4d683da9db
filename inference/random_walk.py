"""Random walks with Metropolis, a move of some sites within Gibbs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_ext._checks import check_number
from pyro_ext.inference.composite import ConditionalUpdate, LogJoint

__all__ = ["RandomWalk"]

Values = dict[str, Tensor]


class RandomWalk(ConditionalUpdate):
    """Moves sites one after the other by random walks in unconstrained space, with Metropolis.

    The density of a proposal in unconstrained space has the Jacobian of its transform.

    :param float scale: standard deviation of a step.
    :raises ValueError: where it is not positive.

    Example::

        >>> from pyro_ext.inference import MCMC, Gibbs
        >>> def model():
        ...     pyro.sample("rate", dist.Gamma(2.0, 1.0))
        >>> kernel = Gibbs([(RandomWalk(1.0), ["rate"])], model=model)
        >>> mcmc = MCMC(kernel, num_samples=20, progress=False).run()
        >>> bool((mcmc.get_samples()["rate"] > 0).all())
        True
    """

    def __init__(self, scale: float) -> None:
        self.scale = check_number("scale", scale, above=0)

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Propose each site and accept or not.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        """
        moved = dict(values)
        trace = log_joint.trace(moved)
        now = float(trace.log_prob_sum())
        for name in sites:
            support: Any = trace.nodes[name]["fn"].support
            transform = biject_to(support)
            place = transform.inv(moved[name])
            proposal = place + self.scale * torch.randn_like(place)
            value = transform(proposal)
            after = log_joint({**moved, name: value})
            growth = transform.log_abs_det_jacobian(proposal, value)
            shrinkage = transform.log_abs_det_jacobian(place, moved[name])
            log_ratio = after - now + float(growth.sum() - shrinkage.sum())
            if torch.rand((), dtype=torch.float64).log() < log_ratio:
                moved[name], now = value, after
        return {name: moved[name] for name in sites}
