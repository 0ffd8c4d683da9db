"""Gaussian processes over the steps of sequences that are padded to a common length."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import expanded

_HALF_LOG_2PI = 0.9189385332046727


class PaddedMultivariateNormal(TorchDistribution):
    r"""Normal vectors with mean zero, of which only the first elements count.

    A draw from :math:`\mathcal{N}(0, L L^\top)` has all :math:`T` elements. The density is that of
    the first :math:`n` elements. The others do not affect it, even if they are NaN:

    .. math:: \log p(z_{1:n}) = \sum_{t \le n} \log \mathcal{N}(u_t \mid 0, 1) - \log L_{tt},
              \qquad u = L^{-1} z.

    :param Tensor scale_tril: :math:`L`, lower triangular with a positive diagonal.
        **Shape:** ``(*batch, T, T)``.
    :param Tensor lengths: :math:`n`, integers from 0 to :math:`T`. Default: all elements count.
        **Shape:** ``(*batch)``.
    :raises ValueError: if arguments are out of range.

    Example::

        >>> scale_tril = torch.linalg.cholesky(CauchyGP().covariance(5))
        >>> prior = PaddedMultivariateNormal(scale_tril, torch.tensor([5, 2]))
        >>> prior.batch_shape, prior.event_shape
        (torch.Size([2]), torch.Size([5]))
        >>> z = torch.zeros(2, 5)
        >>> z[1, 2:] = torch.nan
        >>> bool(prior.log_prob(z).isfinite().all())
        True
    """

    arg_constraints = {
        "scale_tril": constraints.lower_cholesky,
        "lengths": constraints.nonnegative_integer,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, scale_tril: Tensor, lengths: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        scale_tril = checks.as_tensor("scale_tril", scale_tril, "(*batch, T, T)", finite=True)
        if not scale_tril.is_floating_point():
            scale_tril = scale_tril.to(torch.get_default_dtype())
        size = scale_tril.shape[-1]
        if scale_tril.shape[-2] != size:
            raise ValueError(
                f"scale_tril must have the shape (*batch, T, T), got {tuple(scale_tril.shape)}"
            )
        if lengths is None:
            lengths = torch.tensor(size)
        lengths = checks.as_tensor("lengths", lengths, "(*batch)", kind="integers", like=scale_tril)
        if bool((lengths < 0).any()) or bool((lengths > size).any()):
            raise ValueError(
                f"lengths must be from 0 to {size}, got from {int(lengths.min())} to "
                f"{int(lengths.max())}"
            )
        try:
            batch = torch.broadcast_shapes(scale_tril.shape[:-2], lengths.shape)
        except RuntimeError:
            raise ValueError(
                f"lengths must broadcast with scale_tril of shape {tuple(scale_tril.shape)}, got "
                f"the shape {tuple(lengths.shape)}"
            ) from None
        # One factor for all of a batch stays one, and products with it are one product.
        self._factor, self.lengths = scale_tril, lengths.expand(batch)
        super().__init__(batch, torch.Size([size]), validate_args=validate_args)

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance. **Shape:** ``(*batch, T, T)``."""
        return self._factor.expand(*self.batch_shape, *self._factor.shape[-2:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape."""
        shape = torch.Size(batch_shape)
        return expanded(self, _instance, shape, lengths=self.lengths.expand(shape))

    @property
    def mean(self) -> Tensor:
        """Zero. **Shape:** ``(*batch, T)``."""
        return self._factor.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances of all elements. **Shape:** ``(*batch, T)``."""
        return self._factor.square().sum(-1).expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients with respect to the factor. **Shape:** ``(*sample, *batch, T)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.normal(self._factor.new_zeros(shape), 1.0)
        return (noise.unsqueeze(-2) @ self._factor.mT).squeeze(-2)

    def log_prob_by_step(self, value: Tensor) -> Tensor:
        """Log density of each element given those before it; the sum is the log density.

        :param Tensor value: **Shape:** ``(*batch, T)``.
        :returns: log densities, zero for elements that do not count. **Shape:** ``(*batch, T)``.
        """
        size = self.event_shape[0]
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"value must have the shape (*batch, {size}), got {tuple(value.shape)}"
            )
        counts = torch.arange(size, device=self.lengths.device) < self.lengths[..., None]
        value = torch.where(counts, value, 0.0)
        if self._validate_args:
            self._validate_sample(value)
        identity = torch.eye(size, dtype=self._factor.dtype, device=self._factor.device)
        inverse = torch.linalg.solve_triangular(self._factor, identity, upper=False)
        whitened = (value.unsqueeze(-2) @ inverse.mT).squeeze(-2)
        log_diagonal = self._factor.diagonal(dim1=-2, dim2=-1).log()
        return torch.where(counts, -0.5 * whitened.square() - log_diagonal - _HALF_LOG_2PI, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the elements that count. **Shape:** ``(*batch)``."""
        return self.log_prob_by_step(value).sum(-1)


class CauchyGP:
    r"""A Gaussian process over the steps of a sequence, with a Cauchy kernel [1].

    .. math:: k(i, j) = \frac{\text{scale}}{1 + (i - j)^2 / \text{length}^2} +
              \text{jitter} \cdot [i = j].

    Its power-law tail correlates steps at several length scales at once, while a squared
    exponential kernel has only one.

    :param float length: the length scale, in steps.
    :param float scale: the variance without the jitter.
    :param float jitter: variance added to each step.
    :raises ValueError: if numbers are out of range.

    [1] V. Fortuin, D. Baranchuk, G. Rätsch, S. Mandt (2020),
    GP-VAE: deep probabilistic time series imputation.

    Example::

        >>> gram = CauchyGP(length=7.0, scale=1.005, jitter=1e-3).covariance(15)
        >>> [round(float(gram[0, lag]), 4) for lag in (0, 7, 14)]
        [1.006, 0.5025, 0.201]
    """

    def __init__(self, length: float = 7.0, scale: float = 1.005, jitter: float = 1e-3) -> None:
        self.length = checks.number("length", length, above=0)
        self.scale = checks.number("scale", scale, above=0)
        self.jitter = checks.number("jitter", jitter, above=0)

    def __repr__(self) -> str:
        return f"CauchyGP(length={self.length:g}, scale={self.scale:g}, jitter={self.jitter:g})"

    def covariance(self, num_steps: int) -> Tensor:
        """Covariance matrix of the steps, in PyTorch's default type.

        :param int num_steps: number of steps.
        :returns: **Shape:** ``(num_steps, num_steps)``.
        """
        return self._covariance(num_steps, torch.get_default_dtype())

    def _covariance(self, num_steps: int, dtype: torch.dtype) -> Tensor:
        """Covariances of steps, computed in a type."""
        steps = torch.arange(float(checks.integer("num_steps", num_steps, 1)), dtype=dtype)
        lag = (steps[:, None] - steps) / self.length
        return self.scale / (1.0 + lag.square()) + self.jitter * torch.eye(num_steps, dtype=dtype)

    def prior(
        self, lengths: Tensor, num_steps: int, dtype: torch.dtype | None = None
    ) -> PaddedMultivariateNormal:
        """Return the process over the steps of padded sequences.

        :param Tensor lengths: the number of steps of each sequence that count. **Shape:**
            ``(*batch)``.
        :param int num_steps: the number of steps, including padding.
        :param torch.dtype dtype: the type of the values; by default PyTorch's default type. The
            Cholesky factor is computed in float64.
        :raises ValueError: if the jitter is too small for a Cholesky factor to exist.
        """
        checks.optional(checks.instance, "dtype", dtype, torch.dtype, "a torch.dtype or None")
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        lengths = checks.as_tensor("lengths", lengths, "(*batch)", kind="integers")
        factor, failed = torch.linalg.cholesky_ex(self._covariance(num_steps, torch.float64))
        if bool(failed):
            raise ValueError(
                f"jitter must be larger, got {self.jitter:g}: the covariance of {num_steps} steps "
                f"with length {self.length:g} has no Cholesky factor"
            )
        return PaddedMultivariateNormal(factor.to(lengths.device, dtype), lengths)
