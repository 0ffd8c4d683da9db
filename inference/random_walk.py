"""Random walks with Metropolis, a move of some sites within Gibbs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_ext._checks import check_number
from pyro_ext.inference.gibbs import ConditionalUpdate, LogJoint
from pyro_ext.potential.evaluation import bijection

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
        :raises ValueError: for a site with a discrete support.
        """
        moved = dict(values)
        trace = log_joint.trace(moved)
        now = log_joint.log_density(trace)
        for name in sites:
            # The support may depend on sites that have moved: this trace is at their new values.
            transform = _transform(name, trace.nodes[name]["fn"].support)
            place = transform.inv(moved[name])
            proposal = place + self.scale * torch.randn_like(place)
            value = transform(proposal)
            after_trace = log_joint.trace({**moved, name: value})
            after = log_joint.log_density(after_trace)
            growth = transform.log_abs_det_jacobian(proposal, value)
            shrinkage = transform.log_abs_det_jacobian(place, moved[name])
            log_ratio = after - now + float(growth.sum() - shrinkage.sum())
            if torch.rand((), dtype=torch.float64).log() < log_ratio:
                moved[name], trace, now = value, after_trace, after
        return {name: moved[name] for name in sites}


def _transform(name: str, support: Constraint) -> Any:
    """Bijection from unconstrained space to the support of a site."""
    if not support.is_discrete:
        try:
            return bijection(support)
        except NotImplementedError:
            pass
    raise ValueError(
        f"site {name!r} cannot be moved by a random walk: there is no map from unconstrained space "
        f"to its support {support}. Move it by EnumeratedSites or PriorProposals"
    )
