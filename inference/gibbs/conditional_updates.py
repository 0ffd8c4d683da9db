"""Moves of some sites of a model given all others, for Gibbs sampling."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, constraints
from torch.distributions.constraints import Constraint

from pyro_ext._lib import checks
from pyro_ext.distributions import GaussianRandomWalk, ZeroSumNormal
from pyro_ext.potential.evaluation import bijection, may_validate

Values: TypeAlias = dict[str, Tensor]
Model: TypeAlias = Callable[..., Any]


class ConditionalUpdate(ABC):
    """Moves some sites of a model given all others; for :class:`Gibbs`."""

    keeps_no_state: bool = False
    """Whether an update depends on its arguments alone, so that a run can have a checkpoint. It
    can, too, where the update has methods ``read_state`` and ``write_state``, as kernels do."""

    @abstractmethod
    def update(self, log_joint: "LogJoint", values: Values, sites: Sequence[str]) -> Values:
        """Move sites so that their distribution given the others is left invariant.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites, constrained.
        :param sites: names of those to move.
        :returns: the new values of these.
        """


class LogJoint:
    """A model at its data, as a function of the values of its latent sites.

    :param model: a Pyro model.
    :param tuple args: its arguments.
    :param dict kwargs: its keyword arguments.
    """

    def __init__(self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        checks.function("model", model, "a Pyro model")
        checks.mapping("kwargs", kwargs, "a dict of arguments of the model")
        args = tuple(checks.sequence("args", args, "the arguments of the model", 0))
        self._model, self._args, self._kwargs = model, args, kwargs
        self._unchecked: set[str] = set()

    def trace(self, values: Mapping[str, Tensor], *, validate: bool = False) -> Any:
        """Trace of the model where sites have given values.

        :param Mapping values: values by site.
        :param bool validate: whether values outside of a support raise, as Pyro is set; without it
            they have no density, so that they can be proposed and lost.
        """
        model = poutine.condition(self._model, data=dict(values))
        with torch.no_grad(), nullcontext() if validate else pyro.validation_enabled(False):
            trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
        if validate and pyro.distributions.is_validation_enabled():
            self._unchecked = {
                name
                for name in trace.observation_nodes
                if name not in values and not may_validate(trace.nodes[name]["fn"])
            }
        return trace

    def log_density(self, trace: Any) -> float:
        """Log density of a trace: minus infinity outside of a support, and where it is NaN."""
        with torch.no_grad(), pyro.validation_enabled(False):
            if not all(map(bool, self._insides(trace))):
                return -math.inf
            total = float(trace.log_prob_sum())
        return -math.inf if math.isnan(total) else total

    def density(self, trace: Any) -> Tensor:
        """The same as a tensor, in operations that can be recorded."""
        with torch.no_grad(), pyro.validation_enabled(False):
            total = torch.as_tensor(trace.log_prob_sum())
            for inside in self._insides(trace):
                total = torch.where(inside, total, -torch.inf)
            return torch.where(total.isnan(), -torch.inf, total)

    def likelihood(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        """Log density without that of a site itself."""
        trace = self.trace(values)
        total = self.density(trace)
        with torch.no_grad(), pyro.validation_enabled(False):
            own: Tensor = trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]).sum()
        return total - own

    def _insides(self, trace: Any) -> Iterator[Tensor]:
        """Tell of each site whether its values are in the support."""
        nodes = [node for name, node in trace.nodes.items() if name not in self._unchecked]
        return (inside for inside in map(_inside, nodes) if inside is not None)

    def __call__(self, values: Mapping[str, Tensor]) -> float:
        """Log density of the values and the data."""
        return self.log_density(self.trace(values))


def _inside(node: Any) -> Tensor | None:
    """Tell whether the value of a site is in its support: many densities are finite elsewhere."""
    if node["type"] != "sample" or site_is_subsample(node):
        return None
    distribution, value = node["fn"], torch.as_tensor(node["value"])
    try:
        support = distribution.support
    except NotImplementedError:
        return None
    if constraints.is_dependent(support):
        return None
    inside: Tensor = support.check(value)
    if inside.dim() > len(distribution.batch_shape):
        inside = inside.flatten(len(distribution.batch_shape)).all(-1)
    for mask in (node["mask"], getattr(distribution, "_mask", None)):
        if mask is not None:
            inside = inside | ~torch.as_tensor(mask, device=inside.device)
    return inside.all()


class EnumeratedSites:
    """Draws each element of discrete sites given all else, by enumeration of its values.

    It is a block of :class:`Gibbs`. Elements of plates that are independent given all else are
    drawn at once. Others come one after the other in a random order, and each takes as many runs of
    the model as it has values. A site whose values cannot be enumerated is refused.
    """


def support_of(name: str, distribution: Any) -> Tensor:
    """Values of each element of a discrete site."""
    if not distribution.has_enumerate_support or distribution.event_dim:
        raise ValueError(
            f"site {name!r} cannot be enumerated element by element: it is distributed as "
            f"{type(distribution).__name__}"
        )
    support: Tensor = distribution.enumerate_support(expand=False).flatten()
    return support


def check_mask(log_joint: LogJoint, values: Values, name: str, support: Tensor) -> None:
    """Raise where a mask hides values of a discrete site on which others depend.

    A hidden value has no density, so that it would be drawn as if all were equally likely.
    """
    trace = log_joint.trace(values)
    mask = trace.nodes[name]["mask"]
    if mask is None or bool(torch.as_tensor(mask).all()):
        return
    now = log_joint.log_density(trace)
    for value in support:
        hidden = torch.where(torch.as_tensor(mask), values[name], value)
        if not math.isclose(log_joint({**values, name: hidden}), now, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(
                f"site {name!r} has values that a mask hides, and other sites depend on them. Let "
                "NUTS sum the site out, or set such values in the model by torch.where"
            )


class PriorProposals(ConditionalUpdate):
    """Proposes sites given what they depend on in the model, with Metropolis-Hastings.

    Each site is proposed as a whole, so that it is for sites about which the data say little.
    """

    keeps_no_state = True

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Propose sites and accept or not.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        """
        moved = dict(values)
        for name in sites:
            before = log_joint.trace(moved)
            distribution = before.nodes[name]["fn"]
            proposal = distribution.sample().to(moved[name])
            after = log_joint({**moved, name: proposal}) - float(
                distribution.log_prob(proposal).sum()
            )
            now = log_joint.log_density(before) - float(distribution.log_prob(moved[name]).sum())
            if torch.rand((), dtype=torch.float64).log() < after - now:
                moved[name] = proposal
        return {name: moved[name] for name in sites}


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

    keeps_no_state = True

    def __init__(self, scale: float) -> None:
        self.scale = checks.number("scale", scale, above=0)

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Propose each site and accept or not.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        :raises ValueError: for a site with a discrete support.
        """
        noise = torch.cat([torch.randn_like(values[name]).flatten() for name in sites])
        uniforms = torch.rand(len(sites), dtype=torch.float64)
        return self.move(log_joint, values, sites, noise, uniforms)

    def move(
        self,
        log_joint: LogJoint,
        values: Values,
        sites: Sequence[str],
        noise: Tensor,
        uniforms: Tensor,
    ) -> Values:
        """Propose each site and accept or not, by given random numbers.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :param Tensor noise: standard normal, one number for each element of these sites.
        :param Tensor uniforms: between zero and one, one for each site.
        :returns: the new values of these sites.
        """
        moved = dict(values)
        noises = noise.split([values[name].numel() for name in sites])
        for name, steps, uniform in zip(sites, noises, uniforms.unbind(), strict=True):
            # The support may depend on sites that have moved: this trace is at their new values.
            trace = log_joint.trace(moved)
            transform = _transform(name, trace.nodes[name]["fn"].support)
            point = transform.inv(moved[name])
            # Constraints may leave fewer free numbers than there are elements.
            proposal = point + self.scale * steps[: point.numel()].reshape(point.shape)
            value = transform(proposal)
            now = log_joint.density(trace)
            after = log_joint.density(log_joint.trace({**moved, name: value}))
            growth = transform.log_abs_det_jacobian(proposal, value)
            shrinkage = transform.log_abs_det_jacobian(point, moved[name])
            log_ratio = after - now + growth.sum() - shrinkage.sum()
            moved[name] = torch.where(uniform.log() < log_ratio, value, moved[name])
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


class EllipticalSlice(ConditionalUpdate):
    r"""Moves sites with normal priors along ellipses, without a step size [1].

    A site :math:`f \sim N(m, \Sigma)` moves to
    :math:`m + (f - m) \cos \theta + (\nu - m) \sin \theta` with a draw :math:`\nu` of the prior,
    and the angle from a bracket that shrinks until the likelihood is above a random height. It is
    for Gaussian processes and random effects, given the hyperparameters of their priors, which
    another block moves. The prior is ``Normal``, ``MultivariateNormal``,
    :class:`~pyro_ext.distributions.GaussianRandomWalk` or
    :class:`~pyro_ext.distributions.ZeroSumNormal`, of any shape and in any plate.

    [1] I. Murray, R. P. Adams, D. J. C. MacKay (2010), Elliptical slice sampling.

    Example::

        >>> from pyro_ext.inference import MCMC, Gibbs
        >>> def model(y):
        ...     f = pyro.sample("f", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ...     pyro.sample("y", dist.Poisson(f.exp()).to_event(1), obs=y)
        >>> kernel = Gibbs([(EllipticalSlice(), ["f"])], model=model)
        >>> mcmc = MCMC(kernel, num_samples=20, seed=0, progress=False)
        >>> mcmc.run(torch.tensor([0.0, 2.0, 9.0])).get_samples()["f"].shape
        torch.Size([20, 3])
    """

    keeps_no_state = True

    def update(self, log_joint: LogJoint, values: Values, sites: Sequence[str]) -> Values:
        """Move sites one after the other.

        :param LogJoint log_joint: the model at its data.
        :param dict values: of all sites.
        :param sites: names of those to move.
        :returns: the new values of these.
        :raises ValueError: for a site whose prior is not normal.
        """
        moved = dict(values)
        for name in sites:
            shape = moved[name].shape
            noise = torch.randn_like(moved[name])
            center, draw = normal_prior(name, log_joint.trace(moved).nodes[name], noise)

            def log_likelihood(rows: Tensor, name: str = name, shape: torch.Size = shape) -> Tensor:
                tried = ({**moved, name: row.reshape(shape)} for row in rows)
                return torch.stack([log_joint.likelihood(each, name) for each in tried])

            position, center, draw = (each.reshape(1, -1) for each in (moved[name], center, draw))
            uniforms = torch.rand(1, NUM_UNIFORMS, dtype=torch.float64)
            found = elliptical_slice(log_likelihood, position, center, draw, uniforms)
            moved[name] = found.reshape(shape)
        return {name: moved[name] for name in sites}


NUM_UNIFORMS = 64


def elliptical_slice(
    log_likelihood: Callable[[Tensor], Tensor],
    position: Tensor,
    center: Tensor,
    draw: Tensor,
    uniforms: Tensor,
) -> Tensor:
    """Move each chain along the ellipse through its position and a draw of its prior.

    Where the bracket has not shrunk far enough after all uniform numbers, a chain stays.

    Shapes: position, center, draw (num_chains, size); uniforms (num_chains, at least 3).
    """
    height = log_likelihood(position) + uniforms[:, 0].log()
    angle = 2.0 * math.pi * uniforms[:, 1]
    low, high = angle - 2.0 * math.pi, angle
    moved, waiting = position, ~height.isnan()
    for fraction in uniforms[:, 2:].unbind(1):
        cosine, sine = (f(angle).to(position)[:, None] for f in (torch.cos, torch.sin))
        proposal = center + cosine * (position - center) + sine * (draw - center)
        is_taken = waiting & (log_likelihood(proposal) > height)
        moved = torch.where(is_taken[:, None], proposal, moved)
        waiting = waiting & ~is_taken
        if not bool(waiting.any()):
            break
        low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
        angle = low + fraction * (high - low)
    return moved


def normal_prior(name: str, node: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a site's normal prior, and the draw that standard normal numbers make.

    Shapes: noise, and what is returned, as the value of the site.
    """
    fn = node["fn"]
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    is_plain = node["mask"] is None and isinstance(node["scale"], int | float)
    if not is_plain or node["scale"] != 1:
        raise ValueError(
            f"site {name!r} has a mask or a scale, with which its prior is no normal distribution"
        )
    if isinstance(fn, Normal):
        center, apart = fn.loc, fn.scale * noise
    elif isinstance(fn, MultivariateNormal):
        center, apart = fn.loc, (fn.scale_tril @ noise[..., None])[..., 0]
    elif isinstance(fn, GaussianRandomWalk | ZeroSumNormal):
        center, apart = fn.mean, fn.of_noise(noise)
    else:
        raise ValueError(
            f"site {name!r} must have a normal prior for EllipticalSlice, got {type(fn).__name__}; "
            "move it by NUTS or RandomWalk"
        )
    return center.expand_as(noise), center + apart
