"""A guide for mixtures that is trained on many data sets and fits a new one in a single pass.

[1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
Set Transformer: a framework for attention-based permutation-invariant neural networks.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions import Independent, MixtureSameFamily, Normal, biject_to, constraints
from torch.nn.functional import softplus

from pyro_ext._lib import checks

_ROLES = ("weights", "locs", "scales")
_LEAST_SCALE = 1e-3  # what is added to the softplus
_LEAST_COUNT = 1e-6  # of points of a component; one with fewer stays as it is in a step of EM


class AmortizedMixtureGuide(AutoGuide):
    r"""Guide for a mixture; a network computes its point estimates from the data set [1].

    The model has the latent sites of a mixture, weights :math:`\pi`, locations :math:`\mu_k` and
    scales :math:`\sigma_k` of :math:`K` components, and any prior on them:

    .. math:: x_i \sim \sum_k \pi_k \, p(x_i \mid \mu_k, \sigma_k), \qquad
        (\pi, \mu, \sigma) = \text{network}(x_1, \dots, x_n).

    The network is trained on one data set after another. It then fits a new data set, of any size,
    in a single pass. For a set it returns :math:`K` rows. A row holds a number for the weight, then
    the locations, then the scales. The softmax over rows gives the weights, and the softplus the
    scales; a site with other bounded support uses its bijection.

    There are two losses. Under :class:`~pyro.infer.SVI` with :class:`~pyro.infer.Trace_ELBO`, the
    estimates become those of maximum posterior density; :meth:`elbo_loss` is the same for many data
    sets at once. :meth:`likelihood_loss` leaves out the prior, as in [1]. This loss, and all
    methods except the guide itself, require a model that observes all points at one site with a
    :class:`~pyro.distributions.MixtureSameFamily`. They run the model under :func:`torch.vmap`, so
    it must not branch on values.

    A trained guide provides starting points for other methods: ``initial_params=guide`` for
    :class:`~pyro_ext.inference.MCMC`, ``init_to_value(values=guide.median(x))`` for guides, and
    ``init=guide.assign(x)`` for kernels over partitions.

    :param model: a Pyro model of a data set ``x``, **Shape:** ``(n, d)``, or ``(n,)`` if a location
        is a number.
    :param network: a module that maps sets to rows, ``network(x)`` or ``network(x, mask)``, such as
        :class:`~pyro_ext.models.sets.SetTransformer`. **Shape:** ``(*batch, n, d)`` to
        ``(*batch, K, 1 + d + d)``, if each component has ``d`` scales.
    :param str weights: name of the site of weights; by default the site on a simplex.
    :param str locs: name of the site of locations, **Shape:** ``(K, *event)``; by default the site
        that can be negative.
    :param str scales: name of the site of scales, of the same shape; by default the site that
        cannot be negative.
    :raises TypeError: for a model that cannot be called, or a network that is not a module.
    :raises ValueError: at the first call, for a model without exactly these sites, or a network
        whose outputs do not fit.

    Example::

        >>> from pyro_ext.inference import Trainer
        >>> from pyro_ext.models.sets import SetTransformer
        >>> def model(x):
        ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        ...     with pyro.plate("components", 3):
        ...         locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        ...         scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
        ...     components = dist.Normal(locs, scales).to_event(1)
        ...     with pyro.plate("data", len(x)):
        ...         mixture = dist.MixtureSameFamily(dist.Categorical(weights), components)
        ...         pyro.sample("x", mixture, obs=x)
        >>> def data_sets():
        ...     locs = 3.0 * torch.randn(10, 3, 2)
        ...     return locs[torch.arange(10)[:, None], torch.randint(3, (10, 50))] + torch.randn(2)
        >>> guide = AmortizedMixtureGuide(model, SetTransformer(2, 3, 5, hidden_size=16))
        >>> losses = Trainer(guide, seed=0).run(
        ...     lambda: guide.likelihood_loss(data_sets()), 5, progress=False)
        >>> x = torch.randn(40, 2)
        >>> {name: tuple(value.shape) for name, value in guide.median(x).items()}
        {'weights': (3,), 'locs': (3, 2), 'scales': (3, 2)}
        >>> bool(guide.log_likelihood(x, values=guide.em_step(x)) > guide.log_likelihood(x))
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        network: nn.Module,
        *,
        weights: str | None = None,
        locs: str | None = None,
        scales: str | None = None,
    ) -> None:
        checks.function("model", model, "a Pyro model")
        checks.instance("network", network, nn.Module, "a module")
        names = dict(zip(_ROLES, (weights, locs, scales), strict=True))
        for role, name in names.items():
            checks.optional(checks.instance, role, name, str, "the name of a site")
        super().__init__(model)  # type: ignore[no-untyped-call]
        self.network = network
        self._given = names
        self._sites: dict[str, Any] = {}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Sample the sites of the model at their estimates.

        :param Tensor x: the data set. **Shape:** ``(n, d)``, or ``(n,)``.
        :param Tensor mask: booleans, false for padding; the model must accept it, too. **Shape:**
            ``(n,)``.
        :returns: values by site.
        """
        values = self._estimates(x, mask)
        plates = self._create_plates()  # type: ignore[no-untyped-call]
        for name, value in values.items():
            site = self._sites[name]
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                pyro.sample(name, dist.Delta(value, event_dim=site["fn"].event_dim))
        return values

    @torch.no_grad()
    def median(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Compute estimates for one or many data sets, in one pass of the network.

        :param Tensor x: the data sets. **Shape:** ``(*batch, n, d)``, or ``(*batch, n)``.
        :param Tensor mask: booleans, false for padding. **Shape:** ``(*batch, n)``.
        :returns: values by site. **Shape:** ``(*batch, *event)`` each.
        """
        return self._estimates(x, mask)

    def likelihood_loss(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Negative log density of a point, averaged over points and data sets [1].

        :param Tensor x: as for :meth:`median`.
        :param Tensor mask: as for :meth:`median`.
        :returns: a scalar.
        """
        log_joint, _ = self._densities(self._estimates(x, mask), x, mask)
        return -_mean(log_joint.logsumexp(-1), mask).mean()

    def elbo_loss(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of :class:`~pyro.infer.Trace_ELBO`, averaged over data sets.

        :param Tensor x: as for :meth:`median`.
        :param Tensor mask: as for :meth:`median`.
        :returns: a scalar.
        """
        log_joint, log_prior = self._densities(self._estimates(x, mask), x, mask)
        log_density = log_joint.logsumexp(-1)
        if mask is not None:
            log_density = log_density.masked_fill(~mask, 0)
        return -(log_density.sum(-1) + log_prior).mean()

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, mask: Tensor | None = None, *, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Log density of a point, averaged over a data set.

        :param Tensor x: as for :meth:`median`.
        :param Tensor mask: as for :meth:`median`.
        :param Mapping values: values by site, as from :meth:`median`, which is the default.
        :returns: **Shape:** ``(*batch,)``.
        """
        log_joint, _ = self._densities(self._values(x, mask, values), x, mask)
        return _mean(log_joint.logsumexp(-1), mask)

    @torch.no_grad()
    def assign(
        self, x: Tensor, mask: Tensor | None = None, *, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Find the most likely component of each point.

        :param Tensor x: as for :meth:`median`.
        :param Tensor mask: as for :meth:`median`.
        :param Mapping values: as for :meth:`log_likelihood`.
        :returns: integers, and -1 for padding. **Shape:** ``(*batch, n)``.
        """
        log_joint, _ = self._densities(self._values(x, mask, values), x, mask)
        labels = log_joint.argmax(-1)
        return labels if mask is None else labels.masked_fill(~mask, -1)

    @torch.no_grad()
    def em_step(
        self, x: Tensor, mask: Tensor | None = None, *, values: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Take a step of expectation maximization from estimates, for normal components.

        The step maximizes the likelihood, and ignores the prior and its support.

        :param Tensor x: as for :meth:`median`.
        :param Tensor mask: as for :meth:`median`.
        :param Mapping values: where the step starts, as for :meth:`log_likelihood`.
        :returns: values by site. **Shape:** ``(*batch, *event)`` each.
        :raises ValueError: if components are not normal and independent over features.
        """
        values = self._values(x, mask, values)
        weights, locs, scales = (values[name] for name in self._sites)
        log_joint, _ = self._densities(values, x, mask, normal=True)
        fractions = log_joint.softmax(-1)
        points = self._points(x)
        if mask is not None:
            fractions = fractions.masked_fill(~mask[..., None], 0)
            points = points.masked_fill(~mask[..., None], 0)
        counts = fractions.sum(-2)
        old_mean, old_scale = (part.reshape(*counts.shape, -1) for part in (locs, scales))
        size = counts.clamp(min=_LEAST_COUNT)[..., None]
        mean = fractions.mT @ points / size
        deviation = points[..., None, :] - mean[..., None, :, :]
        variance = (fractions[..., None] * deviation.square()).sum(-3) / size
        if old_scale.shape[-1] == 1:  # one for all features
            variance = variance.mean(-1, keepdim=True)
        is_empty = counts[..., None] < _LEAST_COUNT
        mean = torch.where(is_empty, old_mean, mean)
        scale = torch.where(is_empty, old_scale, variance.sqrt().clamp(min=_LEAST_SCALE))
        total = counts.sum(-1, keepdim=True)
        weights = torch.where(total > 0, counts / total, weights)
        found = weights, mean.reshape(locs.shape), scale.reshape(scales.shape)
        return dict(zip(self._sites, found, strict=True))

    # Sites ---------------------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Find the sites in the model's trace at one data set."""
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            super()._setup_prototype(*args, **kwargs)  # type: ignore[no-untyped-call]
        trace: Any = self.prototype_trace
        latents = {
            name: site
            for name, site in trace.iter_stochastic_nodes()
            if not getattr(site["fn"], "has_enumerate_support", False)
        }
        names = {role: self._name_of(role, latents) for role in _ROLES}
        if len(set(names.values())) < len(_ROLES) or set(names.values()) != set(latents):
            self.prototype_trace = None
            raise ValueError(
                "the model must have three continuous sites, of weights, locs and scales, got "
                f"{sorted(latents)}, of which these are {names}"
            )
        sites = {name: latents[name] for name in names.values()}
        (number, *batch), *others = (site["value"].shape for site in sites.values())
        if batch or any(shape[:1] != (number,) or len(shape) > 2 for shape in others):
            self.prototype_trace = None
            shapes = {name: tuple(site["value"].shape) for name, site in sites.items()}
            raise ValueError(
                "the sites of the model must have the shapes (K,) for weights and (K,) or (K, d) "
                f"for locs and scales, got {shapes}"
            )
        self._sites = sites

    def _name_of(self, role: str, latents: Mapping[str, Any]) -> str:
        if (given := self._given[role]) is not None:
            if given not in latents:
                raise ValueError(
                    f"{role} must be one of the sites {sorted(latents)}, got {given!r}"
                )
            return given
        others = set(self._given.values())
        roles = {name: _role_of(site["fn"].support) for name, site in latents.items()}
        found = [name for name in roles if roles[name] == role and name not in others]
        if len(found) != 1:
            raise ValueError(
                f"{role} must name a site of the model, since {found or 'none'} of "
                f"{sorted(latents)} could be meant, got None"
            )
        return found[0]

    def _estimates(self, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Values by site, with gradients."""
        x = checks.as_tensor("x", x)
        if self.prototype_trace is None:
            self._setup_prototype(x.flatten(0, -3)[0] if x.dim() > 2 else x)
        points = self._points(x)
        if mask is not None:
            checks.instance("mask", mask, Tensor, "a bool tensor")
            checks.has_values("mask", mask)
            if mask.dtype != torch.bool or mask.shape != points.shape[:-1]:
                raise ValueError(
                    f"mask must be a bool tensor of the shape {tuple(points.shape[:-1])}, got "
                    f"{mask.dtype} of the shape {tuple(mask.shape)} for the points of x"
                )
        checks.all_finite("x", points if mask is None else points.masked_fill(~mask[..., None], 0))
        rows = self.network(points) if mask is None else self.network(points, mask)
        shapes = [site["value"].shape for site in self._sites.values()]
        sizes = [shape[1:].numel() for shape in shapes]
        wanted = (*points.shape[:-2], shapes[0][0], sum(sizes))
        if not isinstance(rows, Tensor) or rows.shape != wanted:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"network must return the shape {wanted} for x of the shape {tuple(x.shape)} and "
                f"the sites {list(self._sites)}, got {got}"
            )
        values = {}
        parts = zip(self._sites.items(), shapes, rows.split(sizes, -1), strict=True)
        for (name, site), shape, part in parts:
            support = site["fn"].support
            raw = part.reshape(*part.shape[:-2], *shape)
            if name == next(iter(self._sites)):
                values[name] = raw.softmax(-1)
            elif _is_positive(support):
                values[name] = softplus(raw) + _LEAST_SCALE
            else:
                values[name] = biject_to(support)(raw)
        return values

    def _points(self, x: Tensor) -> Tensor:
        """Data sets with an axis of features."""
        _, locs, _ = self._sites.values()
        x = checks.as_tensor("x", x)
        points = x[..., None] if locs["value"].dim() == 1 else x
        if points.dim() < 2:
            raise ValueError(f"x must have the shape (*batch, n, d), got {tuple(x.shape)}")
        return points

    def _values(
        self, x: Tensor, mask: Tensor | None, values: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        estimates = self._estimates(x, mask)
        if values is None:
            return estimates
        given = checks.tensors("values", values, tuple(estimates), finite=True)
        for name, estimate in estimates.items():
            if given[name].shape != estimate.shape:
                raise ValueError(
                    f"values[{name!r}] must have the shape {tuple(estimate.shape)}, got "
                    f"{tuple(given[name].shape)}"
                )
        return {name: given[name] for name in estimates}

    # Densities -----------------------------------------------------------------------------------

    def _densities(
        self, values: dict[str, Tensor], x: Tensor, mask: Tensor | None, normal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log joint of points and components, ``(*batch, n, K)``, and log prior, ``(*batch,)``."""
        points = checks.as_tensor("x", x)
        batch_shape = self._points(points).shape[:-2]
        if mask is not None:  # not even a NaN in padding may reach a gradient
            shape = (*mask.shape, *[1] * (points.dim() - mask.dim()))
            points = points.masked_fill(~mask.reshape(shape), 0)

        def of_one(values: dict[str, Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
            trace: Any
            with poutine.block():
                trace = poutine.trace(pyro.condition(self.model, values)).get_trace(points)
            trace.compute_log_prob(lambda name, _: name in values)
            log_prior = torch.stack([trace.nodes[name]["log_prob_sum"] for name in values]).sum()
            site = self._observed(trace, normal)
            mixture = site["fn"]
            value = site["value"].unsqueeze(-1 - len(mixture.event_shape))
            log_weights = mixture.mixture_distribution.logits.log_softmax(-1)
            return mixture.component_distribution.log_prob(value) + log_weights, log_prior

        flat = {
            name: value.reshape(-1, *self._sites[name]["value"].shape)
            for name, value in values.items()
        }
        with pyro.validation_enabled(False):
            found = torch.vmap(of_one, randomness="different")(
                flat, points.reshape(-1, *points.shape[len(batch_shape) :])
            )
        log_joint, log_prior = found
        return log_joint.reshape(*batch_shape, *log_joint.shape[1:]), log_prior.reshape(batch_shape)

    def _observed(self, trace: Any, normal: bool) -> Any:
        """The site of the points."""
        sites = {name: trace.nodes[name] for name in trace.observation_nodes}
        found = [site for name, site in sites.items() if name not in self._sites]
        if len(found) != 1 or not isinstance(found[0]["fn"], MixtureSameFamily):
            kinds = {site["name"]: type(site["fn"]).__name__ for site in found}
            raise ValueError(
                "the model must observe the points in one site with a MixtureSameFamily, which "
                f"has its components summed out, got {kinds}"
            )
        component = found[0]["fn"].component_distribution
        while isinstance(component, Independent):
            component = component.base_dist
        if normal and not isinstance(component, Normal):
            raise ValueError(
                "components of the model must be normal, and independent over features, for a "
                f"step of expectation maximization, got {type(component).__name__}"
            )
        return found[0]


def _mean(log_density: Tensor, mask: Tensor | None) -> Tensor:
    """Over the points that are there, zero without any."""
    if mask is None:
        return log_density.mean(-1)
    return log_density.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def _base(support: Any) -> Any:
    """The constraint of a number or a simplex."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _role_of(support: Any) -> str:
    """Return the role that the support gives a site: weights, locations or scales."""
    support = _base(support)
    if isinstance(support, type(constraints.simplex)):
        return "weights"
    lower = getattr(support, "lower_bound", None)
    return "locs" if lower is None or bool((torch.as_tensor(lower) < 0).any()) else "scales"


def _is_positive(support: Any) -> bool:
    """Tell whether zero is the only bound of a support."""
    support = _base(support)
    is_half_line = isinstance(support, constraints.greater_than | constraints.greater_than_eq)
    return is_half_line and bool((torch.as_tensor(support.lower_bound) == 0).all())
