"""Gaussian posteriors at a mode, for few parameters or for a network's weights, as guides."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.nn import BayesianModule
from pyro_ext.posterior.modes import find_map, gradient_differences
from pyro_ext.potential import Potential, bijection

_STEP = 1e-3


class LaplacePosterior(NamedTuple):
    """Gaussian approximation at the mode of a posterior, in unconstrained coordinates.

    It is a guide of the model: pass it to :class:`~pyro.infer.Predictive`,
    :func:`~pyro_ext.diagnostics.to_arviz` or :func:`~pyro_ext.diagnostics.psis`.

    :param Tensor mode: where the posterior is largest. **Shape:** ``(size,)``.
    :param Tensor scale_tril: Cholesky factor of the covariance. **Shape:** ``(size, size)``.
    :param Tensor log_evidence: logarithm of the integral of the joint density, approximately.
    :param Potential potential: potential of the model.
    """

    mode: Tensor
    scale_tril: Tensor
    log_evidence: Tensor
    potential: Potential

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent sites; the arguments are those of the model."""
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


def laplace_posterior(
    potential: Potential, starts: Sequence[Mapping[str, Tensor]]
) -> LaplacePosterior:
    """Find the highest mode from several starts, and the Gaussian approximation there.

    :param Potential potential: the potential of a model without minibatches, in float64.
    :param starts: values of all sites, in constrained space; at least one.
    :returns: the Gaussian. Its curvature is computed by finite differences of gradients.
    :raises ValueError: without starts, or if the mode has no finite positive curvature.

    Example::

        >>> def model():
        ...     loc = pyro.sample("loc", dist.Normal(torch.tensor(1.0).double(), 2.0))
        >>> start = {"loc": torch.tensor(0.0).double()}
        >>> posterior = laplace_posterior(Potential(model), [start])
        >>> round(float(posterior.scale_tril), 6)
        2.0
    """
    checks.instance("potential", potential, Potential, "a Potential")
    starts = checks.sequence("starts", starts, "a list of dicts of tensors by site")
    starts = [checks.tensors("starts", start, potential.sites) for start in starts]
    layout = potential.layout
    modes = torch.stack(
        [
            layout.flatten(potential.unconstrain(find_map(potential, dict(start))))
            for start in starts
        ]
    )
    values, _ = potential.gradient(modes)
    best = int(values.nan_to_num(torch.inf).argmin())
    mode, energy = modes[best], values[best]
    distances = torch.full_like(mode, _STEP)
    hessian = gradient_differences(lambda flat: potential.gradient(flat)[1], mode, distances)
    precision, failed = torch.linalg.cholesky_ex(0.5 * (hessian + hessian.mT))
    if bool(failed) or not bool(energy.isfinite()):
        names = potential.constrain(layout.unflatten(mode))
        raise ValueError(
            f"starts lead to no maximum with a finite positive curvature, but to {names!s:.200}"
        )
    scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(precision))
    log_volume = 0.5 * len(mode) * math.log(2.0 * math.pi) + scale_tril.diagonal().log().sum()
    return LaplacePosterior(mode, scale_tril, log_volume - energy, potential)


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
