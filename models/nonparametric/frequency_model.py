"""Models of cluster sizes alone, by their frequency counts, and priors on their measures.

A prior is a Pyro model without arguments that returns a random probability measure, for
:class:`FrequencyModel` and anything else that takes a prior over partitions. A common scale of all
weights has no effect once they are normalized, so cutoff, rate and tilt of the measures are set to
one.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.models.nonparametric.nrm_mixture import (
    Process,
    check_prior,
    check_sites,
    process_of,
    sites_of,
)
from pyro_ext.random import seeded
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    FrequencyCounts,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    NormalizedRandomMeasure,
    ParetoMixtureProcess,
    PitmanYor,
    log_num_partitions,
)
from pyro_ext.random_measures.cluster_counts import as_table


def generalized_bfry_prior() -> NormalizedRandomMeasure:
    r"""Prior of a normalized generalized BFRY process, with two power laws [2].

    The index at infinity exceeds the discount: it is ``discount + excess``. As in [2], the sites
    are ``"mass"``, :math:`\eta`, log-normal with median 150 and a factor of :math:`e^3`;
    ``"discount"``, :math:`\sigma`, uniform; and ``"excess"``, :math:`\tau - \sigma`, log-normal
    with median 1 and a factor of :math:`e`.

    Example::

        >>> generalized_bfry_prior().index_at_zero < 1.0
        tensor(True)
    """
    mass, discount, excess = _hyperparameters("mass", "discount", "excess")
    return GeneralizedBFRYProcess(mass, discount, discount + excess).normalize()


def beta_prime_prior() -> NormalizedRandomMeasure:
    """Prior of a normalized beta prime process, with two power laws [2].

    The sites are as in :func:`generalized_bfry_prior`.

    Example::

        >>> round(abs(float(beta_prime_prior().log_eppf([1]))), 9)
        0.0
    """
    mass, discount, excess = _hyperparameters("mass", "discount", "excess")
    return BetaPrimeProcess(mass, discount, discount + excess).normalize()


def pareto_mixture_prior() -> NormalizedRandomMeasure:
    r"""Prior of a normalized generalized gamma process with additional Pareto weights [2].

    The sites are those of :func:`generalized_bfry_prior`, plus ``"pareto_mass"``, :math:`\beta`,
    distributed as the mass, and ``"pareto_scale"``, :math:`w_0`, distributed as the excess.

    Example::

        >>> round(abs(float(pareto_mixture_prior().log_eppf([1]))), 9)
        0.0
    """
    names = ("mass", "discount", "excess", "pareto_mass", "pareto_scale")
    mass, discount, excess, pareto_mass, scale = _hyperparameters(*names)
    measure = ParetoMixtureProcess(mass, discount, 1.0, pareto_mass, scale, discount + excess)
    return measure.normalize()


def generalized_gamma_prior() -> NormalizedRandomMeasure:
    """Prior of a normalized generalized gamma process, with one power law.

    The sites are ``"mass"`` and ``"discount"``, as in :func:`generalized_bfry_prior`.

    Example::

        >>> round(abs(float(generalized_gamma_prior().log_eppf([1]))), 9)
        0.0
    """
    mass, discount = _hyperparameters("mass", "discount")
    return GeneralizedGammaProcess(mass, discount, 1.0).normalize()


def pitman_yor_prior() -> PitmanYor:
    r"""Prior of a Pitman-Yor process, with one power law.

    The sites are ``"concentration"``, :math:`\theta`, distributed as a mass, and
    ``"discount"``, as in :func:`generalized_bfry_prior`.

    Example::

        >>> round(abs(float(pitman_yor_prior().log_eppf([1]))), 9)
        0.0
    """
    concentration, discount = _hyperparameters("concentration", "discount")
    return PitmanYor(discount, concentration)


def _hyperparameters(*names: str) -> list[Tensor]:
    """Draw the sites of a prior."""
    laws = {"discount": dist.Beta(1.0, 1.0)}
    laws |= dict.fromkeys(("excess", "pareto_scale"), dist.LogNormal(0.0, 1.0))
    return [pyro.sample(name, laws.get(name, dist.LogNormal(5.0, 3.0))) for name in names]


_SITE = "counts"
_NUM_NEWTON_STEPS = 2


class FrequencyModel:
    r"""Sizes of the clusters in samples of a normalized random measure [2].

    It comes in two forms. Each is a Pyro model, and both have the same posterior of the sites of
    the prior:

    * The model itself, ``model(table)``, has an observed site ``"counts"``. The likelihood of a
      normalized measure is an integral over an auxiliary variable, computed by quadrature. Use it
      for small data, to draw data, and for calibration.
    * :meth:`with_scaled_tilt` has the auxiliary variable as a site, in units that depend on the
      measure. It is about a hundred times faster; use it for sampling:
      ``MCMC(IndependenceMetropolis(model.with_scaled_tilt), 100, num_chains=64)``.

    :param prior: a normalized measure, a Pitman-Yor process, a Dirichlet process, or a Pyro model
        without arguments that returns one of these; its sample sites are the hyperparameters.
    :raises TypeError: if the prior is none of these.

    Example::

        >>> from pyro_ext.models.nonparametric import generalized_bfry_prior
        >>> from pyro_ext.potential import Potential
        >>> from pyro_ext.random_measures import frequency_table
        >>> model = FrequencyModel(generalized_bfry_prior)
        >>> table = frequency_table([40, 9, 3, 2, 1, 1, 1])
        >>> potential = Potential(model.with_scaled_tilt, table)
        >>> sorted(potential.sites)
        ['discount', 'excess', 'mass', 'scaled_tilt']
    """

    def __init__(self, prior: Process | Callable[[], Process]) -> None:
        self.prior = check_prior(prior)

    def __repr__(self) -> str:
        return f"FrequencyModel({self.prior!r})"

    def __call__(self, table: Tensor | None = None, *, num_samples: int | None = None) -> Tensor:
        """Run the model, on data or to draw some.

        :param Tensor table: sizes and numbers of clusters. **Shape:** ``(num_rows, 2)``.
        :param int num_samples: how many samples there are; it is read off a table, but not while
            the model is recorded as a graph.
        :returns: the table.
        :raises TypeError: where the prior returns something else than it should.
        :raises ValueError: where neither argument is given, or they do not fit.
        """
        if table is None and num_samples is None:
            raise ValueError("table or num_samples must be given, got neither")
        process = process_of(self.prior)
        num_rows = None if table is None else len(_check_table(table))
        number = int(table.prod(-1).sum()) if num_samples is None else num_samples  # type: ignore[union-attr]
        value: Tensor = pyro.sample(_SITE, FrequencyCounts(process, number, num_rows), obs=table)
        return value

    def with_scaled_tilt(self, table: Tensor) -> None:
        r"""Run the model on data, with the auxiliary variable in units that depend on the measure.

        The site is ``"scaled_tilt"``, :math:`r = u / u_0`, where :math:`u_0` is approximately the
        tilt at which the expected number of clusters is the observed one. It depends little on the
        hyperparameters, whereas :math:`u` varies over many powers of ten with them. ``"tilt"`` is a
        deterministic site. A Pitman-Yor process has neither site, because its likelihood has a
        closed form.

        :param Tensor table: sizes and numbers of clusters. **Shape:** ``(num_rows, 2)``.
        :raises TypeError: if the prior returns something else.
        """
        table = _check_table(table)
        process, (sizes, numbers) = process_of(self.prior), table.unbind(-1)
        if isinstance(process, PitmanYor):
            return _count(table, _log_closed(process, table), process)
        log_unit = _log_unit(process, numbers.sum().double().log())
        log_tilt = log_unit + _positive("scaled_tilt").double().log()
        tilt = pyro.deterministic("tilt", log_tilt.exp())
        log_density = process.log_joint(sizes, tilt, numbers) + log_unit
        return _count(table, log_density, process)

    def process(self, values: Mapping[str, Tensor] | None = None) -> Process:
        """Return the process of a partition, at given hyperparameters or at draws of them.

        :param dict values: values of the sites of the prior by name, each a scalar; others are
            ignored.
        :raises TypeError: if the prior returns something else.

        Example::

            >>> from pyro_ext.models.nonparametric import pitman_yor_prior
            >>> values = {"concentration": torch.tensor(2.0), "discount": torch.tensor(0.5)}
            >>> FrequencyModel(pitman_yor_prior).process(values)
            PitmanYor(discount=0.5, concentration=2.0)
        """
        with poutine.block(), poutine.condition(data=dict(values or {})):
            return process_of(self.prior)

    def predictive(
        self,
        samples: Mapping[str, Tensor],
        num_samples: int,
        *,
        num_replicates: int = 1,
        seed: int | None = None,
    ) -> list[Tensor]:
        """Draw the tables of new partitions, of other samples from a new random measure.

        :param dict samples: draws of the sites of the prior. **Shape:** ``(num_draws,)`` each;
            others are ignored.
        :param int num_samples: number of samples in a new partition.
        :param int num_replicates: number of new partitions for each draw; several from one draw
            take little time.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        :returns: ``num_draws * num_replicates`` tables, with those of a draw together.
        :raises ValueError: if a site is missing, or has another shape.

        Example::

            >>> from pyro_ext.models.nonparametric import pitman_yor_prior
            >>> samples = {"concentration": torch.rand(3), "discount": torch.rand(3)}
            >>> tables = FrequencyModel(pitman_yor_prior).predictive(samples, 50)
            >>> [int(table.prod(-1).sum()) for table in tables]
            [50, 50, 50]
        """
        names = self._sites()
        samples = checks.tensors("samples", samples) if names else {}
        check_sites("samples", samples, names)
        checks.integer("num_replicates", num_replicates, 1)
        num_draws = _num_draws({name: samples[name] for name in names})
        tables: list[Tensor] = []
        with seeded(seed):
            for draw in range(num_draws):
                process = self.process({name: samples[name][draw] for name in names})
                drawn = FrequencyCounts(process, num_samples).sample((num_replicates,))
                tables += [table[table[:, 1] > 0] for table in drawn]
        return tables

    def _sites(self) -> list[str]:
        """Names of the hyperparameters."""
        with seeded(0):  # what is drawn to see the sites is not used
            return [] if isinstance(self.prior, Process) else sites_of(self.prior)


def _check_table(table: Tensor) -> Tensor:
    return checks.as_tensor("table", as_table("table", table), "(num_rows, 2)")


def _num_draws(samples: Mapping[str, Tensor]) -> int:
    """Number of draws of all sites, one where there is no site."""
    number = None
    for name, value in samples.items():
        number = len(value) if number is None and value.dim() == 1 else number
        if value.dim() != 1 or len(value) != number:
            wanted = "(num_draws,)" if number is None else f"({number},)"
            raise ValueError(
                f"samples[{name!r}] must have the shape {wanted}, without an axis of chains and as "
                f"long as others, got {tuple(value.shape)}"
            )
    return 1 if number is None else number


def _count(table: Tensor, log_density: Tensor, process: Process) -> None:
    """Add the log density of a table, given that of one of its partitions."""
    # In float64: both terms are in the millions, and nearly cancel.
    total = log_density + log_num_partitions(table)
    pyro.factor(_SITE, total.to(process.index_at_zero.dtype))


def _log_closed(process: PitmanYor, table: Tensor) -> Tensor:
    """Log density of a partition, in float64."""
    wide = PitmanYor(process.discount.double(), process.concentration.double())
    return wide.log_eppf(*table.unbind(-1))


def _positive(name: str) -> Tensor:
    """A positive site whose density is in the joint one and nowhere else."""
    shape = torch.Size()
    value: Tensor = pyro.sample(name, dist.ImproperUniform(constraints.positive, shape, shape))
    return value


def _log_unit(process: NormalizedRandomMeasure, log_number: Tensor) -> Tensor:
    """About the logarithm of the tilt at which the Laplace exponent is a number."""
    measure = process.measure
    # A zero that goes with the hyperparameters, so that it can be vectorized over them.
    point = 0.0 * process.index_at_zero.double()
    for _ in range(_NUM_NEWTON_STEPS):
        log_exponent = measure._log_exponent(point)
        log_slope = point + measure._log_moment(torch.ones_like(point), point) - log_exponent
        point = point + (log_number - log_exponent) * (-log_slope).exp()
    return point
