"""Derivatives in every parameter, and functions that are recorded and mapped."""

import math

import mpmath
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    LevyDensityProcess,
    ParetoMixtureProcess,
    ParetoProcess,
    PitmanYor,
    StableBetaProcess,
)
from tests.random_measures.references import (
    BETA_PRIME,
    GENERALIZED_BFRY,
    STABLE_BETA,
    Reference,
    exponent_in_closed_form,
    log_kappa_in_closed_form,
)

pytestmark = pytest.mark.usefixtures("float64")

CASES = [
    (GeneralizedGammaProcess, (2.0, 0.4, 1.5)),
    (GeneralizedGammaProcess, (2.0, -0.7, 1.5)),
    (StableBetaProcess, (2.0, 0.4, 1.5)),
    (StableBetaProcess, (2.0, 0.6, -0.3)),
    (BetaPrimeProcess, (1.5, 0.4, 2.3, 1.2)),
    (GeneralizedBFRYProcess, (1.5, 0.4, 2.3, 1.2)),
    (ParetoMixtureProcess, (1.5, 0.4, 1.0, 1.5, 0.5, 2.2)),
    (ParetoProcess, (1.5, 0.5, 2.2)),
    (lambda m, s, c, u, a: StableBetaProcess(m, s, c, tilt=u, scale=a), (2.0, 0.4, 1.5, 3.0, 2.5)),
    (lambda m, s, t, c, u: BetaPrimeProcess(m, s, t, c, tilt=u), (1.5, 0.4, 2.3, 1.2, 0.8)),
    (lambda m, s, t, c, u: GeneralizedBFRYProcess(m, s, t, c, tilt=u), (1.5, 0.4, 2.3, 1.2, 0.8)),
]
EVERY_CASE = pytest.mark.parametrize("make, values", CASES)
FUNCTIONS = {
    "density": lambda m, x: m.log_levy_density(x),
    "exponent": lambda m, x: m.laplace_exponent(x),
    "moment": lambda m, x: m.log_kappa(3.0, x),
    "tail": lambda m, x: m.log_tail(x),
    "inverse exponent": lambda m, x: m.inverse_laplace_exponent(0.3 * x).log(),
    "inverse tail": lambda m, x: m.inverse_tail(0.3 * x).log(),
    "variance": lambda m, x: m.variance if m.variance.isfinite().all() else m.tail(x),
}


@EVERY_CASE
def test_functions(make, values):
    """Automatic derivatives in the argument and all parameters against differences."""

    def functions(x, *parameters):
        measure = make(*parameters)
        return torch.stack([function(measure, x) for function in FUNCTIONS.values()])

    leaves = [torch.tensor(value, requires_grad=True) for value in (0.7, *values)]
    torch.autograd.gradcheck(functions, leaves, eps=1e-6, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("reference", [STABLE_BETA, BETA_PRIME, GENERALIZED_BFRY], ids=str)
def test_closed_forms(reference):
    """Derivatives in parameters against differences of hypergeometric functions."""
    names = [name for name in reference.parameters if name not in ("tilt", "scale")]
    leaves = {name: torch.tensor(reference.parameters[name], requires_grad=True) for name in names}
    measure = reference.make(**leaves)
    pairs = (
        (measure.laplace_exponent(0.8), lambda r: exponent_in_closed_form(r, 0.8)),
        (measure.log_kappa(2, 0.8), lambda r: log_kappa_in_closed_form(r, 2, 0.8)),
    )
    for value, closed in pairs:
        slopes = torch.autograd.grad(value, tuple(leaves.values()))
        for name, slope in zip(names, slopes, strict=True):

            def at(number, name=name, closed=closed):
                parameters = {**reference.parameters, name: number}
                return closed(Reference("", reference.make, parameters, math.sin, 0.0))

            expected = float(mpmath.diff(at, reference.parameters[name], h=1e-4))
            assert slope.item() == pytest.approx(expected, rel=1e-6, abs=1e-7), name


# Measures with infinitely many weights.
@pytest.mark.parametrize(
    "make, values",
    [
        CASES[0],
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (*CASES[2:7], *CASES[8:])),
    ],
)
def test_partitions(make, values):
    def eppf(*parameters):
        return make(*parameters).normalize().log_eppf([4, 1, 1])

    def joint(u, *parameters):
        return make(*parameters).normalize().log_joint([4, 1, 1], u)

    leaves = [torch.tensor(value, requires_grad=True) for value in values]
    torch.autograd.gradcheck(eppf, leaves, eps=1e-5, atol=1e-6, rtol=1e-5)
    tilt = torch.tensor(0.7, requires_grad=True)
    torch.autograd.gradcheck(joint, (tilt, *leaves), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_pitman_yor():
    for parameters in ((0.4, 1.3), (0.6, -0.4)):
        leaves = [torch.tensor(value, requires_grad=True) for value in parameters]
        for counts in ([4, 1, 1], [1]):
            torch.autograd.gradcheck(lambda *p, c=counts: PitmanYor(*p).log_eppf(c), leaves)
            torch.autograd.gradcheck(lambda *p, c=counts: PitmanYor(*p).log_joint(c, 0.7), leaves)


def test_at_the_limit_without_discount():
    """There is a derivative from the right."""
    for make, values in CASES[:1] + CASES[2:3] + CASES[4:6]:
        for function in (
            lambda m: m.laplace_exponent(0.7),
            lambda m: m.log_kappa(3, 0.7),
            lambda m: m.log_tail(0.7),
        ):
            discount = torch.tensor(0.0, requires_grad=True)
            value = function(make(values[0], discount, *values[2:]))
            (slope,) = torch.autograd.grad(value, discount)
            step = 1e-5
            second = function(make(values[0], 2 * step, *values[2:]))
            first = function(make(values[0], step, *values[2:]))
            expected = (4 * first - 3 * value - second) / (2 * step)
            assert slope.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_parameters_of_a_user():
    def log_density(w, mass, power):
        return mass.log() - (1.0 + power) * w.log() - w

    def function(mass, power):
        measure = LevyDensityProcess(log_density, {"mass": mass, "power": power})
        return torch.stack([measure.laplace_exponent(0.7), measure.log_kappa(2, 0.7)])

    leaves = [torch.tensor(value, requires_grad=True) for value in (2.0, 0.4)]
    torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "make, values", [CASES[0], CASES[4], CASES[5]], ids=["gamma", "beta prime", "bfry"]
)
@pytest.mark.parametrize("name", ["exponent", "joint"])
def test_recorded_and_mapped(make, values, name):
    """A graph that is recorded for a batch of chains has the values and gradients of each."""
    counts = torch.tensor([4, 1, 1])

    def function(parameters):
        *own, u = parameters.unbind()
        measure = make(*own, validate_args=False)
        if name == "exponent":
            return measure.laplace_exponent(u)
        return measure.normalize().log_joint(counts, u)

    both = torch.func.vmap(torch.func.grad_and_value(function))
    point = torch.tensor([[*values, 0.7], [*(1.1 * v for v in values), 2.0]])
    recorded = make_fx(both)(point)
    other = point * 0.97
    for at in (point, other):
        slopes, recorded_values = recorded(at)
        for row in range(2):
            leaf = at[row].clone().requires_grad_()
            value = function(leaf)
            (slope,) = torch.autograd.grad(value, leaf)
            torch.testing.assert_close(recorded_values[row], value.detach(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(slopes[row], slope, rtol=1e-7, atol=1e-7)
