"""Surrogates that represent the two posteriors that a divergence compares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.transitions import hamiltonian_transitions
from pyro_ext.inference.mcmc import MCMC
from pyro_ext.inference.optimization import BatchLBFGS
from pyro_ext.inference.pseudocoresets.coreset_rows import CoresetModel
from pyro_ext.inference.pseudocoresets.gaussians import (
    Gaussian,
    coreset_gaussian,
    coreset_mode,
    data_gaussian,
)
from pyro_ext.inference.pseudocoresets.posteriors import (
    Coreset,
    CoresetGuide,
    Posteriors,
    WeightedPosterior,
)
from pyro_ext.random import fresh_seed

_FIRST_TRANSITIONS = 30


class Surrogate(ABC):
    """Base class of surrogates for the posteriors of the data and of a coreset.

    A subclass gives a divergence two Gaussians, draws, or ends of trajectories.
    """

    @abstractmethod
    def compare(self, divergence: Any, guide: CoresetGuide, coreset: Coreset) -> Tensor:
        """Return a loss with the gradient of the divergence in the coreset.

        :param Divergence divergence: has ``of_gaussians``, ``of_draws`` or ``of_trajectory_ends``.
        :param AutoPseudocoreset guide: has the model and the data.
        :param Coreset coreset: pseudo rows and weights.
        :returns: a scalar.
        """

    def check(self, divergence: object) -> None:
        """Raise if a divergence cannot be computed from this surrogate.

        :param divergence: the divergence.
        """
        del divergence


class GaussianSurrogate(Surrogate):
    """Gaussians at the modes of both posteriors, with the curvatures there.

    They are exact if the model is linear with Gaussian priors and Gaussian noise of known scale,
    and Laplace approximations in unconstrained space otherwise. The Gaussian of the coreset is a
    function of its rows and weights, with exact gradients. If there are several modes, both
    Gaussians are at the same one.

    Work grows with the square of the number of latent values: use this for hundreds of them. In
    single precision, gradients lose precision if latent values are strongly correlated; at a
    condition number of 10,000, some are off by 5%.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, Wasserstein
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> guide = AutoPseudocoreset(model, torch.linspace(0.0, 4.0, 99), size=9, seed=0)
        >>> Wasserstein(GaussianSurrogate()).loss(model, guide) > 0
        True
    """

    def __init__(self) -> None:
        self._of_data: WeakKeyDictionary[Posteriors, Gaussian] = WeakKeyDictionary()
        self._modes: WeakKeyDictionary[Posteriors, Tensor] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return "GaussianSurrogate()"

    def data_gaussian(self, guide: Posteriors) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior of the data, in unconstrained space.

        :param AutoPseudocoreset guide: has the model and the data.
        :raises ValueError: if the posterior is not Gaussian near its mode.
        """
        if guide not in self._of_data:
            start = guide.posterior.layout.flatten(guide.posterior.potential.init(seed=0))[0]
            self._of_data[guide] = data_gaussian(guide.data, start, BatchLBFGS())
        return self._of_data[guide]

    def coreset_gaussian(self, guide: Any, coreset: Coreset | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior of a coreset, differentiable in it.

        :param AutoPseudocoreset guide: has the model.
        :param Coreset coreset: rows and weights; by default those of the guide.
        """
        if coreset is None:
            coreset = guide.coreset()
        start = self._modes.get(guide)
        if start is None:
            start = self.data_gaussian(guide)[0]
        mode, factor = coreset_mode(guide.posterior, coreset, start, BatchLBFGS())
        result = coreset_gaussian(guide.posterior, coreset, mode, factor)
        if bool(result.mean.isfinite().all()):
            self._modes[guide] = result.mean.detach()
        return result

    def compare(self, divergence: Any, guide: CoresetGuide, coreset: Coreset) -> Tensor:
        """Compute the divergence of the two Gaussians; see ``Surrogate.compare``."""
        data = Gaussian(*self.data_gaussian(guide))
        loss: Tensor = divergence.of_gaussians(
            data, Gaussian(*self.coreset_gaussian(guide, coreset))
        )
        return loss


class MCMCSurrogate(Surrogate):
    """Draws from both posteriors by Markov chains.

    Draws from the data's posterior are made once, at the first step. Draws from the coreset's
    posterior are made anew at each step, by chains that start where the previous step left them. No
    gradient flows through draws: the gradient of the loss is the paper's estimator. The value of
    the loss is not a divergence.

    :param kernel: a function that makes a kernel from a model, such as ``NUTS`` itself or
        ``partial(SGLD, step_size=1e-3)``. It runs under :class:`~pyro_ext.inference.MCMC`, anew at
        each step. By default, Hamiltonian Monte Carlo runs as many chains as there are draws side
        by side, in the coordinates of Laplace approximations, which is much faster.
    :param int num_samples: number of draws from each posterior.
    :param int warmup_steps: number of steps of a kernel before its draws, in every run; without a
        kernel, the number of transitions of each chain at a step.
    :param int batch_size: number of observations in the minibatch that a reverse divergence uses at
        each step; by default all of them. The estimate is unbiased in any case.
    :param Mapping data_samples: existing draws from the posterior of the data, constrained.
        **Shape:** ``(draws, *event)`` each.
    :raises TypeError: for a kernel that cannot be called.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> guide = AutoPseudocoreset(model, torch.linspace(0.0, 4.0, 99), size=9, seed=0)
        >>> loss = ForwardKL(MCMCSurrogate(num_samples=20))
        >>> len(guide.fit(loss, 3, seed=0, progress=False).losses)
        3
    """

    def __init__(
        self,
        kernel: Callable[[Callable[..., Any]], MCMCKernel] | None = None,
        num_samples: int = 64,
        *,
        warmup_steps: int = 3,
        batch_size: int | None = None,
        data_samples: Mapping[str, Tensor] | None = None,
    ) -> None:
        checks.optional(
            checks.function, "kernel", kernel, "a function that makes a kernel of a model"
        )
        self.kernel = kernel
        self.num_samples = checks.integer("num_samples", num_samples, 2)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, 1)
        self.batch_size = checks.optional(checks.integer, "batch_size", batch_size, 1)
        self.data_samples = checks.optional(checks.tensors, "data_samples", data_samples)
        self._gaussians = GaussianSurrogate()
        self._of_data: WeakKeyDictionary[Posteriors, Tensor] = WeakKeyDictionary()
        self._of_coreset: WeakKeyDictionary[Posteriors, Tensor] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"MCMCSurrogate({self.kernel!r}, {self.num_samples})"

    def check(self, divergence: object) -> None:
        """Raise for a divergence without an estimator from draws; see ``Surrogate.check``."""
        if getattr(divergence, "of_draws", None) is None:
            raise ValueError(
                f"surrogate must be a GaussianSurrogate or a TrajectorySurrogate for "
                f"{type(divergence).__name__}, whose gradient has no estimator from draws, got "
                f"{self!r}"
            )

    def data_draws(self, guide: Posteriors) -> Tensor:
        """Draws from the posterior of the data, unconstrained. **Shape:** ``(draws, size)``."""
        if guide in self._of_data:
            return self._of_data[guide]
        posterior = guide.posterior
        if self.data_samples is not None:
            draws = posterior.layout.flatten(posterior.potential.unconstrain(self.data_samples))
        elif self.kernel is not None:
            warmup = max(self.warmup_steps, self.num_samples)
            model = posterior.model
            args, kwargs = model.arguments.fill(guide.data.rows)
            draws = self._run(guide, model.model, warmup, None, *args, **kwargs)
        else:
            mean, covariance = self._gaussians.data_gaussian(guide)
            factor = torch.linalg.cholesky(covariance)
            start = mean + torch.randn(self.num_samples, len(mean)).to(mean) @ factor.mT
            draws, _ = hamiltonian_transitions(
                start, guide.data.value_and_gradient, mean, factor, _FIRST_TRANSITIONS
            )
        self._of_data[guide] = draws.detach()
        return self._of_data[guide]

    def coreset_draws(self, guide: Posteriors, coreset: Coreset) -> Tensor:
        """Fresh draws from the posterior of a coreset, unconstrained, shaped as those of data."""
        before = self._of_coreset.get(guide)
        posterior = guide.posterior
        fixed = coreset.detached()
        if self.kernel is not None:
            warmup = self.warmup_steps
            if before is None:
                before, warmup = self.data_draws(guide), max(warmup, self.num_samples)
            model = CoresetModel(posterior.model, fixed.rows, fixed.weights)
            draws = self._run(guide, model, warmup, before[-1:])
        else:
            with torch.no_grad():
                mean, covariance = self._gaussians.coreset_gaussian(guide, fixed)
            factor, info = torch.linalg.cholesky_ex(covariance)
            if int(info) or not bool(factor.isfinite().all()):
                mean, covariance = self._gaussians.data_gaussian(guide)
                factor = torch.linalg.cholesky(covariance)
            count = self.warmup_steps
            if before is None:
                before = mean + torch.randn(self.num_samples, len(mean)).to(mean) @ factor.mT
                count = max(count, _FIRST_TRANSITIONS)
            draws, _ = hamiltonian_transitions(
                before, lambda flat: posterior.value_and_gradient(flat, fixed), mean, factor, count
            )
        self._of_coreset[guide] = draws.detach()
        return self._of_coreset[guide]

    def compare(self, divergence: Any, guide: CoresetGuide, coreset: Coreset) -> Tensor:
        """Compute the loss of the draws; see ``Surrogate.compare``."""
        own = self.coreset_draws(guide, coreset)
        posterior: WeightedPosterior = guide.posterior
        loss: Tensor = divergence.of_draws(
            lambda: posterior.log_likelihood(self.data_draws(guide), coreset),
            lambda: posterior.log_likelihood(own, coreset),
            lambda: guide.data.log_likelihood(own, self.batch_size),
        )
        return loss

    def _run(
        self,
        guide: Posteriors,
        model: Callable[..., Any],
        warmup_steps: int,
        start: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Draws of a kernel on a model, unconstrained."""
        assert self.kernel is not None
        potential = guide.posterior.potential
        layout = guide.posterior.layout
        initial = None if start is None else potential.constrain(layout.unflatten(start))
        mcmc = MCMC(
            self.kernel(model),
            self.num_samples,
            warmup_steps,
            initial_params=initial,
            seed=fresh_seed(None),
            progress=False,
        )
        # Without the warnings of a run at its end: the draws of one step are meant to be few.
        super(MCMC, mcmc).run(*args, **kwargs)
        return layout.flatten(potential.unconstrain(mcmc.get_samples()))
