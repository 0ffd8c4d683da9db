r"""Gradient descent on the loss of a coreset, from many starts at once.

The loss is the mean negative log likelihood of the pseudo rows, with their weights,

.. math:: l(z) = - \sum_j w_j \log p(u_j | \theta(z)) \Big/ \sum_j w_j ,

at unconstrained latent values :math:`z`. The prior is no part of it.
"""

from torch import Tensor

from pyro_ext._checks import as_tensor, check_instance, check_integer, check_number
from pyro_ext.inference.pseudocoresets.posteriors import Coreset, WeightedPosterior

__all__ = ["descend", "descent_snapshots", "unrolled_descent"]


def descend(
    posterior: WeightedPosterior,
    coreset: Coreset,
    start: Tensor,
    num_steps: int,
    learning_rate: float | Tensor,
) -> Tensor:
    """Take steps of gradient descent; no gradient flows through them.

    :param posterior: knows the model; that of a guide is ``guide.posterior``.
    :param Coreset coreset: pseudo rows and weights.
    :param Tensor start: unconstrained latent values. **Shape:** ``(num_starts, size)``.
    :param int num_steps: number of steps.
    :param learning_rate: a number or a scalar tensor.
    :returns: where they end. **Shape:** as the start.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> guide = AutoPseudocoreset(model, torch.ones(99), size=9, seed=0)
        >>> descend(guide.posterior, guide.coreset(), torch.zeros(2, 1), 2, 0.5)
        tensor([[0.7500],
                [0.7500]])
    """
    return descent_snapshots(posterior, coreset, start, num_steps, learning_rate, num_steps)[-1]


def descent_snapshots(
    posterior: WeightedPosterior,
    coreset: Coreset,
    start: Tensor,
    num_steps: int,
    learning_rate: float | Tensor,
    thinning: int = 1,
) -> list[Tensor]:
    """Take steps of gradient descent as :func:`descend` does, and keep points on the way.

    :param posterior: knows the model.
    :param Coreset coreset: pseudo rows and weights.
    :param Tensor start: unconstrained latent values. **Shape:** ``(num_starts, size)``.
    :param int num_steps: number of steps.
    :param learning_rate: a number or a scalar tensor.
    :param int thinning: number of steps from one point that is kept to the next.
    :returns: the points, without the start. **Shape:** as the start, each.
    :raises ValueError: for numbers out of range.
    """
    _check(posterior, coreset, start, learning_rate)
    num_steps = check_integer("num_steps", num_steps, 1)
    thinning = check_integer("thinning", thinning, 1)
    weights = coreset.weights.detach()
    rows = [row.detach() for row in coreset.rows]
    position = start.detach()
    if isinstance(learning_rate, Tensor):
        learning_rate = learning_rate.detach()
    rate = learning_rate / weights.sum()
    kept = []
    for number in range(1, num_steps + 1):
        position = position - rate * posterior.likelihood.gradient(position, weights, rows)
        if number % thinning == 0:
            kept.append(position)
    return kept


def unrolled_descent(
    posterior: WeightedPosterior,
    coreset: Coreset,
    start: Tensor,
    num_steps: int,
    learning_rate: float | Tensor,
) -> Tensor:
    """Take steps of gradient descent that can be differentiated.

    Its numbers are those of :func:`descend`. Gradients flow into rows, weights, start and learning
    rate, through second derivatives of the model. The memory grows with the number of steps.

    :param posterior: knows the model.
    :param Coreset coreset: pseudo rows and weights.
    :param Tensor start: unconstrained latent values. **Shape:** ``(num_starts, size)``.
    :param int num_steps: number of steps.
    :param learning_rate: a number or a scalar tensor.
    :returns: where they end. **Shape:** as the start.
    :raises ValueError: for a number of steps out of range.
    """
    _check(posterior, coreset, start, learning_rate)
    num_steps = check_integer("num_steps", num_steps, 1)
    rate = learning_rate / coreset.weights.sum()
    position = start
    for _ in range(num_steps):
        gradient = posterior.likelihood.differentiable_gradient(position, *coreset[::-1])
        position = position - rate * gradient
    return position


def _check(
    posterior: WeightedPosterior, coreset: Coreset, start: Tensor, learning_rate: float | Tensor
) -> None:
    """Check what all of them take."""
    check_instance("posterior", posterior, WeightedPosterior, "the posterior of a guide")
    check_instance("coreset", coreset, Coreset, "a Coreset, as coreset() of a guide gives it")
    check_instance("start", start, Tensor, "a tensor")
    as_tensor("start", start, f"(*batch, {posterior.layout.size})")
    if not isinstance(learning_rate, Tensor):
        check_number("learning_rate", learning_rate, least=0)
