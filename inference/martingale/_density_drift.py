"""How far predictive resampling moves a density."""

from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._checks import as_tensor, check_instance

__all__ = ["density_drift"]


def density_drift(population: Any, law: Any, points: Tensor) -> Tensor:
    r"""How far populations have moved from the law of the data.

    The mean over points of :math:`|p_N(y) - p_n(y)|`, at each of them exact. It settles as
    predictive resampling converges.

    :param population: laws of populations, with the batch shape ``(num_draws,)``.
    :param law: that of the data.
    :param Tensor points: **Shape:** ``(num_points, *event)``.
    :returns: **Shape:** ``(num_draws,)``.

    Example::

        >>> wide = dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> density_drift(wide, dist.Normal(0.0, 1.0), torch.zeros(1))
        tensor([0.0000, 0.1995])
    """
    for argument, value in (("population", population), ("law", law)):
        check_instance(argument, value, TorchDistributionMixin, "a distribution")
    points = as_tensor("points", points, "(num_points, ...)", finite=True)
    there: Tensor = population.log_prob(points[:, None]).exp()
    here: Tensor = law.log_prob(points).exp()[:, None]
    return (there - here).abs().mean(0)
