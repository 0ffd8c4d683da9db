"""Checks of a distribution against itself, quadrature and finite differences.

Each function checks one aspect, and :func:`check_distribution` calls all that apply. A constructor
``make`` takes ``parameters`` by name, and checks its arguments if Pyro's validation is enabled.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from scipy import stats
from torch import Tensor
from torch.distributions import constraints, kl_divergence, transform_to

from pyro_ext.random import seeded
from pyro_ext.testing._comparisons import (
    PROBABILITIES,
    Atoms,
    Make,
    Parameters,
    close,
    has_cdf,
    moment,
    quantiles_of,
    refusal,
    require,
    same_shape,
    supports,
)
from pyro_ext.testing._distribution_gradients import check_finite, check_gradients, check_rsample
from pyro_ext.testing._quadrature import Quadrature
from pyro_ext.testing.potential import check_potential

__all__ = [
    "check_arguments",
    "check_density",
    "check_distribution",
    "check_divergence",
    "check_draws",
    "check_dtypes",
    "check_finite",
    "check_gradients",
    "check_in_model",
    "check_rsample",
    "check_shapes",
]

Expectations = Sequence[tuple[Callable[[Tensor], Tensor], float]]

_CANDIDATES = (-torch.inf, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0, torch.inf, torch.nan)
_FALSE_ALARMS = 1e-5  # fraction of seeds for which what is correct fails
_NUM_CDF = 1_000


def check_distribution(
    make: Make,
    parameters: Parameters,
    *,
    points: Tensor | None = None,
    atoms: Atoms | None = None,
    jumps: Atoms | None = None,
    num_draws: int = 10_000,
) -> None:
    """Check everything about a distribution that one setting of its parameters allows.

    Call :func:`check_in_model`, which records graphs, and :func:`check_finite` and
    :func:`check_divergence`, which need more than one setting, yourself.

    :param make: the class of the distribution, or a function that creates one from the parameters
        by name.
    :param Mapping parameters: tensors in float64, without a batch shape.
    :param Tensor points: for a discrete distribution, values that have all but a negligible part of
        the probability. **Shape:** ``(num_points, *event)``.
    :param atoms: a function of the distribution that returns the values at which ``log_prob`` is
        the logarithm of a probability instead of a density.
    :param jumps: a function of the distribution that returns the values at which its density jumps.
    :param int num_draws: number of draws for comparisons, which fail for one seed in 100,000.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> parameters = {"loc": torch.tensor(0.3), "scale": torch.tensor(2.0)}
        >>> parameters = {name: value.double() for name, value in parameters.items()}
        >>> check_distribution(dist.Normal, parameters)
        >>> class Wrong(dist.Normal):
        ...     def log_prob(self, value):
        ...         return super().log_prob(value) + 0.01
        >>> check_distribution(Wrong, parameters)
        Traceback (most recent call last):
        AssertionError: the density of Wrong integrates to 1.01005, not 1 (tolerance 1e-08)
    """
    distribution = make(**parameters)
    check_shapes(make, parameters)
    check_dtypes(make, parameters)
    check_arguments(make, parameters)
    if points is not None or not distribution.event_shape:
        check_density(distribution, points=points, atoms=atoms, jumps=jumps)
    check_draws(distribution, points=points, atoms=atoms, num_draws=num_draws)
    check_gradients(make, parameters, atoms=atoms)
    if distribution.has_rsample:
        num_draws = min(num_draws, 4_000)
        check_rsample(make, parameters, atoms=atoms, jumps=jumps, num_draws=num_draws)


def check_shapes(make: Make, parameters: Parameters) -> None:
    """Check shapes with batches and expansion, support and seeds of draws, and copies.

    :param make: as in :func:`check_distribution`.
    :param parameters: as in :func:`check_distribution`.
    """
    single = make(**parameters)
    name = type(single).__name__
    event, batch = single.event_shape, torch.Size([3, 2] if len(parameters) > 1 else [3, 1])
    first, *others = parameters
    wide = {first: parameters[first].expand((3, 1, *parameters[first].shape))}
    wide |= {other: parameters[other].expand((2, *parameters[other].shape)) for other in others}
    for distribution, shape in ((make(**wide), batch), (single.expand((4, *batch)), (4, *batch))):
        require(type(distribution) is type(single), f"expand of {name} returns another class")
        same_shape(f"batch shape of {name}", distribution.batch_shape, shape)
        same_shape(f"event shape of {name}", distribution.event_shape, event)
        with seeded(0):
            draws = distribution.sample((5,))
        same_shape(f"draws of {name}", draws.shape, (5, *shape, *event))
        require(not draws.requires_grad, f"sample of {name} has a gradient")
        is_inside = supports(distribution, draws)
        require(bool(is_inside.all()), f"draws of {name} are outside of its support")
        with seeded(0):
            again = distribution.sample((5,))
        require(torch.equal(again, draws), f"draws of {name} differ with the same seed")
        if distribution.has_rsample:
            same_shape(f"rsample of {name}", distribution.rsample().shape, (*shape, *event))
        value = distribution.log_prob(draws)
        same_shape(f"log_prob of {name}", value.shape, (5, *shape))
        close(f"log_prob of {name} in a batch and alone", value, single.log_prob(draws), 1e-9)
        for part in ("mean", "variance"):
            if (found := moment(distribution, part)) is not None:
                same_shape(f"{part} of {name}", found.shape, (*shape, *event))
                own = getattr(single, part).expand_as(found)
                close(f"{part} of {name} in a batch and alone", found, own, 1e-9)
        if has_cdf(distribution):
            same_shape(f"cdf of {name}", distribution.cdf(draws).shape, (5, *shape))
        for parameter, constraint in distribution.arg_constraints.items():
            if not constraints.is_dependent(constraint):
                is_valid = constraint.check(getattr(distribution, parameter))
                require(bool(is_valid.all()), f"{parameter} of {name} is out of its constraint")
        for other in (
            copy.deepcopy(distribution),
            cloudpickle.loads(cloudpickle.dumps(distribution)),
        ):
            require(torch.equal(other.log_prob(draws), value), f"a copy of {name} is another")


def check_dtypes(make: Make, parameters: Parameters, *, tolerance: float = 2e-5) -> None:
    """Check the types of results, and that results in float32 are close to those in float64.

    :param make: as in :func:`check_distribution`.
    :param parameters: as in :func:`check_distribution`.
    :param float tolerance: relative and absolute tolerance of log densities and probabilities.
    """
    narrow = make(**{name: value.float() for name, value in parameters.items()})
    wide = make(**{name: value.float().double() for name, value in parameters.items()})
    name = type(wide).__name__
    with seeded(1):
        draws = narrow.sample((200,))
    require(draws.dtype == torch.float32, f"draws of {name} in float32 are {draws.dtype}")
    require(bool(supports(narrow, draws).all()), f"draws of {name} in float32 are outside")
    functions = {"log_prob": (narrow.log_prob, wide.log_prob)}
    if has_cdf(wide):
        functions["cdf"] = (narrow.cdf, wide.cdf)
    for part, (single, double) in functions.items():
        value, exact = single(draws), double(draws.double())
        for found, dtype in ((value, torch.float32), (exact, torch.float64)):
            require(found.dtype == dtype, f"{part} of {name} is {found.dtype}, not {dtype}")
        close(f"{part} of {name} in float32 and in float64", value.double(), exact, tolerance)
    for part in ("mean", "variance"):
        if (own := moment(narrow, part)) is not None:
            require(own.dtype == torch.float32, f"{part} of {name} in float32 is {own.dtype}")


def check_arguments(make: Make, parameters: Parameters) -> None:
    """Check that errors name invalid parameters, and that values outside the support raise errors.

    Without validation, nothing may raise.

    :param make: as in :func:`check_distribution`.
    :param parameters: as in :func:`check_distribution`.
    """
    distribution = make(**parameters)
    name = type(distribution).__name__
    for parameter, value in parameters.items():
        constraint = distribution.arg_constraints.get(parameter, constraints.dependent)
        if constraints.is_dependent(constraint):
            continue
        for candidate in _CANDIDATES:
            bad = torch.full_like(value, candidate)
            if not bool(constraint.check(bad).all()):
                with pyro.validation_enabled(True):
                    message = refusal(partial(make, **{**parameters, parameter: bad}))
                what = f"{parameter} = {candidate:g} of {name}"
                require(message is not None, f"{what} is accepted")
                require(parameter in str(message), f"{what} is refused without a name: {message}")
    with seeded(0):
        draw = distribution.sample()
    for candidate in _CANDIDATES:
        outside = torch.full_like(draw, candidate)
        if not bool(supports(distribution, outside).all()):
            with pyro.validation_enabled(True):
                refused = refusal(partial(make(**parameters).log_prob, outside))
            require(refused is not None, f"{name} accepts {candidate:g} outside of its support")
            with pyro.validation_enabled(False):
                make(**parameters).log_prob(outside)


def check_density(
    distribution: TorchDistribution,
    *,
    points: Tensor | None = None,
    atoms: Atoms | None = None,
    jumps: Atoms | None = None,
    expectations: Expectations = (),
    tail_mass: float | None = None,
    tolerance: float = 1e-8,
    cdf_tolerance: float = 1e-8,
) -> None:
    """Check that a density integrates to one, to its distribution function, and to its moments.

    The quadrature is adaptive. Its coordinate turns power laws into exponential functions, which
    extrapolate the integrand beyond the range of numbers. Probabilities of a discrete distribution
    are summed.

    :param TorchDistribution distribution: a univariate or discrete distribution, without a batch
        shape.
    :param Tensor points: as in :func:`check_distribution`.
    :param atoms: as in :func:`check_distribution`.
    :param jumps: as in :func:`check_distribution`.
    :param expectations: pairs of a bounded function of values and its exact expectation.
    :param float tail_mass: the probability of values above ``exp(300)``, if the distribution is not
        yet a power law there.
    :param float tolerance: tolerance of all integrals, relative to their size.
    :param float cdf_tolerance: tolerance of the distribution function.

    Example::

        >>> check_density(dist.StudentT(torch.tensor(2.5).double()))
    """
    name = type(distribution).__name__
    moments = {what: moment(distribution, what) for what in ("mean", "variance")}
    if points is not None:
        mass = distribution.log_prob(points).exp()
        one = torch.ones_like(mass[0])
        close(f"sum of the probabilities of {name} and 1", mass.sum(), one, tolerance)
        mass = mass.reshape(-1, *[1] * len(distribution.event_shape))
        mean = (mass * points).sum(0)
        sums = {"mean": mean, "variance": (mass * (points - mean).square()).sum(0)}
        for what, exact in moments.items():
            if exact is not None:
                close(f"{what} of {name} and its sum over points", exact, sums[what], tolerance)
        return
    terms: list[tuple[str, Callable[[Tensor], Tensor], float]]
    terms = [("integrates to", torch.ones_like, 1.0)]
    first, second = moments["mean"], moments["variance"]
    if first is not None and bool(first.isfinite()):
        size = abs(first.item()) or 1.0
        terms.append((f"has, over {size:g}, a mean of", lambda x: x / size, first.item() / size))
    if first is not None and second is not None and bool(second.isfinite()):
        center, root = first, second.sqrt()
        over = f"has, over {second.item():g}, a variance of"
        terms.append((over, lambda x: ((x - center) / root).square(), 1.0))
    for number, (function, value) in enumerate(expectations):
        terms.append((f"has an expectation {number} of", function, value))
    functions = [function for _, function, _ in terms]
    quadrature = Quadrature(distribution, functions, atoms, jumps)
    if tail_mass is not None:
        end = torch.full((), torch.finfo(torch.float64).max ** 0.4, dtype=torch.float64)
        quadrature.panels.after = torch.stack([function(end) * tail_mass for function in functions])
    for (what, _, value), found in zip(terms, quadrature.expectations().tolist(), strict=True):
        require(
            abs(found - value) <= tolerance * max(1.0, abs(value)),
            f"the density of {name} {what} {found:.6g}, not {value:.6g} (tolerance {tolerance:g})",
        )
    if has_cdf(distribution):
        x, below = quadrature.probabilities()
        what = f"cdf of {name} and integral of its density"
        close(what, distribution.cdf(x), below, cdf_tolerance)
        if (quantiles := quantiles_of(distribution)) is not None:
            fraction = distribution.cdf(quantiles)
            exact = torch.tensor(PROBABILITIES).to(fraction)
            is_left_out = (quantiles.abs() < 1e-290) & (quantiles != 0)  # next to the least number
            if atoms is not None:
                is_left_out |= torch.isin(quantiles, atoms(distribution))
            exact = torch.where(is_left_out, fraction, exact)
            close(f"cdf of {name} at its quantiles and their probabilities", fraction, exact, 1e-8)


def check_draws(
    distribution: TorchDistribution,
    *,
    points: Tensor | None = None,
    atoms: Atoms | None = None,
    expectations: Expectations = (),
    num_draws: int = 10_000,
    seed: int = 0,
) -> None:
    """Compare draws with probabilities or the distribution function, or with mean and variance.

    This is a chi-square test if ``points`` are given, and a Kolmogorov-Smirnov test if there is a
    ``cdf``. Otherwise it compares the moments of each element. It compares ``expectations`` too.

    :param TorchDistribution distribution: a distribution without a batch shape.
    :param Tensor points: as in :func:`check_distribution`.
    :param atoms: as in :func:`check_distribution`.
    :param expectations: pairs of a function of values and its exact expectation.
    :param int num_draws: number of draws.
    :param int seed: seed of the draws.
    """
    name = type(distribution).__name__
    with seeded(seed):
        draws = distribution.sample((num_draws,))
    require(bool(supports(distribution, draws).all()), f"draws of {name} leave the support")
    comparisons: list[tuple[str, float]] = []

    def compare(what: str, terms: Tensor, exact: Any) -> None:
        error = terms.std(0) / num_draws**0.5
        excess = ((terms.mean(0) - exact).abs() - 1e-9).clamp(min=0.0)
        z = torch.where(excess > 0, excess / error, 0.0)
        entries = zip(z.flatten().tolist(), torch.as_tensor(exact).flatten().tolist(), strict=True)
        comparisons.extend(
            (f"{what} of {size:.6g} (by {score:.3g} standard errors)", 2 * stats.norm.sf(score))
            for score, size in entries
        )

    for number, (function, exact) in enumerate(expectations):
        compare(f"expectation {number}", function(draws), exact)
    if points is not None:
        expected = distribution.log_prob(points).exp() * num_draws
        event = draws.dim() - 1
        axes = tuple(range(-event, 0))
        equal = draws.unsqueeze(1) == points
        observed = (equal.all(axes) if axes else equal).sum(0).double()
        is_common = expected > 5.0
        rest = torch.stack(
            [num_draws - observed[is_common].sum(), num_draws - expected[is_common].sum()]
        )
        observed, expected = observed[is_common], expected[is_common]
        if rest[1] > 5.0:
            observed, expected = torch.cat([observed, rest[:1]]), torch.cat([expected, rest[1:]])
        p = stats.chisquare(observed.numpy(), expected.numpy(), sum_check=False).pvalue
        comparisons.append(("the probabilities", float(p)))
    elif has_cdf(distribution):
        step = max(num_draws // _NUM_CDF, 1)
        ordered = draws.sort().values[step // 2 :: step]
        fraction = (torch.arange(len(ordered)).to(draws) * step + step // 2 + 0.5) / num_draws
        limits = torch.finfo(draws.dtype)  # draws beyond the numbers of the type are at its ends
        is_inside = (ordered.abs() > 2 * limits.tiny) & (ordered.abs() < limits.max / 2)
        if atoms is not None:
            for atom in atoms(distribution).reshape(-1):
                count, chance = int((draws == atom).sum()), distribution.log_prob(atom).exp().item()
                p = stats.binomtest(count, num_draws, chance).pvalue
                comparisons.append((f"the probability of {atom:g}", float(p)))
            is_inside &= ~torch.isin(ordered, atoms(distribution))
        distance = float((distribution.cdf(ordered[is_inside]) - fraction[is_inside]).abs().max())
        p = stats.kstwobign.sf(distance * np.sqrt(num_draws))
        comparisons.append((f"the cdf (distance {distance:.3g})", float(p)))
    elif (mean := moment(distribution, "mean")) is not None and bool(mean.isfinite().all()):
        compare("the mean", draws, mean)
        variance = moment(distribution, "variance")
        if variance is not None and bool(variance.isfinite().all()):
            compare("the variance", (draws - mean).square(), variance)
    for what, p in comparisons:
        is_likely = p > _FALSE_ALARMS / len(comparisons)
        require(is_likely, f"draws of {name} do not have {what}: p = {p:.2g}")


def check_divergence(
    p: TorchDistribution, q: TorchDistribution, *, tolerance: float = 1e-7
) -> None:
    """Compare a registered Kullback-Leibler divergence with quadrature.

    :param TorchDistribution p: a univariate distribution.
    :param TorchDistribution q: a univariate distribution.
    :param float tolerance: relative tolerance.
    """
    quadrature = Quadrature(p, [lambda x: p.log_prob(x) - q.log_prob(x)])
    name = f"divergence of {type(p).__name__} from {type(q).__name__} and its integral"
    close(name, kl_divergence(p, q), quadrature.expectations()[0], tolerance)


def check_in_model(make: Make, parameters: Parameters, *, scale: float = 0.05) -> None:
    """Check the potential of a model with three draws under a plate and latent parameters.

    The parameters are spread around the given ones, in the unconstrained space that maps to their
    constraints. :func:`~pyro_ext.testing.potential.check_potential` checks the potential.

    :param make: as in :func:`check_distribution`.
    :param parameters: as in :func:`check_distribution`.
    :param float scale: scale of the spread.
    """
    constraint_of = make(**parameters).arg_constraints

    def model() -> None:
        moved = {}
        for name, value in parameters.items():
            constraint = constraint_of.get(name, constraints.dependent)
            is_dependent = constraints.is_dependent(constraint)
            transform = transform_to(constraints.real if is_dependent else constraint)
            center = transform.inv(value)
            normal = pyro.distributions.Normal(center, scale).to_event(center.dim())
            moved[name] = transform(pyro.sample(f"latent {name}", normal))
        with pyro.plate("draws", 3):
            pyro.sample("value", make(**moved))

    check_potential(model, num_chains=2)
