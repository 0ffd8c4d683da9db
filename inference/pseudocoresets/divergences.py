"""Divergences between the posterior of the data and that of a coreset, as losses for SVI.

Estimators from draws have the gradients of divergences but not their values, which require the
normalizing constants of both posteriors.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import pyro
from pyro.infer import ELBO
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.pseudocoresets.auto_pseudocoreset import AutoPseudocoreset
from pyro_ext.inference.pseudocoresets.gaussians import Gaussian, gaussian_kl, gaussian_wasserstein
from pyro_ext.inference.pseudocoresets.surrogates import GaussianSurrogate, Surrogate


class Divergence(ELBO):
    """Base class of losses of a coreset: divergences between its posterior and that of the data.

    Use it like an ELBO in :class:`~pyro.infer.SVI`, with the model and data of the guide, or pass
    it to :meth:`~pyro_ext.inference.AutoPseudocoreset.fit`.

    :param Surrogate surrogate: represents the posteriors; by default a
        :class:`~pyro_ext.inference.GaussianSurrogate`.
    :raises TypeError: if ``surrogate`` has another type.
    :raises ValueError: for a surrogate that does not support the divergence.
    """

    def __init__(self, surrogate: Surrogate | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        checks.optional(checks.instance, "surrogate", surrogate, Surrogate, "a Surrogate")
        self.surrogate = surrogate or GaussianSurrogate()
        self.surrogate.check(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.surrogate!r})"

    @abstractmethod
    def of_gaussians(self, data: Gaussian, coreset: Gaussian) -> Tensor:
        """Divergence of two Gaussians, differentiable in the second."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss, differentiable in the parameters of the guide.

        :param model: the model of the guide.
        :param AutoPseudocoreset guide: the coreset.
        :param args: the data of the guide, or nothing.
        :param kwargs: the data by keyword, or nothing.
        :returns: a scalar.
        :raises TypeError: for another guide.
        :raises ValueError: for another model or other data than those of the guide.
        """
        checks.instance("guide", guide, AutoPseudocoreset, "an AutoPseudocoreset")
        guide.check_model(model, args, kwargs)
        return self.surrogate.compare(self, guide, guide.coreset())

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Compute the loss as a number; arguments as for ``differentiable_loss``."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs).detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Compute the loss as a number, and the gradients of the parameters of the guide.

        The parameters are added to Pyro's parameter store, like those of all guides.

        :raises ValueError: if the store holds parameters of another guide with the same names.
        """
        checks.instance("guide", guide, AutoPseudocoreset, "an AutoPseudocoreset")
        store = pyro.get_param_store()
        for name, parameter in guide.named_pyro_parameters():
            if name in store and store._params[name] is not parameter:
                raise ValueError(
                    f"guide has the parameter {name!r}, and the parameter store holds that of "
                    "another guide by this name: call pyro.clear_param_store() between them"
                )
        with guide.pyro_parameters():
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def _get_trace(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("the divergence needs no traces")


class ForwardKL(Divergence):
    r"""Divergence of the coreset posterior from the data's, :math:`KL(\pi_x \,\|\, \pi_u)` [1].

    It makes the coreset posterior cover that of the data.

    :param Surrogate surrogate: represents the posteriors.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> x = torch.linspace(0.0, 4.0, 99)
        >>> guide = AutoPseudocoreset(model, x, size=9, weights="scaled", seed=0)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=ForwardKL())
        >>> losses = [svi.step(x) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    def of_gaussians(self, data: Gaussian, coreset: Gaussian) -> Tensor:
        """Divergence of two Gaussians, exactly."""
        return gaussian_kl(*data, *coreset)

    def of_draws(
        self,
        coreset_at_data: Callable[[], Tensor],
        coreset_at_own: Callable[[], Tensor],
        data_at_own: Callable[[], Tensor],
    ) -> Tensor:
        """A loss with an unbiased gradient, that of ``forward_kl_loss``."""
        return forward_kl_loss(coreset_at_data(), coreset_at_own())


class ReverseKL(Divergence):
    r"""Divergence of the data's posterior from the coreset's, :math:`KL(\pi_u \,\|\, \pi_x)` [1].

    It keeps the coreset posterior within the mass of the data's posterior.

    :param Surrogate surrogate: represents the posteriors.

    [1] D. Manousakas, Z. Xu, C. Mascolo, T. Campbell (2020), Bayesian pseudocoresets.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, MCMCSurrogate
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> guide = AutoPseudocoreset(model, torch.linspace(0.0, 4.0, 99), size=9, seed=0)
        >>> divergence = ReverseKL(MCMCSurrogate(num_samples=30, batch_size=40))
        >>> len(guide.fit(divergence, 3, seed=0, progress=False).losses)
        3
    """

    def of_gaussians(self, data: Gaussian, coreset: Gaussian) -> Tensor:
        """Divergence of two Gaussians, exactly."""
        return gaussian_kl(*coreset, *data)

    def of_draws(
        self,
        coreset_at_data: Callable[[], Tensor],
        coreset_at_own: Callable[[], Tensor],
        data_at_own: Callable[[], Tensor],
    ) -> Tensor:
        """A loss with an unbiased gradient, that of ``reverse_kl_loss``."""
        return reverse_kl_loss(data_at_own(), coreset_at_own())


class Wasserstein(Divergence):
    r"""Squared Wasserstein distance of order two between the Gaussians of both posteriors [1].

    The distance is in unconstrained space. It has no gradient estimator from draws. For
    trajectories it is the distance between their ends, which is that of Gaussians around the ends
    with the same covariance.

    :param Surrogate surrogate: represents the posteriors; it must give Gaussians or trajectories.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    Example::

        >>> Wasserstein(GaussianSurrogate()).of_gaussians(
        ...     Gaussian(torch.zeros(2), torch.eye(2)), Gaussian(torch.ones(2), torch.eye(2)))
        tensor(2.)
    """

    def of_gaussians(self, data: Gaussian, coreset: Gaussian) -> Tensor:
        """Squared distance of two Gaussians, exactly."""
        return gaussian_wasserstein(*data, *coreset)

    def of_trajectory_ends(self, start: Tensor, data: Tensor, coreset: Tensor) -> Tensor:
        r"""Squared distance between the ends, relative to the distance that the data's end moved.

        .. math:: | z_u - z_x |^2 / | z_0 - z_x |^2

        The denominator gives every stage of training the same influence.
        """
        return (coreset - data).square().sum() / (start - data).square().sum()


def forward_kl_loss(at_data_draws: Tensor, at_coreset_draws: Tensor) -> Tensor:
    r"""A loss with the gradient of the divergence of the coreset posterior from the data's [1].

    With the log likelihood of the coreset, :math:`F_u(\theta) = \sum_j w_j f(u_j, \theta)`,

    .. math:: \nabla_u KL(\pi_x \| \pi_u)
              = - E_{\pi_x} \nabla_u F_u(\theta) + E_{\pi_u} \nabla_u F_u(\theta) ,

    of which the gradient of this loss is an unbiased estimate. No gradient flows into the draws.

    :param Tensor at_data_draws: :math:`F_u` at draws from :math:`\pi_x`. **Shape:** ``(draws,)``.
    :param Tensor at_coreset_draws: :math:`F_u` at draws from :math:`\pi_u`, whose number may
        differ. **Shape:** ``(draws,)``.
    :returns: a scalar.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    Example::

        >>> forward_kl_loss(torch.tensor([-2.0, -4.0]), torch.tensor([-1.0, -1.0]))
        tensor(2.)
    """
    at_data_draws = checks.as_tensor("at_data_draws", at_data_draws, "(draws,)")
    at_coreset_draws = checks.as_tensor("at_coreset_draws", at_coreset_draws, "(draws,)")
    return at_coreset_draws.mean() - at_data_draws.mean()


def reverse_kl_loss(data_log_likelihood: Tensor, coreset_log_likelihood: Tensor) -> Tensor:
    r"""A loss with the gradient of the divergence of the data's posterior from the coreset's [1].

    With the log likelihoods of the data and of the coreset, :math:`F_x` and :math:`F_u`,

    .. math:: \nabla_u KL(\pi_u \| \pi_x)
              = - \operatorname{Cov}_{\pi_u} \left( \nabla_u F_u, F_x - F_u \right) ,

    of which the gradient of this loss is an unbiased estimate: the covariance over draws, with the
    number of draws minus one in the denominator. For a single draw it is zero. Constants in the log
    likelihoods change nothing.

    :param Tensor data_log_likelihood: :math:`F_x` at draws from :math:`\pi_u`, or an unbiased
        estimate of it up to a constant, for example from a minibatch. **Shape:** ``(draws,)``.
    :param Tensor coreset_log_likelihood: :math:`F_u` at the same draws. **Shape:** ``(draws,)``.
    :returns: a scalar.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    Example::

        >>> reverse_kl_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
        tensor(-0.5000)
    """
    coreset_log_likelihood = checks.as_tensor(
        "coreset_log_likelihood", coreset_log_likelihood, "(draws,)"
    )
    data_log_likelihood = checks.as_tensor(
        "data_log_likelihood", data_log_likelihood, f"({len(coreset_log_likelihood)},)"
    )
    number = len(coreset_log_likelihood)
    excess = (data_log_likelihood - coreset_log_likelihood).detach()
    centered = excess - excess.mean()
    return -(coreset_log_likelihood * centered).sum() / max(number - 1, 1)
