"""Covariances through ReLU layers against quadrature, random ones against known transforms."""

import math

import pytest
import torch
from scipy import integrate, stats

from pyro_ext.models.wide_networks import (
    bernoulli_variances,
    beta_variances,
    equal_variances,
    horseshoe_variances,
    inverse_gamma_variances,
    measure_variances,
    pruning_error,
    relu_covariance,
    sample_covariances,
    sample_outputs,
    square_correlation,
    step_covariance,
)
from pyro_ext.random_measures import GeneralizedBFRYProcess, GeneralizedGammaProcess

pytestmark = pytest.mark.usefixtures("float64")


CASES = [(0.4, 1.0, 2.0), (-1.1, 1.5, 1.0), (0.0, 0.3, 0.7), (1.2, 1.3, 1.2)]


def positive_part(loc, variance):
    """Mean of the positive part of a Gaussian."""
    scale = math.sqrt(variance)
    return loc * stats.norm.cdf(loc / scale) + scale * stats.norm.pdf(loc / scale)


@pytest.mark.parametrize(("cross", "left", "right"), CASES)
def test_covariances_are_those_of_quadrature(cross, left, right):
    """Over the first variable; given it the second is Gaussian."""
    first = stats.norm(scale=math.sqrt(left))
    rest = right - cross**2 / left

    def product(z):
        return z * positive_part(cross / left * z, rest) * first.pdf(z)

    def both(z):
        return stats.norm.cdf(cross / left * z / math.sqrt(rest)) * first.pdf(z)

    arguments = (torch.tensor(value) for value in (cross, left, right))
    ours = relu_covariance(*arguments)
    assert float(ours) == pytest.approx(integrate.quad(product, 0.0, 12.0)[0], abs=1e-9)
    arguments = (torch.tensor(value) for value in (cross, left, right))
    ours = step_covariance(*arguments)
    assert float(ours) == pytest.approx(integrate.quad(both, 0.0, 12.0)[0], abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_and_their_gradients(dtype):
    """At equal and at opposite nodes, where parts of the formula have infinite slopes."""
    precision = torch.finfo(dtype).eps ** 0.5
    variance = torch.tensor([4.0, 4.0, 0.0], dtype=dtype, requires_grad=True)
    value = relu_covariance(variance * torch.tensor([1.0, -1.0, 1.0]).to(dtype), variance, variance)
    torch.testing.assert_close(
        value, torch.tensor([2.0, 0.0, 0.0], dtype=dtype), atol=10 * precision, rtol=0
    )
    value.sum().backward()
    assert variance.grad.isfinite().all()
    expected = torch.tensor([0.5, 0.0], dtype=dtype)
    torch.testing.assert_close(variance.grad[:2], expected, atol=10 * precision, rtol=0)


def test_equal_nodes_in_float32_have_all_their_digits():
    variance = torch.tensor([0.3, 1.0, 7.7], dtype=torch.float32)
    value = step_covariance(variance, variance, variance)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.full_like(value, 0.5), rtol=2e-7, atol=0)


def test_gradients_are_those_of_differences():
    arguments = [torch.tensor([case[i] for case in CASES], requires_grad=True) for i in range(3)]
    assert torch.autograd.gradcheck(relu_covariance, arguments)
    assert torch.autograd.gradcheck(step_covariance, arguments)


def by_hand(inputs, num_hidden, weight=1.3, bias=0.4):
    """Covariance of an output with equal variances of nodes, by the arc-cosine kernel."""
    found = bias**2 + weight**2 * inputs @ inputs.T / 2
    for _ in range(num_hidden):
        size = (found.diagonal()[:, None] * found.diagonal()).sqrt()
        angle = (found / size).clamp(-1.0, 1.0).arccos()
        cosines = angle.sin() + (math.pi - angle) * angle.cos()
        found = bias**2 + weight**2 * size * cosines / (2 * math.pi)
    return found


ONE = torch.ones(1, 1, dtype=torch.float64)


INPUTS = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.2], [2.0, 0.1]], dtype=torch.float64)


TRANSFORMS = {  # of the variance of an output at the input one, with one hidden layer
    "horseshoe": (horseshoe_variances(), lambda t: math.exp(-math.sqrt(t / 2))),
    "beta": (beta_variances(), lambda t: (1 + 2 * t) ** -0.25),
    "bernoulli": (bernoulli_variances(), lambda t: math.exp(-0.5 * (1 - (1 + 2 * t) ** -0.5))),
    "equal": (equal_variances(), lambda t: math.exp(-t / 2)),
}


@pytest.mark.statistical
@pytest.mark.parametrize("width", [None, 1000])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_variances_of_outputs_have_the_laplace_transform_of_the_limit(name, width):
    """Within 5 standard errors, and 0.003 for a finite width: less than 1 seed in 10,000 fails."""
    variances, transform = TRANSFORMS[name]
    number = 4000
    covariances = sample_covariances(
        ONE, variances, number, width=width, num_jumps=200, seed=7
    ).flatten()
    for t in (0.3, 2.0):
        values = (-t * covariances).exp()
        error = 5.0 * float(values.std()) / math.sqrt(number) + (0.003 if width else 1e-6)
        assert float(values.mean()) == pytest.approx(transform(t), abs=error)


@pytest.mark.parametrize("num_hidden", [1, 2, 3])
def test_without_jumps_the_covariance_is_not_random(num_hidden):
    drawn = sample_covariances(
        INPUTS, equal_variances(), 3, num_hidden=num_hidden, weight_scale=1.3, bias_scale=0.4
    )
    expected = by_hand(INPUTS, num_hidden)
    torch.testing.assert_close(drawn, expected.expand(3, 4, 4), rtol=1e-7, atol=1e-7)


@pytest.mark.statistical
@pytest.mark.parametrize(("num_jumps", "width"), [(1, None), (30, None), (100, 50)])
def test_the_mean_is_the_covariance_of_the_gaussian_process(num_jumps, width):
    """Entries within 4.8 standard errors: less than 1 seed in 10,000 fails."""
    variances, number = beta_variances(), 4000
    if width is not None:  # whose mean is one at any width
        variances = inverse_gamma_variances(3.0)
    drawn = sample_covariances(
        INPUTS,
        variances,
        number,
        width=width,
        num_jumps=num_jumps,
        weight_scale=1.3,
        bias_scale=0.4,
        seed=3,
    )
    error = (drawn.mean(0) - by_hand(INPUTS, 1)).abs()
    assert (error <= 4.8 * drawn.std(0) / math.sqrt(number)).all()


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["horseshoe", "gamma", "with drift"])
def test_deep_networks_come_near_to_the_limit(name):
    """Two inputs, two layers: sums of outputs, whose p-value is below 1e-4 for 1 seed in 10,000."""
    process = GeneralizedGammaProcess(1.0, 0.0, 1.0)
    variances = {
        "horseshoe": horseshoe_variances(),
        "gamma": measure_variances(process),
        "with drift": measure_variances(process, drift=0.7),
    }[name]
    samples = []
    for width, seed in ((None, 1), (150, 2)):
        covariances = sample_covariances(
            INPUTS[:2], variances, 3000, width=width, num_hidden=2, bias_scale=0.4, seed=seed
        )
        outputs = sample_outputs(covariances, 1, seed + 10)[:, 0]
        samples.append((outputs[:, 0] + 0.5 * outputs[:, 1]).numpy())
    assert stats.ks_2samp(*samples).pvalue > 1e-4
    # And the scale of one of them is not another's.
    assert stats.ks_2samp(samples[0], 1.7 * samples[1]).pvalue < 1e-4


@pytest.mark.statistical
def test_outputs_have_their_covariance_also_where_it_is_singular():
    """Entries within 4.8 standard errors: less than 1 seed in 10,000 fails."""
    root = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]])
    covariance = root.T @ root
    drawn = sample_outputs(covariance.expand(2, 3, 3), 20_000, seed=0)
    assert drawn.shape == (2, 20_000, 3)
    products = drawn[0, :, :, None] * drawn[0, :, None, :]
    error = (products.mean(0) - covariance).abs()
    assert (error <= 4.8 * products.std(0) / math.sqrt(20_000)).all()
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariances_have_the_type_of_the_inputs(dtype):
    for width in (None, 20):
        drawn = sample_covariances(INPUTS.to(dtype), horseshoe_variances(), 5, width=width)
        assert drawn.dtype == dtype and sample_outputs(drawn, 2).dtype == dtype


def test_correlations_of_squares():
    for variances, expected in (
        (beta_variances(), 2 / 7),
        (bernoulli_variances(), 0.3),
        (equal_variances(), 0.0),
    ):
        assert float(square_correlation(variances, 0.5, 1.5)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="variances must have a sum with a finite variance"):
        square_correlation(horseshoe_variances(), 0.5, 1.5)


def test_what_pruning_costs():
    levels = torch.tensor([1e-4, 1e-2])
    horseshoe = pruning_error(horseshoe_variances(), levels, 0.5, weight_scale=2.0)
    torch.testing.assert_close(horseshoe, 4.0 * 0.5 * levels.sqrt())
    drifting = measure_variances(GeneralizedGammaProcess(1.0, 0.0, 1.0), drift=0.7)
    torch.testing.assert_close(
        pruning_error(drifting, levels, 0.5), 0.5 * (0.7 - torch.expm1(-levels))
    )


@pytest.mark.statistical
@pytest.mark.parametrize("discount", [0.1, 0.3])
def test_pruned_wide_networks_lose_what_the_limit_does(discount):
    """Within 5% of theory, four standard errors: less than 1 seed in 1,000 fails."""
    measure = GeneralizedBFRYProcess(5.0 - discount, discount, 5.0)
    variances = measure_variances(measure.rescale(1.0 / measure.mean))
    drawn = variances.distribution(1000).sample((2000, 1000))
    for level in (1e-3, 1e-2):
        lost = (drawn * (drawn <= level)).sum(-1).mean() / 2.0
        theory = pruning_error(variances, torch.tensor(level), 0.5)
        assert float(lost) == pytest.approx(float(theory), rel=0.05)
