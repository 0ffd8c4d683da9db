"""Densities of a model point by point."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.potential import PointPotential
from pyro_ext.potential.rows import RowArguments

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 2.0]])
Y = torch.tensor([0.5, -0.2, 1.1])


def regression(x, y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), scale).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("points", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ weight, noise), obs=y)


def by_hand(point, i):
    """Unconstrained values in the order of the model."""
    log_scale, weight, log_noise = point[0], point[1:3], point[3]
    scale, noise = log_scale.exp(), log_noise.exp()
    shared = dist.HalfNormal(2.0).log_prob(scale) + log_scale
    prior = dist.Normal(0.0, scale).log_prob(weight).sum()
    prior = prior + dist.LogNormal(0.0, 1.0).log_prob(noise) + log_noise
    return prior, shared, dist.StudentT(4.0, X[i] @ weight, noise).log_prob(Y[i])


@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_densities_are_those_by_hand(backend):
    points = PointPotential(regression, X, Y, shared=["scale"], backend=backend)
    flat = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    densities = points(flat)
    wanted = [by_hand(flat[i], i) for i in range(3)]
    for values, expected in zip(densities, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(values, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_sites_of_a_flat_vector():
    points = PointPotential(regression, X, Y)
    assert [points.layout.columns(name) for name in ("scale", "weight", "noise")] == [
        range(1),
        range(1, 3),
        range(3, 4),
    ]
    assert points.num_points == 3


def test_constrained_values_and_back():
    points = PointPotential(regression, X, y=Y)
    flat = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    values = points.constrain(flat)
    torch.testing.assert_close(values["noise"], flat[:, 3].exp())
    torch.testing.assert_close(points.unconstrain(values), flat)


@pytest.mark.statistical
def test_draws_are_those_of_the_prior():
    """Means of 2,000 draws within 4.5 standard errors: one seed in 100,000 fails."""
    points = PointPotential(regression, X, Y, shared=["scale"])
    torch.manual_seed(0)
    drawn = points.constrain(points.draw(2000, {"scale": torch.tensor(0.5)}))
    assert bool((drawn["scale"] == 0.5).all())
    assert abs(float(drawn["weight"].mean())) < 4.5 * 0.5 / 4000**0.5
    assert abs(float(drawn["noise"].log().mean())) < 4.5 / 2000**0.5


def test_factors_count_inside_and_outside_of_the_plate():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.factor("outside", -loc.square())
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            pyro.factor("inside", 3.0 * x)

    points = PointPotential(model, Y)
    densities = points(torch.full((3, 1), 0.4))
    normal = dist.Normal(0.0, 1.0)
    torch.testing.assert_close(
        densities.prior, (normal.log_prob(torch.tensor(0.4)) - 0.16).expand(3)
    )
    torch.testing.assert_close(densities.likelihood, normal.log_prob(Y - 0.4) + 3.0 * Y)


def test_plates_beside_that_of_the_points():
    def model(x):
        with pyro.plate("dimensions", 2, dim=-1):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("dimensions of points", 2, dim=-1), pyro.plate("points", len(x), dim=-2):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    points = PointPotential(model, X)
    likelihood = points(torch.zeros(3, 2)).likelihood
    torch.testing.assert_close(likelihood, -0.5 * X.square().sum(1) - math.log(2 * math.pi))


def dependent(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("points", len(x)):
        pyro.sample("x", dist.Normal(loc + x.roll(1), 1.0), obs=x)


def no_argument(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("points", 2):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:2])


def local(x):
    with pyro.plate("points", len(x)):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(shift, 1.0), obs=x)


def subsampling(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("points", len(x), subsample_size=2) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dependent, "each must depend on its own rows"),
        (no_argument, "an argument that has as many rows"),
        (local, "site 'shift' stands in the plate 'points'"),
        (subsampling, "must not subsample"),
        (partial(regression, X), r"shared names \['wieght'\]"),
    ],
)
def test_errors(model, message):
    with pytest.raises(ValueError, match=message):
        PointPotential(model, Y, shared=["wieght"] if "shared" in message else [])


def test_the_same_arrays_are_the_same_arguments():
    arrays = (np.ones(3), torch.ones(3), 2)
    arguments = RowArguments(regression, arrays, {"kind": "a"}, 3)
    assert arguments.are((np.ones(3), torch.ones(3), 2), {"kind": "a"})
    assert not arguments.are((np.zeros(3), torch.ones(3), 2), {"kind": "a"})
    assert not arguments.are((1.0, torch.ones(3), 2), {"kind": "a"})
