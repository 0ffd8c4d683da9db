"""Bayesian optimization: its surrogate against BoTorch's, its results, and where it goes on."""

import math

import pytest
import torch

from pyro_ext.inference.averaging import BayesianOptimizer
from pyro_ext.inference.averaging.bayesian_optimization import _fit

BOX = ((-5.0, 0.0), (10.0, 15.0))


def branin(x):
    """Minus Branin's function, whose largest value is -0.397887."""
    a, b = x
    bowl = b - 5.1 / (4.0 * math.pi**2) * a**2 + 5.0 / math.pi * a - 6.0
    return -(bowl**2 + 10.0 * (1.0 - 1.0 / (8.0 * math.pi)) * torch.cos(a) + 10.0)


def two_bowls(x):
    """Two objectives, of which one is a step function.

    With four inputs no hypervolume above minus one exceeds 0.913.
    """
    return torch.stack([-(20.0 * (x - 0.2).square().sum()).ceil() / 20, -(x - 0.6).square().sum()])


def course(search, function, number):
    for _ in range(number):
        x = search.ask()
        search.tell(x, function(x))
    return search


def test_one_objective():
    best = [course(BayesianOptimizer(BOX, seed=seed), branin, 20).y.max() for seed in range(2)]
    assert min(best) > -0.5  # 20 points at random reach -3.1 on average


def test_two_objectives():
    for seed in range(2):
        bounds = torch.stack([torch.zeros(4), torch.ones(4)])
        search = BayesianOptimizer(bounds, [-1.0, -1.0], seed=seed)
        volumes = course(search, two_bowls, 20).hypervolumes()
        assert bool((volumes.diff() >= 0).all())
        assert float(volumes[-1]) > 0.8 > float(volumes[3])  # 50 times 20 at random reach 0.777
        assert torch.equal(search.best(), search.x[search.y[:, 0].argmax()])


def test_a_search_is_a_function_of_seed_and_values():
    """Whatever else draws, asks, or was told at once."""
    first = course(BayesianOptimizer(BOX, seed=3, num_initial=4), branin, 8)
    torch.manual_seed(5)
    again = BayesianOptimizer(BOX, seed=3, num_initial=4)
    again.tell(first.x[:6], first.y[:6])
    assert torch.equal(again.ask(), first.x[6])
    before = torch.get_rng_state()
    assert torch.equal(again.ask(), first.x[6])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(course(BayesianOptimizer(BOX, seed=4), branin, 1).x, first.x[:1])
    for x in first.x:
        assert bool((x >= again.bounds[0]).all() and (x <= again.bounds[1]).all())


def test_equal_values_and_points():
    search = course(BayesianOptimizer(BOX, [-1.0, -1.0], seed=0), lambda x: [0.0, 0.0], 5)
    assert bool(search.ask().isfinite().all())
    search = course(BayesianOptimizer(BOX, seed=0), lambda x: 1e-30, 5)
    search.tell([[1.0, 2.0]] * 6, [[0.0], [0.1]] * 3)
    assert bool(search.ask().isfinite().all())


@pytest.mark.parametrize("reference", [None, [-1.0, -1.0]])
def test_evaluations_that_fail(reference):
    """They count as the worst, so that the search leaves where they are."""
    number = 1 if reference is None else 2

    def function(x):
        value = -(x - 0.7).square().sum()
        return (value if x[0] > 0.5 else value * torch.nan).expand(number)

    search = BayesianOptimizer([[0.0], [1.0]], reference, seed=0)
    with pytest.raises(ValueError, match="best needs a point with finite values, got 0"):
        search.best()
    course(search, function, 10)
    is_good = search.y.isfinite().all(-1)
    assert 0 < int((~is_good).sum()) < 5
    assert float((search.best() - 0.7).abs()) < 0.05
    volumes = search.hypervolumes()
    assert bool((volumes[1:] >= volumes[:-1]).all()) and bool(volumes[-1].isfinite())
    again = BayesianOptimizer([[0.0], [1.0]], reference, seed=0)
    again.tell(search.x, search.y)
    assert torch.equal(again.ask(), search.ask())


def test_refusals():
    with pytest.raises(ValueError, match="reference must have the shape .* BoTorch takes more"):
        BayesianOptimizer(BOX, [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="bounds must be"):
        BayesianOptimizer([[0.0], [0.0]])
    with pytest.raises(ValueError, match="y must have the shape"):
        BayesianOptimizer(BOX, [0.0, 0.0]).tell([0.0, 0.0], [1.0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_surrogate_is_that_of_botorch():
    """The same length scales, noise, means and deviations, but for the jitter and the mean."""
    pytest.importorskip("botorch")
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.manual_seed(0)
    x, new = torch.rand(30, 3).double(), torch.rand(9, 3).double()
    y = torch.stack([two_bowls(one) for one in x])
    surrogate = _fit(x, y)
    mean, sd = surrogate.predict(new)
    for number in range(2):
        theirs = SingleTaskGP(
            x,
            y[:, [number]],
            covar_module=get_covar_module_with_dim_scaled_prior(3, use_rbf_kernel=False),
            outcome_transform=Standardize(m=1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(theirs.likelihood, theirs))
        posterior = theirs.posterior(new)
        scales = theirs.covar_module.lengthscale[0].detach()
        torch.testing.assert_close(surrogate.lengthscale[number], scales, rtol=0.01, atol=0.0)
        torch.testing.assert_close(
            mean[:, number], posterior.mean[:, 0].detach(), rtol=0, atol=1e-3
        )
        theirs_sd = posterior.variance[:, 0].detach().sqrt()
        torch.testing.assert_close(sd[:, number], theirs_sd, rtol=0.02, atol=1e-4)
