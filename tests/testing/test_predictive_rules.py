"""The predictive rules of the package pass their checks, and wrong ones do not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference.martingale import (
    CopulaDensity,
    NormalPredictive,
    PlugInNormal,
    PolyaUrn,
    PosteriorPredictive,
    StudentTPredictive,
)
from pyro_ext.testing.predictive_rules import check_martingale, check_predictive_rule
from tests.inference.martingale.normal_models import fixed_size, model, subsampling

FEW, TEN = torch.linspace(-1.0, 2.0, 4), torch.linspace(-1.0, 2.0, 10)
ROWS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0], [-1.0, 0.5], [0.3, 3.0]])


DRAWS = {"loc": 0.6 + 0.5 * torch.randn(2000, generator=torch.Generator().manual_seed(0))}
RULES = {
    "flat": (NormalPredictive(1.5), FEW, 20_000),
    "normal": (NormalPredictive(0.7, loc=1.0, loc_scale=0.4), FEW, 20_000),
    "reference": (StudentTPredictive(), FEW, 20_000),
    "conjugate": (
        StudentTPredictive(loc=1.0, loc_precision=2.0, concentration=1.5, rate=0.3),
        FEW,
        20_000,
    ),
    "urn": (PolyaUrn(), FEW, 20_000),
    "urn of vectors": (
        PolyaUrn(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), 30.0),
        ROWS,
        10_000,
    ),
    "model": (PosteriorPredictive(model, DRAWS), FEW, 2000),
    "model of a fixed size": (PosteriorPredictive(fixed_size, DRAWS), TEN, 50),
    "model of subsamples": (PosteriorPredictive(subsampling, DRAWS), TEN, 50),
    "copula": (CopulaDensity(0.8), FEW, 200),
    "copula of vectors": (CopulaDensity(0.8), ROWS, 20),
}


@pytest.mark.statistical
@pytest.mark.parametrize(("rule", "data", "num_draws"), RULES.values(), ids=RULES)
def test_rules(rule, data, num_draws, float64):
    check_predictive_rule(rule, data.double())
    check_martingale(rule, data.double(), num_draws=num_draws)


@pytest.mark.statistical
def test_the_plug_in_rule_is_no_martingale(float64):
    check_predictive_rule(PlugInNormal(), FEW.double())
    check_martingale(PlugInNormal(), FEW.double(), functions=[lambda y: y])
    with pytest.raises(AssertionError, match="over the first 50 observations after the data and"):
        check_martingale(PlugInNormal(), FEW.double())


def test_regression_has_rows_of_data(float64):
    """Covariates are drawn from those of the data, responses given them."""

    def regression(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x * slope, 0.1), obs=y)

    rule = PosteriorPredictive(regression, {"slope": torch.randn(500) + 1.0})
    data = (FEW.double(), FEW.double())
    check_predictive_rule(rule, *data)
    check_martingale(rule, *data, functions=[lambda x, y: x * y], num_draws=500)


class Company(NormalPredictive):
    """Draws depend on how many there are."""

    def begin(self, data, keys):
        return super().begin(data, keys + len(keys))


class Calls(NormalPredictive):
    """Draws depend on the calls that made them."""

    def advance(self, state, num_steps):
        return super().advance(state._replace(keys=state.keys + num_steps), num_steps)


class OneStream(NormalPredictive):
    """All draws have the same random numbers."""

    def begin(self, data, keys):
        return super().begin(data, keys[:1].expand(len(keys), -1))


class Forgetful(NormalPredictive):
    """Populations do not grow to the size that was asked for."""

    def advance(self, state, num_steps):
        return super().advance(state, max(num_steps - 1, 0))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Company(), "draws alone and among others differ by"),
        (Calls(), "draws in many calls and in one differ by"),
        (OneStream(), "draws of two keys are the same"),
        (Forgetful(), "populations have the sizes"),
    ],
)
def test_wrong_rules_are_refused(rule, message, float64):
    with pytest.raises(AssertionError, match=message):
        check_predictive_rule(rule, FEW.double())


def test_wrong_arguments():
    with pytest.raises(TypeError, match="rule must be a PredictiveRule"):
        check_martingale(dist.Normal(0.0, 1.0), FEW)
    with pytest.raises(ValueError, match="data must have at least one tensor"):
        check_predictive_rule(PolyaUrn())
    with pytest.raises(ValueError, match="num_steps must have at least two numbers of steps"):
        check_martingale(PolyaUrn(), FEW, num_steps=(3,))
