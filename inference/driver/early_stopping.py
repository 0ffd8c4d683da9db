"""Stopping a run as soon as what it is for is known well enough."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.posterior.convergence import effective_sample_size

_MIN_DRAWS = 4


@dataclass(frozen=True)
class EarlyStopping:
    """Stops a run once R-hat and effective sample size of named quantities are good enough.

    The run looks at its draws at multiples of the interval only, so that where it stops follows
    from its seed, however it is interrupted, continued or spread over machines.

    :param Sequence names: sites or quantities to look at, also as shell-style patterns; by default
        all that are recorded.
    :param float r_hat: largest split R-hat that any element of them may have.
    :param float effective_sample_size: smallest effective sample size, over all chains together,
        that any element may have.
    :param int interval: number of draws of each chain between two looks, at least 4.
    :raises ValueError: for numbers out of range.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_ext.inference import MCMC, SGLD
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> mcmc = MCMC(
        ...     SGLD(model, step_size=0.5), num_samples=5_000, num_chains=4, seed=0,
        ...     early_stopping=EarlyStopping(), progress=False,
        ... )
        >>> mcmc.run().num_draws
        400
    """

    names: Sequence[str] = ("*",)
    r_hat: float = 1.01
    effective_sample_size: float = 400.0
    interval: int = 100

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not isinstance(self.names, Sequence) or not self.names:
            raise ValueError(f"names must be a list of names, got {self.names!r:.80}")
        checks.sequence("names", self.names, "a list of names", 1, str)
        checks.number("r_hat", self.r_hat, above=1)
        checks.number("effective_sample_size", self.effective_sample_size, above=0)
        checks.integer("interval", self.interval, _MIN_DRAWS)

    def pick(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Choose the quantities to look at.

        :param Mapping samples: draws by name.
        :raises ValueError: for a name that fits none of them.
        """
        for pattern in self.names:
            if not any(fnmatchcase(name, pattern) for name in samples):
                raise ValueError(
                    f"early_stopping names {pattern!r}, which fits none of {sorted(samples)}"
                )
        return {
            name: value
            for name, value in samples.items()
            if any(fnmatchcase(name, pattern) for pattern in self.names)
        }

    def is_satisfied(self, samples: Mapping[str, Tensor]) -> bool:
        """Tell whether the draws suffice.

        :param Mapping samples: draws of the quantities.
            **Shape:** ``(num_chains, num_draws, *event)`` each.
        """
        return all(self._suffices(value) for value in samples.values())

    def _suffices(self, draws: Tensor) -> bool:
        draws = draws.double()
        r_hat = float(split_gelman_rubin(draws).max())
        size = float(effective_sample_size(draws).min())
        return math.isfinite(r_hat) and r_hat <= self.r_hat and size >= self.effective_sample_size
