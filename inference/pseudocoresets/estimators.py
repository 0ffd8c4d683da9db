"""Losses whose gradient in a coreset is that of a divergence, from draws of both posteriors.

Their values are no divergences: those need the normalizing constants of both posteriors.
"""

from torch import Tensor

from pyro_ext._checks import as_tensor

__all__ = ["forward_kl_loss", "reverse_kl_loss"]


def forward_kl_loss(at_data_draws: Tensor, at_coreset_draws: Tensor) -> Tensor:
    r"""A loss with the gradient of the divergence of the coreset posterior from the data's [1].

    With the log likelihood of the coreset, :math:`F_u(\theta) = \sum_j w_j f(u_j, \theta)`,

    .. math:: \nabla_u KL(\pi_x \| \pi_u)
              = - E_{\pi_x} \nabla_u F_u(\theta) + E_{\pi_u} \nabla_u F_u(\theta) ,

    of which the gradient of this loss is an unbiased estimate. No gradient flows into the draws.

    :param Tensor at_data_draws: :math:`F_u` at draws from :math:`\pi_x`. **Shape:** ``(draws,)``.
    :param Tensor at_coreset_draws: :math:`F_u` at draws from :math:`\pi_u`. **Shape:**
        ``(draws,)``, which may be other ones.
    :returns: a scalar.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    Example::

        >>> forward_kl_loss(torch.tensor([-2.0, -4.0]), torch.tensor([-1.0, -1.0]))
        tensor(2.)
    """
    at_data_draws = as_tensor("at_data_draws", at_data_draws, "(draws,)")
    at_coreset_draws = as_tensor("at_coreset_draws", at_coreset_draws, "(draws,)")
    return at_coreset_draws.mean() - at_data_draws.mean()


def reverse_kl_loss(data_log_likelihood: Tensor, coreset_log_likelihood: Tensor) -> Tensor:
    r"""A loss with the gradient of the divergence of the data's posterior from the coreset's [1].

    With the log likelihoods of the data and of the coreset, :math:`F_x` and :math:`F_u`,

    .. math:: \nabla_u KL(\pi_u \| \pi_x)
              = - \operatorname{Cov}_{\pi_u} \left( \nabla_u F_u, F_x - F_u \right) ,

    of which the gradient of this loss is an unbiased estimate: the covariance of the draws, with
    their number less one. Of one draw it is zero. Constants in the log likelihoods change nothing.

    :param Tensor data_log_likelihood: :math:`F_x` at draws from :math:`\pi_u`, or an unbiased
        estimate of it up to a constant, such as that of a minibatch. **Shape:** ``(draws,)``.
    :param Tensor coreset_log_likelihood: :math:`F_u` at the same draws. **Shape:** ``(draws,)``.
    :returns: a scalar.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    Example::

        >>> reverse_kl_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
        tensor(-0.5000)
    """
    coreset_log_likelihood = as_tensor("coreset_log_likelihood", coreset_log_likelihood, "(draws,)")
    data_log_likelihood = as_tensor(
        "data_log_likelihood", data_log_likelihood, f"({len(coreset_log_likelihood)},)"
    )
    number = len(coreset_log_likelihood)
    excess = (data_log_likelihood - coreset_log_likelihood).detach()
    centred = excess - excess.mean()
    return -(coreset_log_likelihood * centred).sum() / max(number - 1, 1)
