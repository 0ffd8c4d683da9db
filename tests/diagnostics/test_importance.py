"""Importance weights of guides against exact evidence, and what has none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_ext.diagnostics import psis

X = torch.linspace(-1.0, 3.0, 20)


def model(x, subsample_size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x), subsample_size=subsample_size) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def guide_of(scale):
    """A guide whose standard deviation is so many times the posterior's."""
    precision = len(X) + 0.25
    mean = X.sum() / precision

    def guide(x, subsample_size=None):
        pyro.sample("loc", dist.Normal(mean, scale * precision**-0.5))

    return guide


def test_of_an_exact_guide_and_of_ones_that_are_not():
    covariance = 4.0 * torch.ones(20, 20) + torch.eye(20)
    evidence = dist.MultivariateNormal(torch.zeros(20), covariance).log_prob(X)
    exact = psis(guide_of(1.0), model, X, num_samples=200, seed=0)
    assert exact.log_evidence == pytest.approx(float(evidence), abs=1e-3)
    assert exact.effective_sample_size == pytest.approx(200.0, rel=1e-3)
    wide = psis(guide_of(1.5), model, X, num_samples=400, seed=0)
    assert wide.k_hat < 0.7 and wide.log_evidence == pytest.approx(float(evidence), abs=0.2)
    mean = (wide.log_weights.exp() * wide.samples["loc"].double()).sum()
    assert mean == pytest.approx(float(X.sum() / 20.25), abs=0.05)
    narrow = psis(guide_of(0.4), model, X, num_samples=400, seed=0)
    assert narrow.k_hat > 0.7 and narrow.k_hat > wide.k_hat
    again = psis(guide_of(0.4), model, X, num_samples=400, seed=0)
    assert torch.equal(narrow.samples["loc"], again.samples["loc"])


def test_discrete_sites_are_summed_out():
    x = torch.tensor([-2.0, 2.5, 3.0])

    def mixture(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            sign = pyro.sample("sign", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(loc * (2 * sign - 1), 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(0.0, 3.0))

    grid = torch.linspace(-15.0, 15.0, 3001)
    parts = torch.stack([dist.Normal(side * grid[:, None], 1.0).log_prob(x) for side in (-1, 1)])
    log_joint = (parts.logsumexp(0) - torch.tensor(2.0).log()).sum(-1)
    log_joint = log_joint + dist.Normal(0.0, 3.0).log_prob(grid)
    evidence = torch.trapezoid(log_joint.exp(), grid).log()
    found = psis(guide, mixture, x, num_samples=600, seed=1)
    assert found.log_evidence == pytest.approx(float(evidence), abs=0.15)
    assert set(found.samples) == {"loc"}


def test_guides_of_pyro_before_training():
    guide = AutoNormal(model)
    guide(X)
    found = psis(guide, model, X, num_samples=100, seed=0)
    assert found.samples["loc"].shape == (100,) and found.k_hat > 0.0
    pyro.clear_param_store()


def test_what_has_no_weights():
    with pytest.raises(ValueError, match="the plate 'rows' subsamples"):
        psis(guide_of(1.0), model, X, 5)
    with pytest.raises(ValueError, match=r"it lacks \['loc'\]"):
        psis(lambda x: None, model, X)
