r"""Metropolis within Gibbs for sizes of clusters.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pyro.infer import HMC

from pyro_ext._checks import check_number
from pyro_ext.inference.composite import Gibbs
from pyro_ext.inference.random_walk import RandomWalk

__all__ = ["metropolis_within_gibbs"]

_TILTS = "cluster_tilts"


def metropolis_within_gibbs(
    model: Callable[..., Any],
    sites: Sequence[str],
    *,
    scale: float = 0.01,
    step_size: float = 0.05,
    num_steps: int = 30,
) -> Gibbs:
    r"""Kernel of [1]: a step of HMC for the tilts of all clusters, then random walks.

    A random walk moves one hyperparameter or the auxiliary variable at a time. Where the model has
    no tilts of clusters, there is no step of HMC. In [1] the variables are the same but for the
    auxiliary one, whose prior there counts twice.

    :param model: a method of a :class:`~pyro_ext.models.nonparametric.FrequencyModel`,
        ``with_cluster_tilts`` or ``with_tilt``.
    :param sites: names of all of its sites.
    :param float scale: standard deviation of the random walks. That of [1], the default, is for
        thousands of clusters.
    :param float step_size: of the leapfrog steps.
    :param int num_steps: how many of them.
    :returns: the kernel, for :class:`~pyro_ext.inference.MCMC`, which needs initial parameters.
    :raises ValueError: for numbers out of range.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.models.nonparametric import FrequencyModel, beta_prime_prior
        >>> model = FrequencyModel(beta_prime_prior()).with_cluster_tilts
        >>> names = ["mass", "discount", "excess", "tilt", "cluster_tilts"]
        >>> start = {name: torch.full((1,), 0.5) for name in names[:4]}
        >>> start["cluster_tilts"] = torch.full((1, 5), 0.5)
        >>> kernel = metropolis_within_gibbs(model, names, scale=0.3)
        >>> mcmc = MCMC(kernel, 4, initial_params=start, progress=False, seed=0)
        >>> mcmc.run(torch.tensor([[1, 3], [2, 1], [9, 1]])).get_samples()["excess"].shape
        torch.Size([4])
    """
    check_number("step_size", step_size, above=0)
    blocks: list[tuple[Any, Sequence[str]]] = []
    if _TILTS in sites:
        hmc = HMC(
            model,
            step_size=step_size,
            num_steps=num_steps,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        blocks.append((hmc, [_TILTS]))
    walks = [name for name in sites if name != _TILTS]
    return Gibbs([*blocks, (RandomWalk(scale), walks)], model=model)
