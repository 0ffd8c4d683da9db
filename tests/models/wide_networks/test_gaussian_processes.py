"""Kernels of GPyTorch against covariances."""

import sys

import pytest
import torch

from pyro_ext.models.wide_networks import (
    beta_variances,
    equal_variances,
    horseshoe_variances,
    mixture_kernel,
    network_kernel,
    sample_covariances,
)

gpytorch = pytest.importorskip("gpytorch")

pytestmark = pytest.mark.usefixtures("float64")

INPUTS = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.2], [2.0, 0.1]], dtype=torch.float64)


def dense(kernel, *inputs):
    with torch.no_grad():
        return kernel(*inputs).to_dense()


def covariance(num_hidden, bias_scale):
    options = dict(num_hidden=num_hidden, weight_scale=1.3, bias_scale=bias_scale)
    return sample_covariances(INPUTS, equal_variances(), 1, **options)[0]


@pytest.mark.parametrize("num_hidden", [1, 3])
@pytest.mark.parametrize("bias_scale", [0.0, 0.4])
def test_network_kernel_is_the_covariance(num_hidden, bias_scale):
    kernel = network_kernel(num_hidden, 1.3, bias_scale)
    expected = covariance(num_hidden, bias_scale)
    torch.testing.assert_close(dense(kernel, INPUTS), expected)
    torch.testing.assert_close(dense(kernel, INPUTS[:1], INPUTS[1:]), expected[:1, 1:])
    with torch.no_grad():
        torch.testing.assert_close(kernel(INPUTS, diag=True), expected.diagonal())
    batch = torch.stack([INPUTS, 2.0 * INPUTS])
    torch.testing.assert_close(dense(kernel, batch)[0], expected)


def test_a_gaussian_process_fits_the_variances():
    """The gradient of its loss is that of finite differences, and steps make it smaller."""

    class Regression(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(INPUTS, INPUTS[:, 0].sin(), likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = network_kernel(2, 1.3, 0.4)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    process = Regression(likelihood).train()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, process)

    def loss():
        return -marginal(process(INPUTS), process.train_targets)

    raw = process.covar_module.raw_weight_variance
    loss().backward()
    with torch.no_grad():
        ends = []
        for step in (1e-5, -2e-5):
            raw += step
            ends.append(float(loss()))
        raw += 1e-5
    assert float(raw.grad) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)
    start = loss().item()
    optimizer = torch.optim.Adam(process.parameters(), 0.1)
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < start


def test_mixture_kernel_without_jumps_is_that_of_the_network():
    kernel = mixture_kernel(2, equal_variances(), 3, weight_scale=1.3, bias_scale=0.4)
    expected = covariance(1, 0.4).expand(3, 4, 4)
    torch.testing.assert_close(dense(kernel, INPUTS), expected)


def test_mixture_kernel_is_a_sum_over_nodes():
    kernel = mixture_kernel(
        2, horseshoe_variances(), 3, num_jumps=6, weight_scale=1.3, bias_scale=0.4, seed=0
    )
    nodes = (INPUTS @ kernel.weights.mT + kernel.biases[:, None]).relu()
    assert nodes.shape == (3, 4, 6) and (kernel.drift > 0).all()
    smooth = (covariance(1, 0.4) - 0.4**2) / 1.3**2
    sums = torch.einsum("sj,snj,smj->snm", kernel.jumps, nodes, nodes)
    expected = 0.4**2 + 1.3**2 * (kernel.drift[:, None, None] * smooth + sums)
    torch.testing.assert_close(dense(kernel, INPUTS), expected)
    torch.testing.assert_close(dense(kernel, INPUTS[:1], INPUTS[1:]), expected[:, :1, 1:])
    with torch.no_grad():
        diagonal = kernel(INPUTS, diag=True)
    torch.testing.assert_close(diagonal, expected.diagonal(dim1=-2, dim2=-1))


@pytest.mark.statistical
def test_mixture_kernel_has_the_law_of_the_covariances():
    """Means and mean squares within 5 standard errors: less than 1 seed in 10,000 fails."""
    number = 4000
    kernel = mixture_kernel(2, beta_variances(), number, num_jumps=40, bias_scale=0.4, seed=0)
    ours = dense(kernel, INPUTS)
    other = sample_covariances(
        INPUTS, beta_variances(), number, num_jumps=40, bias_scale=0.4, seed=1
    )
    for power in (1, 2):
        first, second = ours**power, other**power
        error = ((first.var(0) + second.var(0)) / number).sqrt()
        assert ((first.mean(0) - second.mean(0)).abs() <= 5.0 * error).all()


def test_without_gpytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    for name in ("pyro_ext.models.wide_networks._gpytorch_kernels",):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import pyro_ext.models.wide_networks as package

    monkeypatch.delattr(package, "_gpytorch_kernels", raising=False)
    with pytest.raises(ImportError, match=r"pyro-ext\[gp\]"):
        network_kernel()
