"""Kernels of GPyTorch against covariances, and regression with mixtures against closed forms."""

import math
import sys

import pyro.distributions as dist
import pytest
import torch
from scipy import special

from pyro_ext.models.wide_networks import (
    beta_variances,
    condition_mixture,
    equal_variances,
    horseshoe_variances,
    mixture_kernel,
    network_covariance,
    network_kernel,
    sample_covariances,
)

gpytorch = pytest.importorskip("gpytorch")

pytestmark = pytest.mark.usefixtures("float64")

INPUTS = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.2], [2.0, 0.1]], dtype=torch.float64)


def dense(kernel, *inputs):
    with torch.no_grad():
        return kernel(*inputs).to_dense()


@pytest.mark.parametrize("num_hidden", [1, 3])
@pytest.mark.parametrize("bias_scale", [0.0, 0.4])
def test_network_kernel_is_the_covariance(num_hidden, bias_scale):
    kernel = network_kernel(num_hidden, 1.3, bias_scale)
    expected = network_covariance(INPUTS, num_hidden, 1.3, bias_scale)
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
    expected = network_covariance(INPUTS, 1, 1.3, 0.4).expand(3, 4, 4)
    torch.testing.assert_close(dense(kernel, INPUTS), expected)


def test_mixture_kernel_is_a_sum_over_nodes():
    kernel = mixture_kernel(
        2, horseshoe_variances(), 3, num_jumps=6, weight_scale=1.3, bias_scale=0.4, seed=0
    )
    nodes = (INPUTS @ kernel.weights.mT + kernel.biases[:, None]).relu()
    assert nodes.shape == (3, 4, 6) and (kernel.drift > 0).all()
    smooth = (network_covariance(INPUTS, 1, 1.3, 0.4) - 0.4**2) / 1.3**2
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


def test_seeds_fix_kernels():
    first, again, other = (
        dense(mixture_kernel(2, horseshoe_variances(), 3, seed=seed), INPUTS) for seed in (0, 0, 1)
    )
    assert (first == again).all() and not (first == other).any()


def test_one_process_predicts_as_gaussians_do():
    covariance = network_covariance(INPUTS, 1, 1.3, 0.4)
    targets = torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.0, 0.1]])
    prediction = condition_mixture(covariance[None], targets, 0.2)
    inner = covariance[:2, :2] + 0.04 * torch.eye(2)
    fn = dist.MultivariateNormal(torch.zeros(2), inner)
    torch.testing.assert_close(prediction.log_evidence, fn.log_prob(targets).sum()[None])
    torch.testing.assert_close(prediction.log_marginal, prediction.log_evidence[0])
    gain = covariance[2:, :2] @ inner.inverse()
    torch.testing.assert_close(prediction.mean, targets @ gain.T)
    rest = (covariance[2:, 2:] - gain @ covariance[:2, 2:]).diagonal()
    torch.testing.assert_close(prediction.total_variance, rest.expand(3, 2))
    assert float(prediction.effective_size) == 1.0


def test_mixtures_weigh_processes_by_evidence():
    covariances = torch.stack([torch.eye(2), 9.0 * torch.ones(2, 2)])
    prediction = condition_mixture(covariances, torch.tensor([[3.0]]), 1.0)
    small, large = (dist.Normal(0.0, math.sqrt(v)).log_prob(torch.tensor(3.0)) for v in (2.0, 10.0))
    weight = (large - small).sigmoid()
    torch.testing.assert_close(prediction.weights[1], weight)
    torch.testing.assert_close(prediction.mean, (weight * 2.7)[None, None])
    second = (1.0 - weight) * 1.0 + weight * (0.9 + 2.7**2)
    torch.testing.assert_close(
        prediction.total_variance, (second - (weight * 2.7) ** 2)[None, None]
    )
    size = 1.0 / (weight**2 + (1.0 - weight) ** 2)
    torch.testing.assert_close(prediction.effective_size, size)


@pytest.mark.statistical
def test_evidence_of_the_horseshoe_limit_is_a_voigt_profile():
    """A Cauchy output with Gaussian noise. Within 5 standard errors: under 1 seed in 10,000."""
    covariances = sample_covariances(torch.ones(1, 1), horseshoe_variances(), 4000, seed=0)
    for target in (0.1, 1.0, 6.0):
        prediction = condition_mixture(covariances, torch.tensor([[target]]), 0.3)
        density = prediction.log_evidence.exp()
        error = 5.0 * float(density.std()) / math.sqrt(4000)
        expected = special.voigt_profile(target, 0.3, 0.5)
        assert float(prediction.log_marginal.exp()) == pytest.approx(expected, abs=error)


@pytest.mark.slow
@pytest.mark.statistical
def test_wide_networks_have_the_posterior_of_the_limit():
    """Predictive means of 20 batches within 5 standard errors: under 1 seed in 1,000 fails."""
    targets = torch.tensor([[0.8, -0.4]])
    means = []
    for width, seed in ((None, 0), (300, 1)):
        covariances = sample_covariances(
            INPUTS[:3], beta_variances(), 16_000, width=width, bias_scale=0.4, seed=seed
        )
        means.append(
            torch.stack(
                [condition_mixture(part, targets, 0.3).mean[0, 0] for part in covariances.chunk(20)]
            )
        )
    error = math.sqrt(sum(float(part.var()) for part in means) / 20)
    assert abs(float(means[0].mean() - means[1].mean())) < 5.0 * error
    # Noise does not hide what the mixture adds to the Gaussian process of the same mean.
    plain = condition_mixture(network_covariance(INPUTS[:3], 1, 1.0, 0.4)[None], targets, 0.3)
    assert abs(float(means[0].mean() - plain.mean[0, 0])) > 5.0 * error


def test_without_gpytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    for name in ("pyro_ext.models.wide_networks._gpytorch_kernels",):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import pyro_ext.models.wide_networks as package

    monkeypatch.delattr(package, "_gpytorch_kernels", raising=False)
    with pytest.raises(ImportError, match=r"pyro-ext\[gp\]"):
        network_kernel()


EYE = torch.eye(2)[None]


def test_bad_arguments_are_named(subtests):
    for call, message in [
        (lambda: condition_mixture(torch.eye(2), torch.ones(1, 1), 1.0), "covariances must have"),
        (lambda: condition_mixture(torch.eye(2)[None], torch.ones(3), 1.0), "targets must have"),
        (lambda: condition_mixture(torch.eye(2)[None], torch.ones(1, 3), 1.0), "targets must have"),
        (lambda: condition_mixture(torch.eye(2)[None], torch.ones(1, 1), 0.0), "noise_scale must"),
        (
            lambda: condition_mixture(EYE, torch.nan * EYE[0, :1], 1.0),
            "targets must be fin.* row 0",
        ),
        (lambda: condition_mixture(torch.inf * EYE, EYE[0, :1], 1.0), "covariances must be finite"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            call()
