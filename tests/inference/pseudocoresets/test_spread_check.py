"""Default weights, and the check after a fit: against closed forms, and quiet where it must be."""

import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import ExpertBuffer
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ForwardKL,
    GaussianSurrogate,
    MCMCSurrogate,
    ReverseKL,
    TrajectorySurrogate,
    Wasserstein,
)
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, init_to_module
from tests.inference.pseudocoresets.coreset_models import labeled, location, logistic, points


def conjugate(x: Tensor) -> None:
    """Normal numbers, and a standard normal prior of their mean."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def counts(x: Tensor, y: Tensor) -> None:
    """Poisson regression."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ weight).exp()), obs=y)


def noisy(x: Tensor, y: Tensor) -> None:
    """Linear regression whose noise has an unknown scale."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)


def problem(name: str, num_points: int) -> tuple[Any, tuple[Tensor, ...]]:
    x, y = labeled(num_points)
    generator = torch.Generator().manual_seed(1)
    mean = x @ torch.tensor([0.5, -0.3, 0.2])
    return {
        "location": (location, (points(num_points),)),
        "linear": (noisy, (x, mean + torch.randn(num_points, generator=generator))),
        "logistic": (logistic, (x, y)),
        "counts": (counts, (x, torch.poisson(mean.exp(), generator=generator))),
    }[name]


@pytest.mark.parametrize(
    ("name", "divergence", "num_points"),
    [
        ("logistic", ForwardKL, 2000),
        *[
            pytest.param(name, divergence, num_points, marks=pytest.mark.slow)
            for name in ("location", "linear", "logistic", "counts")
            for divergence in (ForwardKL, ReverseKL, Wasserstein)
            for num_points in ((2000, 100_000) if divergence is ForwardKL else (2000,))
            if (name, divergence, num_points) != ("logistic", ForwardKL, 2000)
        ],
    ],
)
def test_default_is_as_wide_as_the_data(name: str, divergence: Any, num_points: int) -> None:
    """No standard deviation is a third off, no mean a fifth of one, and there is no warning."""
    model, args = problem(name, num_points)
    guide = AutoPseudocoreset(model, *args, size=100, seed=0)
    fast = partial(torch.optim.Adam, lr=0.03)
    surrogate = GaussianSurrogate()
    guide.fit(divergence(surrogate), 200, optimizer=fast, progress=False)
    (mean, covariance), (own_mean, own_covariance) = (
        surrogate.data_gaussian(guide),
        surrogate.coreset_gaussian(guide),
    )
    scale = covariance.diagonal().sqrt()
    ratio = own_covariance.diagonal().sqrt().detach() / scale
    assert float(ratio.min()) > 0.75 and float(ratio.max()) < 1.33
    assert float(((own_mean.detach() - mean) / scale).abs().max()) < 0.2
    ratios = guide.check_spread()
    assert ratios is not None
    flat = guide.posterior.layout.flatten(ratios)
    torch.testing.assert_close(flat, ratio, rtol=0.02, atol=0.0)


def test_weights_of_one_are_told() -> None:
    """Of 900 standard normals under a standard normal prior: 1/sqrt(10) and 1/sqrt(901)."""
    guide = AutoPseudocoreset(conjugate, torch.zeros(900), size=9, weights="uniform", seed=0)
    told = r"deviation of 'loc' is 0\.316 where that of the data is 0\.0333; .*weights='learned'"
    with pytest.warns(UserWarning, match=told):
        guide.fit(ForwardKL(), 2, progress=False)
    with pytest.warns(UserWarning, match=told):
        guide.fit(ForwardKL(MCMCSurrogate(num_samples=8)), 2, progress=False)
    with pytest.warns(UserWarning, match=told):
        ratios = guide.check_spread()
    assert ratios is not None
    assert float(ratios["loc"]) == pytest.approx((901 / 10) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("weight", [3.9, 4.1, 900 * 4.1])
def test_factor_of_two(weight: float) -> None:
    """The posterior of a weight :math:`w` has the precision :math:`1 + w`, that of the data 16."""
    guide = AutoPseudocoreset(conjugate, torch.zeros(15), size=1, seed=0)
    torch.nn.init.constant_(guide.coreset_weights_unconstrained, torch.tensor(weight - 1.0).log())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guide.check_spread()
    ratio = (16.0 / weight) ** 0.5
    assert len(caught) == (not 0.5 <= ratio <= 2.0)


def test_mean_is_told() -> None:
    x = points(400)
    init = lambda size, x: torch.full((size, 2), 3.0)  # noqa: E731
    guide = AutoPseudocoreset(location, x, size=5, init=init, seed=0)
    with pytest.warns(UserWarning, match=r"mean of 'mean' is 2.99\d where that of the data is"):
        guide.check_spread()


def test_networks_are_passed_over(subtests: pytest.Subtests) -> None:
    """Searches from two starts end at two modes of a network, and at one of a regression."""
    x, y = labeled(200)
    network = MLP(3, [8], 2)
    perceptron = BayesianClassifier(BayesianModule(network, 1.0))
    start = init_to_module(module=network)
    for model, labels, init_strategy, is_told in (
        (perceptron, y.long(), start, False),
        (logistic, y, None, True),
    ):
        with subtests.test(model=model):
            guide = AutoPseudocoreset(model, x, labels, size=4, weights="uniform", seed=0)
            buffer = ExpertBuffer.collect(
                model,
                x,
                labels,
                num_experts=2,
                num_epochs=2,
                init_strategy=init_strategy,
                seed=0,
                progress=False,
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                guide.fit(ForwardKL(TrajectorySurrogate(buffer)), 2, seed=0, progress=False)
            assert len(caught) == is_told
    large = BayesianClassifier(BayesianModule(MLP(3, [200], 2), 1.0))
    assert AutoPseudocoreset(large, x, y.long(), size=4, seed=0).check_spread() is None


def test_flat_posteriors_are_passed_over() -> None:
    """Where the log density is not concave at the mode, a Laplace approximation tells nothing."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0 * loc, 1.0), obs=x)

    guide = AutoPseudocoreset(model, points()[:, 0], size=5, seed=0)
    assert guide.check_spread() is None
