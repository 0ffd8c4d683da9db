"""Gaussian posteriors at a mode, for few parameters or for a network's weights, as guides."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader

from pyro_ext._lib import checks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext._lib.optional import optional_module
from pyro_ext.nn import BayesianModule
from pyro_ext.posterior.convergence import ConvergenceWarning
from pyro_ext.posterior.importance import MOST_K_HAT, smoothed_weights
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.posterior.modes import gradient_differences, laplace_at, search
from pyro_ext.posterior.paths import log_densities
from pyro_ext.potential import InitStrategy, Potential, bijection, sum_out
from pyro_ext.random import chain_keys, fresh_seed, normal

_STEP = 1e-3  # in standard deviations, between gradients of which second derivatives are taken
_NUM_STARTS = 4
_NUM_WEIGHED = 250  # draws whose importance weights are computed: a density costs as much as a step
_STREAM = 6


class Gaussian(NamedTuple):
    """Normal approximation at a mode, in unconstrained coordinates.

    :param Tensor mode: **Shape:** ``(size,)``.
    :param Tensor scale_tril: Cholesky factor of the covariance. **Shape:** ``(size, size)``.
    :param float log_evidence: logarithm of the integral of the joint density, approximately.
    """

    mode: Tensor
    scale_tril: Tensor
    log_evidence: float


def gaussian_at_mode(potential: Potential, starts: Tensor) -> Gaussian:
    """Find the highest mode from several starts, and the Gaussian there.

    Shapes: starts (num_starts, size), in unconstrained coordinates.
    """

    def value_and_gradient(flat: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = potential.full_value_and_grad(potential.layout.unflatten(flat))
        return value, potential.layout.flatten(gradient)

    ends = torch.stack([search(potential, start)[0] for start in starts])
    best = ends[value_and_gradient(ends)[0].nan_to_num(torch.inf).argmin()]
    laplace = laplace_at(potential, best, "laplace_posterior")
    mode, hessian = laplace.mode.position, laplace.hessian.double()
    if mode.dtype == torch.float64:  # in single precision, rounding would hide such differences
        distances = _STEP * hessian.diagonal().rsqrt()
        hessian = gradient_differences(lambda z: value_and_gradient(z)[1], mode, distances)
    unit = hessian.diagonal().rsqrt()
    correlations = unit[:, None] * (0.5 * (hessian + hessian.mT)) * unit
    if not float(torch.linalg.eigvalsh(correlations)[0]) > torch.finfo(mode.dtype).eps ** 0.5:
        raise ValueError(
            "laplace_posterior wants a mode of the posterior whose matrix of second derivatives "
            "is positive definite, and found none: check whether the data determine all sites"
        )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlations))
    scale_tril = torch.linalg.cholesky(unit[:, None] * inverse * unit)
    log_volume = 0.5 * len(mode) * math.log(2.0 * math.pi) + scale_tril.diagonal().log().sum()
    (energy,), _ = value_and_gradient(mode[None])
    return Gaussian(mode, scale_tril.to(mode), float(log_volume - energy.double()))


class LaplacePosterior(IndependentDraws):
    """Gaussian approximation at the mode of a posterior, made by :func:`laplace_posterior`.

    Pass it to :func:`~pyro_ext.diagnostics.to_arviz`, to ``MCMC`` as ``initial_params``, or to
    :class:`~pyro.infer.Predictive` as a guide.

    :ivar Tensor mode: where the posterior is largest, in unconstrained coordinates. **Shape:**
        ``(size,)``.
    :ivar Tensor scale_tril: Cholesky factor of the covariance there. **Shape:** ``(size, size)``.
    :ivar float log_evidence: Laplace's approximation of the log marginal likelihood.
    :ivar float k_hat: the shape of the tail of the importance weights of up to 250 draws. Above
        0.7, the posterior is too far from a Gaussian.
    :ivar float efficiency: the effective sample size of a draw weighted so, one at most.
    :ivar model: the model, with ``args`` and ``kwargs``, and its ``potential``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        potential: Potential,
        found: Gaussian,
        noise: Tensor,
    ) -> None:
        super().__init__()
        self.model, self.args, self.kwargs, self.potential = model, args, kwargs, potential
        self.mode, self.scale_tril, self.log_evidence = found
        flat = self.mode + noise @ self.scale_tril.mT
        self._samples = potential.samples(potential.layout.unflatten(flat))
        weighed = flat[:_NUM_WEIGHED]
        log_q = dist.MultivariateNormal(self.mode, scale_tril=self.scale_tril).log_prob(weighed)
        weights = smoothed_weights(log_densities(potential, weighed) - log_q)
        self.k_hat = weights.k_hat
        self.efficiency = weights.effective_sample_size / len(weighed)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent sites, as a guide; the arguments are those of the model."""
        normal = dist.MultivariateNormal(self.mode, scale_tril=self.scale_tril)
        flat = pyro.sample("_laplace_latent", normal, infer={"is_auxiliary": True})
        params = self.potential.layout.unflatten(flat[None])
        values = self.potential.constrain(params)
        drawn = {}
        for name, site in self.potential.sites.items():
            transform = bijection(site.support)
            point, value = params[name][0], values[name][0]
            log_density = -transform.log_abs_det_jacobian(point, value).sum()
            delta = dist.Delta(value, log_density=log_density, event_dim=site.event_dim)
            drawn[name] = pyro.sample(name, delta)
        return drawn


@refuses_moved
def laplace_posterior(
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    num_starts: int = _NUM_STARTS,
    init_strategy: InitStrategy = init_to_uniform,
    seed: int | None = None,
    **kwargs: Any,
) -> LaplacePosterior:
    r"""Approximate a posterior by the Gaussian at its highest mode.

    L-BFGS over all of the data searches for modes from several starts. The Gaussian has the inverse
    of the second derivatives there as its covariance, in unconstrained coordinates; these are
    differences of gradients. It takes a few dozen gradients for each start, about six for each
    parameter, and the densities of 250 draws. Posteriors of many observations and few parameters
    are nearly Gaussian; ``k_hat`` tells, from importance weights of the draws. Above 0.7 there is a
    warning: use :class:`~pyro_ext.inference.NUTS`.

    :param model: a Pyro model; discrete sites are summed out. It may also be a
        :class:`~pyro_ext.potential.Potential` of a model.
    :param args: arguments of the model.
    :param int num_samples: number of draws.
    :param int num_starts: number of searches for a mode.
    :param init_strategy: where these start, one of :mod:`pyro.infer.autoguide.initialization`.
    :param int seed: seed of all random numbers; ``None`` takes one from PyTorch's generator.
    :param kwargs: keyword arguments of the model.
    :returns: the approximation, with draws.
    :raises ValueError: if numbers are out of range, or no search ends at a mode with
        positive-definite second derivatives.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     scale = pyro.sample("scale", dist.HalfNormal(10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, scale), obs=x)
        >>> posterior = laplace_posterior(model, torch.linspace(-1.0, 3.0, 200), seed=0)
        >>> posterior.k_hat < 0.7, round(float(posterior.get_samples()["loc"].mean()), 1)
        (True, 1.0)
    """
    checks.function("model", model, "a Pyro model or a Potential")
    checks.integer("num_samples", num_samples, 1)
    checks.integer("num_starts", num_starts, 1)
    checks.function("init_strategy", init_strategy)
    seed = fresh_seed(seed)
    if isinstance(model, Potential):
        if args or kwargs:
            raise ValueError("args must be empty with a Potential, which holds its own")
        potential = model
        model, args, kwargs = potential.model, potential.args, dict(potential.kwargs)
    else:
        potential = Potential(
            sum_out(model, *args, **kwargs), *args, init_strategy=init_strategy, **kwargs
        )
    layout = potential.layout
    starts = layout.flatten(potential.init_chains(range(num_starts), seed, init_strategy))
    found = gaussian_at_mode(potential, starts)
    keys = chain_keys(seed, range(num_samples), layout.device)
    step = torch.zeros((), dtype=torch.int64, device=layout.device)
    noise = normal(keys, step, layout.size, stream=_STREAM, dtype=layout.dtype)
    posterior = LaplacePosterior(model, args, kwargs, potential, found, noise)
    if not posterior.k_hat <= MOST_K_HAT:
        warnings.warn(
            f"k_hat is {posterior.k_hat:.2g}, where at most {MOST_K_HAT} is right: the posterior "
            "is too far from the Gaussian at its mode; run MCMC(NUTS(model), ...)",
            ConvergenceWarning,
            stacklevel=3,
        )
    return posterior


class AutoLaplaceGGN(nn.Module):
    r"""A normal guide of a network's weights around their trained values [1].

    The precision is that of the prior plus the generalized Gauss-Newton matrix of the data,
    computed by laplace-torch (``pip install pyro-ext[laplace]``). Weights outside of
    ``subset_of_weights`` stay fixed. Use it as a guide of any model that calls the network, in
    :class:`~pyro.infer.Predictive`, :func:`~pyro_ext.diagnostics.to_arviz` and
    :func:`~pyro_ext.diagnostics.psis`. If few data determine many weights, the network predicts
    poorly at draws of all weights; draws of the last layer, or the linearized network
    ``guide.laplace(inputs)``, predict better. Compare with the trained network itself.

    :param BayesianModule network: wraps a trained network; its prior is that of the guide. It takes
        a batch of inputs as its only argument.
    :param loader: a PyTorch ``DataLoader`` of the training data, as pairs of inputs and targets,
        unshuffled and complete. Targets are classes ``(n,)``, or numbers ``(n, outputs)``.
    :param str likelihood: ``"classification"``, with the outputs as logits, or ``"regression"``.
    :param str subset_of_weights: ``"all"`` or ``"last_layer"``.
    :param str hessian_structure: ``"kron"``, Kronecker-factored by layer; ``"diag"``; or
        ``"full"``, for at most a few thousand weights.
    :param float noise: standard deviation of the targets of a regression.
    :ivar laplace: the laplace-torch object, with ``log_marginal_likelihood()`` and
        ``optimize_prior_precision()``, after which draws use the prior that it found.
    :raises ValueError: for unknown words, or a number out of range.
    :raises ImportError: without laplace-torch.

    [1] E. Daxberger and others (2021), Laplace redux: effortless Bayesian deep learning.

    Example::

        >>> from pyro.infer import Predictive
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from pyro_ext.nn import MLP, BayesianClassifier
        >>> inputs, labels = torch.randn(60, 4), torch.arange(60) % 3
        >>> trained = MLP(4, [8], 3)  # as if it were
        >>> network = BayesianModule(trained)
        >>> loader = DataLoader(TensorDataset(inputs, labels), batch_size=20)
        >>> guide = AutoLaplaceGGN(network, loader, "classification")
        >>> model = BayesianClassifier(network)
        >>> draws = Predictive(model, guide=guide, num_samples=5)(inputs)
        >>> draws["0.weight"].shape, draws["label"].shape
        (torch.Size([5, 1, 8, 4]), torch.Size([5, 60]))
    """

    def __init__(
        self,
        network: BayesianModule,
        loader: Iterable[Any],
        likelihood: Literal["classification", "regression"],
        *,
        subset_of_weights: Literal["all", "last_layer"] = "all",
        hessian_structure: Literal["kron", "diag", "full"] = "kron",
        noise: float = 1.0,
    ) -> None:
        checks.instance("network", network, BayesianModule, "a BayesianModule")
        checks.instance("loader", loader, DataLoader, "a DataLoader of inputs and targets")
        checks.choice("likelihood", likelihood, ("classification", "regression"))
        checks.choice("subset_of_weights", subset_of_weights, ("all", "last_layer"))
        checks.choice("hessian_structure", hessian_structure, ("kron", "diag", "full"))
        options = {"sigma_noise": checks.number("noise", noise, above=0)}
        super().__init__()
        module = copy.deepcopy(network.module).requires_grad_(True).eval()
        package = optional_module("laplace", type(self).__name__, "laplace-torch", "laplace")
        self.laplace = package.Laplace(
            module,
            likelihood,
            subset_of_weights=subset_of_weights,
            hessian_structure=hessian_structure,
            **(options if likelihood == "regression" else {}),
        )
        self.laplace.fit(loader)
        # For the last layer, laplace-torch wraps a copy of the network.
        whole = self.laplace.model.model if subset_of_weights == "last_layer" else module
        part = self.laplace.model.last_layer if subset_of_weights == "last_layer" else module
        own = {id(parameter) for parameter in part.parameters()}
        self._values = {name: value.detach() for name, value in module.named_parameters()}
        self.names = [name for name, value in whole.named_parameters() if id(value) in own]
        sizes = torch.tensor([self._values[name].numel() for name in self.names])
        scales = torch.tensor([network.prior_scales[name] for name in self.names])
        precision, means = (
            scales.pow(-2.0),
            torch.tensor([name in network.gains for name in self.names]),
        )
        # Kronecker factors take a number for each parameter, the others one for each weight.
        if hessian_structure != "kron":
            precision = precision.repeat_interleave(sizes)
        self.laplace.prior_precision = precision.to(self.laplace.mean)
        self.laplace.prior_mean = means.repeat_interleave(sizes).to(self.laplace.mean)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample all parameters of the network; the arguments are those of the model."""
        normal = _LaplaceNormal(self.laplace)
        flat = pyro.sample("_laplace_latent", normal, infer={"is_auxiliary": True})
        sizes = [self._values[name].numel() for name in self.names]
        drawn = dict(zip(self.names, flat.split(sizes), strict=True))
        values = {}
        for name, value in self._values.items():
            found = drawn.get(name, value).reshape(value.shape)
            values[name] = pyro.sample(name, dist.Delta(found, event_dim=value.dim()))
        return values


class _LaplaceNormal(TorchDistribution):
    """The normal distribution of an approximation of laplace-torch, of flat weights."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, laplace: Any) -> None:
        self._laplace = laplace
        super().__init__(torch.Size(), laplace.mean.shape, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw weights."""
        shape = torch.Size(sample_shape)
        draws: Tensor = self._laplace.sample(shape.numel()).detach()
        return draws.reshape(*shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of weights."""
        rows = value.reshape(-1, value.shape[-1])
        logs = torch.stack([self._laplace.log_prob(row) for row in rows]).detach()
        return logs.reshape(value.shape[:-1])
