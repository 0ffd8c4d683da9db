"""Every distribution passes the checks of ``pyro_ext.testing.distributions``: a table of them.

Draws fail each comparison for one seed in 100,000, so that one in 2,000 fails any.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as pyro_dist
import pytest
import torch
from torch import Tensor

from pyro_ext.distributions import (
    BFRY,
    BarDistribution,
    BernoulliCluster,
    BernoulliExponentialGraph,
    BetaPrimeBFRY,
    BlockDirichlet,
    DirichletOU,
    ForceNormal,
    GaussianCluster,
    GaussianRandomWalk,
    GeneralizedBFRY,
    KnownVarianceGaussianCluster,
    LogitGraph,
    MultinomialCluster,
    PaddedMultivariateNormal,
    PoissonCluster,
    PositiveStable,
    RectifiedGamma,
    SoftEquivariantNormal,
    StableBetaBFRY,
    TiltedBFRY,
    TiltedStable,
    TruncatedBFRY,
    TruncatedDistribution,
    TruncatedNormal,
    ZeroSumNormal,
)
from pyro_ext.groups import SO, O, TensorRep
from pyro_ext.testing import distributions as checks
from tests.distributions.clusters import SQUARE
from tests.distributions.exact import CASES

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]


@dataclass(frozen=True)
class Row:
    """A distribution, one point of its parameters, and what is special to it."""

    make: Any
    parameters: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    slow: bool = False  # more than a second to check, or to record

    def __str__(self) -> str:
        return self.make.__name__

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value).double() for name, value in self.parameters.items()}


def symmetric_gaussian_cluster(loc, loc_precision, dof, scale):
    """Only the symmetric part of a matrix counts, so that its gradients are symmetric too."""
    return GaussianCluster(loc, loc_precision, dof, (scale + scale.mT) / 2)


def block_of_gaussian_points(**parameters):
    return symmetric_gaussian_cluster(**parameters).block(2)


def block_of_known_variance(**parameters):
    return KnownVarianceGaussianCluster(**parameters).block(2)


def two_blocks(concentration):
    return BlockDirichlet(concentration, [1, 2])


def modes_of_paths(rate):
    return DirichletOU(2.0, 2, 1, rate=rate)


def waiting_time(rate, low):
    return TruncatedDistribution(pyro_dist.Exponential(rate), low, low + 2.0)


def walk_of_three(scale):
    return GaussianRandomWalk(scale, 3)


def six_effects(scale):
    return ZeroSumNormal(scale, (2, 3))


GROUPS = [O(2), SO(2)]


def soft_matrix(strengths, base_scale):
    return SoftEquivariantNormal(
        TensorRep({1: 1}), TensorRep({0: 1, 1: 1}), GROUPS, strengths, base_scale
    )


def scaled_steps(scale):
    factor = torch.tensor([[1.3, 0.0], [-0.4, 0.7]], dtype=scale.dtype)
    return PaddedMultivariateNormal(scale[..., None, None] * factor)


def borders(distribution):
    return distribution.borders


def five_bars(logit):
    logits = torch.stack(
        [0.3 - logit, logit, logit.sin(), 0.8 * logit, torch.zeros_like(logit)], -1
    )
    return BarDistribution(logits, torch.tensor([-0.7, -0.2, 0.1, 0.15, 0.9, 1.4]))


def pair_of_counts(concentration):
    return MultinomialCluster(concentration, total_count=2)


def masked_graph(rates):
    return BernoulliExponentialGraph(rates, torch.tensor([True, False, True, True]))


def graphs(num_nodes: int, nodes: tuple[int, ...]) -> Tensor:
    """All simple graphs of some of the nodes. **Shape:** ``(num_graphs, num_nodes, num_nodes)``."""
    edges = torch.combinations(torch.tensor(nodes))
    is_edge = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * len(edges))
    found = torch.zeros(len(is_edge), num_nodes, num_nodes, dtype=torch.float64)
    found[:, edges[:, 0], edges[:, 1]] = is_edge
    return found + found.mT


def pairs(size: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(float(size), dtype=torch.float64)] * 2)


UNIVARIATE = [
    Row(BFRY, {"discount": 0.4}),
    Row(BetaPrimeBFRY, {"discount": 0.4, "tail_index": 2.3, "level": 5.0, "rate": 2.0}),
    Row(
        GeneralizedBFRY, {"discount": 0.4, "tail_index": 2.3, "level": 5.0, "scale": 2.0}, slow=True
    ),
    Row(PositiveStable, {"stability": 0.6}, slow=True),
    Row(
        RectifiedGamma,
        {"concentration": 1.3, "rate": 0.7, "high": 2.0},
        {"atoms": lambda distribution: distribution.high},
    ),
    Row(StableBetaBFRY, {"discount": 0.4, "concentration": 1.5, "level": 5.0}),
    Row(TiltedBFRY, {"discount": 0.4, "level": 3.0, "tilt": 1.2}),
    Row(TiltedStable, {"mass": 1.3, "stability": 0.6, "tilt": 0.8}, slow=True),
    Row(TruncatedBFRY, {"discount": 0.4, "high": 5.0}, slow=True),
    Row(waiting_time, {"rate": 0.7, "low": 0.4}),
    Row(TruncatedNormal, {"loc": 0.3, "scale": 1.4, "low": -0.5, "high": 2.5}),
    Row(TruncatedNormal, {"loc": -3.0, "scale": 0.4, "low": 1.0}),
]
WISHART = {"loc": (0.3, -0.5), "loc_precision": 0.6, "dof": 12.5, "scale": SQUARE}
KNOWN = {"loc": (0.3, -0.5), "loc_scale": (1.4, 0.6), "scale": (0.5, 0.8)}
MULTIVARIATE = [
    Row(symmetric_gaussian_cluster, WISHART),
    Row(block_of_gaussian_points, WISHART),
    Row(KnownVarianceGaussianCluster, KNOWN),
    Row(block_of_known_variance, KNOWN),
    Row(pair_of_counts, {"concentration": (0.5, 1.7)}, {"points": pairs(3)[[2, 4, 6]]}),
    Row(
        BernoulliCluster,
        {"concentration1": (0.5, 1.7), "concentration0": (1.2, 0.4)},
        {"points": pairs(2)},
    ),
    Row(PoissonCluster, {"concentration": (0.5, 1.7), "rate": (1.8, 1.3)}, {"points": pairs(60)}),
    Row(
        BernoulliExponentialGraph,
        {"rates": ((0.3, 0.8), (1.2, 0.1), (0.4, 0.9))},
        {"points": graphs(3, (0, 1, 2))},
    ),
    Row(
        masked_graph,
        {"rates": ((0.3, 0.8), (1.2, 0.1), (0.4, 0.9), (0.7, 0.2))},
        {"points": graphs(4, (0, 2, 3))},
    ),
    Row(
        LogitGraph,
        {"features": ((0.3, -0.8), (1.2, 0.1), (-0.4, 0.9)), "log_scale": 0.2, "bias": -0.4},
        {"points": graphs(3, (0, 1, 2))},
    ),
    Row(five_bars, {"logit": 0.7}, {"jumps": borders}),
    Row(two_blocks, {"concentration": (1.5, 0.4)}),
    Row(modes_of_paths, {"rate": (0.4, 1.3)}),
    Row(soft_matrix, {"strengths": (0.7, 0.4), "base_scale": 1.3}),
    Row(scaled_steps, {"scale": 1.4}),
    Row(walk_of_three, {"scale": 1.4}),
    Row(six_effects, {"scale": 1.4}),
    Row(ForceNormal, {"loc": (0.3, -0.5, 1.1), "l6": (-0.7, 0.2, -0.2, 0.3, -0.4, 0.6)}),
]


each_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=str(row), marks=pytest.mark.slow if row.slow else ())
        for row in [*UNIVARIATE, *MULTIVARIATE]
    ],
)


@each_row
def test_distribution(row):
    checks.check_distribution(row.make, row.tensors(), **row.options)


@each_row
def test_on_a_device(row, device):
    """Draws, densities, their gradients and moments stay there, and are those of the processor."""

    def parts(where):
        with torch.device(where):
            given = {n: value.to(where).requires_grad_() for n, value in row.tensors().items()}
            law = row.make(**given)
            density = law.log_prob(value.to(where))
            slopes = torch.autograd.grad(density.sum(), list(given.values()), allow_unused=True)
            moments = [moment_of(law, name) for name in ("mean", "variance")]
            return [law.sample((2,)), density, *slopes, *moments]

    with torch.device("cpu"):
        value = row.make(**row.tensors()).sample((3,))
    (_, *expected), (draws, *found) = parts("cpu"), parts(device)
    assert draws.device == device
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.device == device
            torch.testing.assert_close(one.cpu(), other)


def moment_of(law, name):
    try:
        return getattr(law, name)
    except NotImplementedError:
        return None


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=str(row), marks=pytest.mark.slow if row.slow else ())
        for row in UNIVARIATE
        if "atoms" not in row.options  # a latent value of probability has no bijection
    ],
)
def test_in_a_model(row):
    """A branch on a value of a latent parameter would give a warning, which is an error here."""
    checks.check_in_model(row.make, row.tensors())


@contextmanager
def naming(case):
    """Add to an error what it is about."""
    try:
        yield
    except AssertionError as error:
        error.add_note(str(case))
        raise


def every_family(function):
    """A test of all cases of each family."""
    families = {row.make: [case for case in CASES if case.make is row.make] for row in UNIVARIATE}
    slow = (PositiveStable, TiltedStable, TiltedBFRY, GeneralizedBFRY)  # their densities take long
    return pytest.mark.parametrize(
        "cases",
        [
            pytest.param(cases, id=make.__name__, marks=pytest.mark.slow if make in slow else ())
            for make, cases in families.items()
        ],
    )(function)


def options(case):
    """Laplace transforms at three places, and atoms."""
    fn = case.fn()
    median = fn.sample((999,)).median().item()
    return {
        "atoms": (lambda fn: fn.high) if case.make is RectifiedGamma else None,
        "expectations": [
            (lambda x, t=t: torch.exp(-t * x), case.laplace(t))
            for t in (0.1 / median, 1.0 / median, 10.0 / median)
        ],
    }


@every_family
def test_integrals(cases):
    """Densities integrate to one, to distribution functions, moments and Laplace transforms."""
    for case in cases:
        with naming(case):
            checks.check_density(case.fn(), tail_mass=case.tail_mass, **options(case))


@every_family
def test_some_draws(cases):
    """Of five thousand draws and three Laplace transforms; any fails for one seed in 2,000."""
    for case in cases:
        with naming(case):
            checks.check_draws(case.fn(), num_draws=5_000, **options(case))


@pytest.mark.slow
@every_family
def test_many_draws(cases):
    """As above, of a million draws."""
    for case in cases:
        with naming(case):
            checks.check_draws(case.fn(), num_draws=1_000_000, **options(case))


# From what hypothesis or an engineer would try: the ends of all intervals, and all between.
ENDS = torch.tensor([0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
KINDS = {
    BFRY: ("fraction",),
    BetaPrimeBFRY: ("discount", "excess", "positive", "positive"),
    GeneralizedBFRY: ("discount", "excess", "positive", "positive"),
    PositiveStable: ("fraction",),
    RectifiedGamma: ("positive", "positive", "positive"),
    StableBetaBFRY: ("discount", "positive", "positive"),
    TiltedBFRY: ("discount", "positive", "positive"),
    TiltedStable: ("positive", "fraction", "tilt"),
    TruncatedBFRY: ("discount", "positive"),
}


def positive(unit: Tensor) -> Tensor:
    """From 1e-12 to 1e12, evenly in the logarithm."""
    return 10.0 ** (12.0 * (2.0 * unit - 1.0))


def fraction(unit: Tensor) -> Tensor:
    """From 1e-12 to 1 - 1e-12, or the last number in float32."""
    near_zero = 0.5 * 10.0 ** (-12.0 * (1.0 - 2.0 * unit).clamp(min=0.0))
    near_one = 1.0 - 0.5 * 10.0 ** (-12.0 * (2.0 * unit - 1.0).clamp(min=0.0))
    value = torch.where(unit < 0.5, near_zero, near_one)
    return value.clamp(max=1.0 - torch.finfo(torch.float32).eps / 2)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=str(row), marks=pytest.mark.slow if row.make is TiltedStable else ())
        for row in UNIVARIATE
        if row.make in KINDS
    ],
)
def test_finite_everywhere(row):
    """For 480 points of all of the parameters' space, half of the coordinates at special points."""
    generator = torch.Generator().manual_seed(0)
    shape = (1 + len(row.parameters), 480)
    units = torch.rand(shape, generator=generator)
    special = ENDS[torch.randint(len(ENDS), shape, generator=generator)]
    units = torch.where(torch.rand(shape, generator=generator) < 0.5, special, units)
    values: list[Tensor] = []
    for kind, unit in zip(KINDS[row.make], units[1:], strict=True):
        if kind == "fraction":
            value = fraction(unit)
        elif kind == "discount":
            value = torch.where(unit < 0.1, 0.0, fraction(unit))
        elif kind == "excess":  # over the discount, by at least one number of float32
            least = torch.nextafter(values[0].float(), torch.tensor(2.0).float()).double()
            value = torch.maximum(values[0] + positive(unit), least)
            value = torch.maximum(value.float().double(), least)
        else:
            value = (
                torch.where(unit < 0.1, 0.0, positive(unit)) if kind == "tilt" else positive(unit)
            )
        values.append(value.float().double())
    point = fraction(units[0]) if row.make is StableBetaBFRY else positive(units[0])
    if row.make in (TruncatedBFRY, RectifiedGamma):
        point = torch.minimum(point, values[-1])
    parameters = dict(zip(row.parameters, values, strict=True))
    checks.check_finite(row.make, parameters, point.float().double())
