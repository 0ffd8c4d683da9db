"""Laws with few parameters: what they recover, and their posteriors."""

import pytest
import torch

from pyro_ext.inference import MCMC, NUTS
from pyro_ext.models.scaling_laws import LAWS, ScalingLaw

pytestmark = pytest.mark.usefixtures("float64")
X = torch.logspace(1.0, 4.0, 12)
TRUTH = {
    "M1": ({"beta": 3.0, "c": 0.4}, lambda x: 3.0 * x**-0.4),
    "M2": ({"beta": 3.0, "c": 0.4, "e_inf": 0.05}, lambda x: 3.0 * x**-0.4 + 0.05),
    "M3": (
        {"beta": 3.0, "c": 0.5, "e_inf": 0.04, "gamma": 0.004},
        lambda x: 3.0 * (1 / x + 0.004) ** 0.5 + 0.04,
    ),
    "BNSL": (
        {"beta": 2.0, "c": 0.2, "e_inf": 0.02, "c_1": 0.5, "d_1": 300.0, "f_1": 0.5},
        lambda x: 0.02 + 2.0 * x**-0.2 * (1 + (x / 300.0) ** 2) ** -0.25,
    ),
}


@pytest.mark.parametrize("name", TRUTH)
def test_parameters_are_found(name):
    exact, curve = TRUTH[name]
    law = ScalingLaw(name).fit(X, curve(X))
    found = {key: float(value) for key, value in law.parameters.items()}
    assert found == pytest.approx(exact, rel=0.02)
    torch.testing.assert_close(law.predict(10 * X), curve(10 * X), rtol=1e-3, atol=0)


def test_the_law_with_an_inflection():
    """Its values solve the equation, with the parameters that it says."""
    low, high, alpha, beta, c = 0.05, 0.9, 0.7, 4.0, 0.5
    w = torch.linspace(0.02, 0.9, 12)
    y = low + (high - low) * w
    x = ((y - low) / (high - y) ** alpha / beta) ** (-1 / c)
    order = x.argsort()
    law = ScalingLaw("M4").fit(x[order], y[order])
    p = {key: float(value) for key, value in law.parameters.items()}
    assert p == pytest.approx(
        {"beta": beta, "c": c, "e_inf": low, "alpha": alpha, "e_0": high}, rel=0.02
    )


@pytest.mark.parametrize("name", LAWS)
def test_slopes_are_those_of_least_squares(name):
    """No small step of any parameter makes the sum of squares smaller, from noisy data either."""
    torch.manual_seed(0)
    y = (3.0 * X**-0.4 + 0.05) * (0.03 * torch.randn(3, 12)).exp()
    law = ScalingLaw(name).fit(X.expand(3, 12), y)
    sizes, values, least = law._in_units(law.x, law.y)

    def loss(theta):
        return (law._law.curve(theta, sizes, least) / values).log().square().sum(-1)

    best = loss(law.theta)
    for step in 1e-3 * torch.cat([torch.eye(law.theta.shape[-1]), -torch.eye(law.theta.shape[-1])]):
        moved = (law.theta + step).clamp(-12.0, 12.0)
        assert bool((loss(moved) >= best - 1e-5 * best).all())


def test_batches_are_curves_of_their_own():
    torch.manual_seed(0)
    y = (3.0 * X**-0.4 + 0.05) * (0.02 * torch.randn(2, 3, 12)).exp()
    together = ScalingLaw("M2").fit(X.expand(2, 3, 12), y)
    alone = ScalingLaw("M2").fit(X, y[1, 2])
    assert together.predict([1e5]).shape == (2, 3, 1)
    torch.testing.assert_close(
        together.predict([1e5])[1, 2], alone.predict([1e5]), rtol=1e-4, atol=0
    )
    assert together.predictive(X.expand(2, 3, 12)).batch_shape == (2, 3, 12)


def test_spread_is_that_of_residuals():
    y = 3.0 * X**-0.4 * (0.05 * torch.randn(12)).exp()
    law = ScalingLaw("M1").fit(X, y)
    residuals = y - law.predict(X)
    exact = (residuals.square().sum() / 10).sqrt()
    torch.testing.assert_close(law.predictive(X).scale, exact.expand(12))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_posteriors_are_near_the_truth(name):
    """Two curves at once; the truth lies in the central 99.9 percent of all six predictions."""
    torch.manual_seed(1)
    exact = 0.8 * (X / 10) ** -0.4 + 0.05
    y = exact + 0.004 * torch.randn(2, 12)
    law = ScalingLaw(name).fit(X[:9].expand(2, 9), y[:, :9])
    kernel = NUTS(law.model, max_tree_depth=6)  # posteriors are long and narrow
    mcmc = MCMC(kernel, num_samples=150, warmup_steps=150, seed=0, progress=False)
    prediction = law.predictive(X[9:], mcmc.run().get_samples())
    assert prediction.batch_shape == (2, 3)
    if name != "M1":  # which has no floor
        below = prediction.cdf(exact[9:].expand(2, 3))
        assert bool(((below > 0.0005) & (below < 0.9995)).all())


def test_wrong_curves():
    with pytest.raises(ValueError, match="call fit"):
        ScalingLaw().predict([1.0])
