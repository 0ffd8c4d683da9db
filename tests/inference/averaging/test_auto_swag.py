"""The guide: where it is a point and where a distribution, and what it has learned of a model."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_ext.inference import AutoSWAG, Trainer
from pyro_ext.inference.averaging import SWAG

X = torch.linspace(0.5, 2.0, 20)


def model(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.sum(), rate), obs=x)


def trained(num_steps=30, **options):
    guide = AutoSWAG(model, **options)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), Trace_ELBO())
    points = []
    for _ in range(num_steps):
        points.append(guide.loc.detach().clone() if guide.prototype_trace else None)
        svi.step(X)
    return guide, points


def test_points_of_the_training_are_taken_in():
    guide, points = trained(start=10, every=4, max_rank=3)
    swag = SWAG(3)
    for point in points[10::4]:
        swag.collect(point)
    assert guide.num_collected == swag.num_collected == 5
    with torch.no_grad():
        found, wanted = guide.get_posterior(X), swag.distribution()
    torch.testing.assert_close(found.loc, wanted.loc)
    torch.testing.assert_close(found.covariance_matrix, wanted.covariance_matrix)


def test_a_point_in_training_and_a_distribution_elsewhere():
    guide, _ = trained(5)
    assert torch.equal(guide(X)["loc"], guide(X)["loc"])
    with torch.no_grad():
        assert not torch.equal(guide(X)["loc"], guide(X)["loc"])
    count = guide.num_collected
    guide.eval()
    assert not torch.equal(guide(X)["loc"], guide(X)["loc"]) and guide.num_collected == count
    early, _ = trained(5, start=100)
    assert early.num_collected == 0
    with pytest.warns(UserWarning, match="are a point, since 0 points were collected in 5 steps"):
        drawn = Predictive(early, num_samples=2)(X)["rate"]
    assert drawn[0] == drawn[1]


def test_steps_count_and_not_calls():
    """However many particles a step takes, and whatever is called when training is over."""
    guides = []
    for num_particles in (1, 5):
        guide = AutoSWAG(model, start=3)
        elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=False)
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), elbo)
        for _ in range(9):
            svi.step(X)
        guides.append(guide)
    assert [guide.num_collected for guide in guides] == [6, 6]
    for _ in range(4):  # the point after the last step, once
        guides[0](X)
    assert guides[0].num_collected == 7


def test_draws_are_normal_where_sites_are_free():
    guide, _ = trained(30)
    guide.eval()
    loc, scale = guide._loc_scale()
    torch.manual_seed(0)
    draws = Predictive(guide, num_samples=1000)(X)["rate"].log()
    median = guide.median(X)["rate"].log()
    assert float((draws.median() - median).abs() / draws.std()) < 0.2
    low, high = guide.quantiles([0.1, 0.9], X)["rate"]
    inside = ((draws.exp() > low) & (draws.exp() < high)).float().mean()
    assert float(inside) == pytest.approx(0.8, abs=0.06)  # 4.7 standard errors
    assert len(loc) == len(scale) == 3


def resumed(path, num_steps):
    torch.manual_seed(0)  # of where it starts
    pyro.clear_param_store()
    guide = AutoSWAG(model, max_rank=4, start=3)
    with torch.no_grad():
        guide(X)
    trainer = Trainer(guide, partial(torch.optim.SGD, lr=1e-2), seed=0)
    loss = Trace_ELBO().differentiable_loss
    trainer.run(lambda: loss(model, guide, X), num_steps, checkpoint=path, progress=False)
    return guide.state_dict()


def test_a_killed_training_goes_on(tmp_path):
    whole = resumed(tmp_path / "whole", 20)
    resumed(tmp_path / "part", 9)
    for name, value in resumed(tmp_path / "part", 20).items():
        assert torch.equal(value, whole[name]), name


def test_what_is_not_finite_is_refused():
    guide, _ = trained(3)
    with torch.no_grad():
        guide.loc[1] = torch.inf
    with pytest.raises(ValueError, match="loc must be finite, got inf in row 1"):
        guide(X)
