"""Random measures as a primitive in Pyro models."""

from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import positive_exp
from pyro_ext.distributions.supports import Exponential
from pyro_ext.random_measures.arrivals import (
    DeterministicArrivals,
    GammaArrivals,
    arrival_process,
    check_family,
)
from pyro_ext.random_measures.finite import JumpDistribution
from pyro_ext.random_measures.levy_measure import ArrivalFamily
from pyro_ext.random_measures.measure import CompletelyRandomMeasure
from pyro_ext.random_measures.probability_measures import NormalizedRandomMeasure, PitmanYor
from pyro_ext.random_measures.series import named_family


class DiscreteMeasure(NamedTuple):
    """Atoms and weights of a random measure in a model.

    :param Tensor atoms: the atoms. **Shape:** ``(num_atoms, *event)``.
    :param Tensor weights: their weights, which sum to one if the measure is normalized.
        **Shape:** ``(num_atoms,)``.
    :param Tensor lost_mass: the expected mass that a truncated series leaves out; zero for other
        approximations.
    """

    atoms: Tensor
    weights: Tensor
    lost_mass: Tensor


@dataclass(frozen=True)
class FiniteApproximation:
    """Approximation by independent weights from the ``finite`` method of a measure.

    :param int num_atoms: the number of atoms.
    :param str rule: how to choose the level, as in ``finite``.
    :param family: a family of arrival times. Default: one for which the distribution has a closed
        form, if there is one.
    """

    num_atoms: int
    rule: str = "exact"
    family: ArrivalFamily | None = None

    def __post_init__(self) -> None:
        checks.integer("num_atoms", self.num_atoms, 1)
        checks.choice("rule", self.rule, ("exact", "group"))
        if self.family is not None:
            check_family("family", self.family)


@dataclass(frozen=True)
class TruncatedSeries:
    """Approximation by the first weights of a series, as in the ``series`` method of a measure.

    :param int num_atoms: the number of atoms.
    :param method: ``"size_biased"``, ``"inverse_levy"`` or gamma arrival times. For a Pitman-Yor
        process it must be ``"size_biased"``, which means stick-breaking.
    """

    num_atoms: int
    method: str | ArrivalFamily = "size_biased"

    def __post_init__(self) -> None:
        checks.integer("num_atoms", self.num_atoms, 1)
        if not isinstance(self.method, str):
            check_family("method", self.method)


Truncation = FiniteApproximation | TruncatedSeries


def random_measure(
    name: str,
    measure: CompletelyRandomMeasure | NormalizedRandomMeasure | PitmanYor,
    base: TorchDistribution,
    truncation: Truncation | int = 50,
) -> DiscreteMeasure:
    """Sample a random measure in a Pyro model, truncated to finitely many atoms.

    This is a primitive like ``pyro.sample``. It makes ordinary sites, which work with all guides
    and kernels:

    - ``name_atoms``, with the distribution ``base``;
    - for a finite approximation, ``name_jumps``, its weights;
    - for a series, ``name_gaps``, the gaps of the unit-rate Poisson process that is turned into
      arrival times, and ``name_jumps``, the weights, unless the gaps determine them as for
      ``"inverse_levy"``;
    - for a Pitman-Yor process, ``name_sticks``, one fewer than there are atoms;
    - ``name_weights``, which is deterministic.

    The plate over the atoms is ``name_plate``.

    :param str name: prefix of the names of the sites.
    :param measure: a completely random measure, whose weights are not normalized, or a random
        probability measure. Its parameters may be latent.
    :param base: the distribution of an atom, without a batch shape.
    :param truncation: a :class:`FiniteApproximation` or a :class:`TruncatedSeries`. An integer is
        the number of atoms of a finite approximation or, for a Pitman-Yor process, of
        stick-breaking.
    :returns: the atoms, their weights and the lost mass.
    :raises ValueError: for a truncation that the measure does not support.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> def model(data):
        ...     measure = GeneralizedGammaProcess(2.0, 0.4, 1.0).normalize()
        ...     mixture = random_measure("G", measure, dist.Normal(0.0, 3.0), truncation=20)
        ...     components = dist.Normal(mixture.atoms, 1.0)
        ...     with pyro.plate("data", len(data)):
        ...         weights = dist.Categorical(mixture.weights)
        ...         pyro.sample("x", dist.MixtureSameFamily(weights, components), obs=data)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3))
        >>> trace.nodes["G_weights"]["value"].shape
        torch.Size([20])
    """
    kinds = (CompletelyRandomMeasure, NormalizedRandomMeasure, PitmanYor)
    checks.instance("measure", measure, kinds, "a random measure, normalized or not")
    checks.instance("base", base, TorchDistributionMixin, "a distribution")
    checks.instance("name", name, str, "a string")
    if measure.batch_shape and measure.batch_shape[-1] != 1:
        raise ValueError(
            "measure must have no batch shape in a model, except (..., 1) for draws that are "
            f"evaluated together, got {tuple(measure.batch_shape)}"
        )
    if base.batch_shape:
        raise ValueError(f"base must have no batch shape, got {tuple(base.batch_shape)}")
    if not isinstance(truncation, FiniteApproximation | TruncatedSeries):
        number = checks.integer("truncation", truncation, 1)
        is_series = isinstance(measure, PitmanYor)
        truncation = TruncatedSeries(number) if is_series else FiniteApproximation(number)
    number = truncation.num_atoms
    plate = pyro.plate(f"{name}_plate", number)
    with plate:
        atoms = pyro.sample(f"{name}_atoms", base)
    if plate.dim != -1:
        raise ValueError(f"random_measure {name!r} must be called outside of all plates")
    if isinstance(measure, PitmanYor):
        weights, lost = _broken_stick(measure, truncation, name)
    elif isinstance(measure, NormalizedRandomMeasure):
        jumps, lost = _jumps(measure.measure, truncation, name, plate)
        # A softmax, since sums of the largest numbers overflow.
        weights, lost = jumps.log().softmax(-1), lost / jumps.sum(-1)
    else:
        weights, lost = _jumps(measure, truncation, name, plate)
    weights = pyro.deterministic(f"{name}_weights", weights)
    return DiscreteMeasure(atoms, weights, lost)


def _jumps(
    measure: CompletelyRandomMeasure, truncation: Truncation, name: str, plate: pyro.plate
) -> tuple[Tensor, Tensor]:
    """Weights of a measure, and the mass that is lost."""
    if isinstance(truncation, FiniteApproximation):
        distribution = measure.finite(truncation.num_atoms, truncation.rule, truncation.family)
        with plate:
            jumps = pyro.sample(f"{name}_jumps", distribution)
        return jumps, torch.zeros_like(jumps[..., 0])
    family = named_family(measure, truncation.method)
    if not isinstance(family, DeterministicArrivals | GammaArrivals):
        raise ValueError(
            "method of a TruncatedSeries in a model must be 'size_biased', 'inverse_levy' or gamma "
            f"arrival times, got {truncation.method!r}"
        )
    process = arrival_process(measure, family)
    rate = measure._filled(1.0).to(measure.dtype)
    with plate:
        gaps = pyro.sample(f"{name}_gaps", Exponential(rate))
        points = gaps.double().cumsum(-1).clamp(max=torch.finfo(torch.float64).max)
        log_times = process.log_time(points.log())
        if isinstance(family, DeterministicArrivals):
            jumps = positive_exp(process.sample_weight(log_times).to(measure.dtype))
        else:
            distribution = JumpDistribution(measure, family.concentration, positive_exp(log_times))
            jumps = pyro.sample(f"{name}_jumps", distribution)
    lost = process.log_later(log_times[..., -1:], 1.0).squeeze(-1)
    return jumps, lost.exp().to(measure.dtype)


def _broken_stick(
    distribution: PitmanYor, truncation: Truncation, name: str
) -> tuple[Tensor, Tensor]:
    """Weights of a Pitman-Yor process, of which the last takes what is left of the stick."""
    if not isinstance(truncation, TruncatedSeries) or truncation.method != "size_biased":
        raise ValueError(
            f"truncation of a {type(distribution).__name__} must be a size-biased TruncatedSeries, "
            f"which means stick-breaking, got {truncation!r}"
        )
    number = truncation.num_atoms
    if distribution.batch_shape:
        distribution = PitmanYor(
            *(value.squeeze(-1) for value in (distribution.discount, distribution.concentration))
        )
    lost = torch.zeros_like(distribution.discount)
    if number == 1:
        return torch.ones_like(distribution.discount)[..., None], lost
    with pyro.plate(f"{name}_stick_plate", number - 1):
        sticks = pyro.sample(f"{name}_sticks", distribution.sticks(number - 1))
    log_left = torch.log1p(-sticks).cumsum(-1)
    first = torch.zeros_like(log_left[..., :1])
    left = torch.cat([first, log_left], -1).exp()
    broken = torch.cat([sticks, torch.ones_like(sticks[..., :1])], -1)
    return broken * left, lost
