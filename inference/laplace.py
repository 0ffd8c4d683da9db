"""Gaussian posteriors at a mode, of few parameters and of weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.training import Trainer
from pyro_ext.posterior.modes import find_map, gradient_differences
from pyro_ext.potential import Potential
from pyro_ext.random import fresh_seed, seeded

_STEP = 1e-3


class LaplacePosterior(NamedTuple):
    """Gaussian at the mode of a posterior, in unconstrained coordinates.

    :param Tensor mode: where the posterior is largest. **Shape:** ``(size,)``.
    :param Tensor scale_tril: the root of the covariance. **Shape:** ``(size, size)``.
    :param Tensor log_evidence: logarithm of the integral of the joint density, approximately.
    """

    mode: Tensor
    scale_tril: Tensor
    log_evidence: Tensor


def laplace_posterior(
    potential: Potential, starts: Sequence[Mapping[str, Tensor]]
) -> LaplacePosterior:
    """Find the highest mode from some starts, and the Gaussian there.

    :param Potential potential: of a model without minibatches, in float64.
    :param starts: values of all sites, in constrained space; one at least.
    :returns: the Gaussian, with the curvature by finite differences of gradients.
    :raises ValueError: without starts, and where the mode has no finite positive curvature.

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
    return LaplacePosterior(mode, scale_tril, log_volume - energy)


class DiagonalLaplace(NamedTuple):
    """Independent normal distributions of weights around a mode.

    :param Mapping mode: where they are centered, by name.
    :param Mapping scale: standard deviations, by name. **Shape:** as the mode.
    :param Tensor noise: standard deviation of the targets. **Shape:** ``()``.
    :param Tensor prior_scale: standard deviation of the prior of each weight. **Shape:** ``()``.
    :param Tensor log_evidence: logarithm of the marginal likelihood, approximately.
    """

    mode: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]
    noise: Tensor
    prior_scale: Tensor
    log_evidence: Tensor

    def sample(self, num_samples: int, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of the weights.

        :param int num_samples: how many.
        :param int seed: of the draws; ``None`` takes one from PyTorch's generator.
        :returns: by name. **Shape:** ``(num_samples, *shape)`` each.
        """
        number = checks.integer("num_samples", num_samples, 1)
        with seeded(fresh_seed(seed)):
            return {
                name: mean
                + self.scale[name] * torch.randn(number, *mean.shape, dtype=mean.dtype).to(mean)
                for name, mean in self.mode.items()
            }

    def predict(
        self, function: Callable[..., Tensor], inputs: Tensor, *, batch_size: int = 32
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the outputs, without noise, of the function that is linearized.

        Draws of the weights of a network put through the network itself go far astray where few
        data determine many weights; the slopes at the mode do not.

        :param Callable function: as of :func:`diagonal_laplace`.
        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param int batch_size: inputs whose slopes are in memory at the same time.
        :returns: **Shape:** ``(n, *outputs)`` each.
        """
        checks.function("function", function)
        inputs = _rows(inputs, self.mode)
        means, variances = [], []
        for rows in inputs.split(checks.integer("batch_size", batch_size, 1)):
            slopes, values = _slopes(function, self.mode, rows)
            means.append(values)
            total = torch.zeros_like(values)
            for name, slope in slopes.items():
                terms = (slope * self.scale[name]).square().reshape(*values.shape, -1)
                total = total + terms.sum(-1)
            variances.append(total)
        return torch.cat(means), torch.cat(variances)


def _slopes(
    function: Callable[..., Tensor], mode: Mapping[str, Tensor], rows: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Derivatives of the outputs of each row in the weights, and the outputs."""

    def outputs(weights: dict[str, Tensor], row: Tensor) -> tuple[Tensor, Tensor]:
        found = function(weights, row)
        checks.instance("what function returns", found, Tensor, "a tensor")
        return found, found

    slopes = torch.vmap(torch.func.jacrev(outputs, has_aux=True), in_dims=(None, 0))
    jacobian, values = slopes(dict(mode), rows)
    return {name: one.detach() for name, one in jacobian.items()}, values.detach()


def _rows(inputs: Any, mode: Mapping[str, Tensor]) -> Tensor:
    """Inputs of the type and on the device of the weights."""
    like = next(iter(mode.values()))
    return checks.as_tensor("inputs", inputs, "(n, ...)", finite=True, like=like)


def diagonal_laplace(
    function: Callable[..., Tensor],
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    noise: float | None = None,
    prior_scale: float | None = None,
    num_steps: int = 200,
    learning_rate: float = 0.1,
    batch_size: int = 32,
) -> DiagonalLaplace:
    r"""The normal posterior of the weights of a regression, after training, from its slopes [1].

    The precision of a weight is the diagonal of the generalized Gauss-Newton matrix,
    :math:`\sum_n (\partial f_n / \partial w)^2 / \sigma^2 + 1 / \tau^2`. Without ``noise`` and
    ``prior_scale``, :math:`\sigma` and :math:`\tau` are where the marginal likelihood is largest,

    .. math:: \log p(y) \approx \sum_n \log N(y_n; f_n, \sigma^2)
              + \sum_w \bigl(\log N(w; 0, \tau^2) - \tfrac12 \log \tfrac{H_{ww}}{2 \pi}\bigr) .

    The mode is taken to be where the weights are; for a linear function of weights whose slopes are
    orthogonal all of it is exact. With many more weights than targets let ``noise`` be given: the
    diagonal takes each weight as determined by itself, so that the marginal likelihood is largest
    where the noise is far too large.

    :param Callable function: of weights by name and one input, as a network by
        :func:`torch.func.functional_call`; returns one or several outputs. Inputs take the type
        of the weights.
    :param Mapping parameters: the weights after training, by name.
    :param Tensor inputs: **Shape:** ``(n, *event)``.
    :param Tensor targets: **Shape:** ``(n, *outputs)``.
    :param float noise: :math:`\sigma`.
    :param float prior_scale: :math:`\tau`.
    :param int num_steps: of Adam, with which the two are found.
    :param float learning_rate: its learning rate, in their logarithms.
    :param int batch_size: inputs whose slopes are in memory at the same time.
    :raises ValueError: for shapes that do not fit, or numbers out of range.

    [1] E. Daxberger and others (2021), Laplace redux: effortless Bayesian deep learning.

    Example::

        >>> x = torch.tensor([1.0, -1.0, 1.0, -1.0])
        >>> found = diagonal_laplace(
        ...     lambda w, x: w["slope"] * x, {"slope": torch.tensor(2.0)}, x, 2.0 * x + 0.1,
        ...     noise=0.5, prior_scale=10.0)
        >>> round(float(found.scale["slope"]), 4)  # 1 / sqrt(4 / 0.25 + 0.01)
        0.2499
    """
    checks.function("function", function)
    mode = {
        name: value.detach().clone()
        for name, value in checks.tensors("parameters", parameters, finite=True).items()
    }
    inputs = _rows(inputs, mode)
    targets = checks.as_tensor("targets", targets, f"({len(inputs)}, ...)", finite=True)
    fixed = {"noise": noise, "prior_scale": prior_scale}
    for name, value in fixed.items():
        if value is not None:
            checks.number(name, value, above=0)
    checks.integer("num_steps", num_steps, 1)
    checks.number("learning_rate", learning_rate, above=0)
    checks.integer("batch_size", batch_size, 1)

    curvature = {name: torch.zeros_like(value) for name, value in mode.items()}
    predicted = []
    for rows in inputs.split(batch_size):
        slopes, values = _slopes(function, mode, rows)
        if values.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"targets of one input must have the shape {tuple(values.shape[1:])} of what "
                f"function returns, got {tuple(targets.shape[1:])}"
            )
        predicted.append(values)
        for name, found in slopes.items():
            curvature[name] += found.reshape(-1, *mode[name].shape).square().sum(0)
    errors = targets.to(predicted[0]) - torch.cat(predicted)
    square = errors.double().square().sum()
    weights = torch.cat([value.double().flatten() for value in mode.values()])
    found_curvature = torch.cat([value.double().flatten() for value in curvature.values()])

    def evidence(log_noise: Tensor, log_prior: Tensor) -> Tensor:
        likelihood = -errors.numel() * (log_noise + 0.5 * math.log(2.0 * math.pi))
        likelihood = likelihood - 0.5 * square * (-2.0 * log_noise).exp()
        precision = found_curvature * (-2.0 * log_noise).exp() + (-2.0 * log_prior).exp()
        prior = -0.5 * weights.square().sum() * (-2.0 * log_prior).exp()
        volume = -len(weights) * log_prior - 0.5 * precision.log().sum()
        return likelihood + prior + volume

    start = 0.5 * (square / errors.numel()).clamp(min=1e-12).log()
    logs = {
        "noise": start if noise is None else start.new_tensor(noise).log(),
        "prior_scale": start.new_tensor(1.0 if prior_scale is None else prior_scale).log(),
    }
    logs = {name: value.clone().requires_grad_(fixed[name] is None) for name, value in logs.items()}
    free = [value for value in logs.values() if value.requires_grad]
    if free:
        Trainer(free, partial(torch.optim.Adam, lr=learning_rate)).run(
            lambda: -evidence(*logs.values()), num_steps, progress=False
        )
    log_noise, log_prior = (value.detach() for value in logs.values())
    scale = {
        name: (value * (-2.0 * log_noise).exp() + (-2.0 * log_prior).exp()).rsqrt().to(value)
        for name, value in curvature.items()
    }
    return DiagonalLaplace(
        mode, scale, log_noise.exp(), log_prior.exp(), evidence(log_noise, log_prior)
    )
