"""The function that a model has, its likelihood, and its marginals against closed forms."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    Coreset,
    ModelFunction,
    diagonal_marginal,
    full_marginal,
    linearized_marginal,
)
from pyro_ext.nn import MLP
from tests.inference.pseudocoresets.function_space_helpers import Classifier, categorical, classes

pytestmark = pytest.mark.usefixtures("float64")

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=GENERATOR)
COUNTS = torch.arange(40) % 5
NOISE = 0.5 + torch.rand(40, generator=GENERATOR)


def weight_of(x: Tensor) -> Any:
    return pyro.sample("weight", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))


def of(family: Any) -> Any:
    """A model whose observations have a distribution of a linear function, and of what is known."""

    def model(x: Tensor, y: Tensor, *known: Tensor) -> None:
        f = x @ weight_of(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", family(f, *known), obs=y)

    return model


regression = of(lambda f, noise: dist.Normal(f, noise))  # noise that is known of each row
student = of(lambda f: dist.StudentT(3.0, f, 0.7))
logistic = of(lambda f: dist.Bernoulli(probs=f.sigmoid()))
binomial = of(lambda f: dist.Binomial(7.0, logits=f))
poisson = of(lambda f: dist.Poisson(f.exp()))


def several_outputs(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, torch.tensor([0.5, 2.0])).to_event(1), obs=y)


def masked(x: Tensor, y: Tensor) -> None:
    """Every other observation is missing, and one counts twice."""
    f = x @ weight_of(x)
    seen = torch.arange(len(x)) % 2 == 0
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=2.0), pyro.poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(f, 1.0), obs=y)


def latent_noise(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    f = x @ weight_of(x)
    pyro.deterministic("f", torch.stack([f, scale.log().expand(len(x))], -1), event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, scale), obs=y)


def of_location_and_scale(f: Tensor) -> dist.Normal:
    return dist.Normal(f[..., 0], f[..., 1].exp())


def parts(model: Any, *args: Tensor, size: int = 6, **options: Any) -> Any:
    guide = AutoPseudocoreset(model, *args, size=size, weights="scaled", seed=0)
    factors = torch.linspace(0.5, 2.0, size)
    coreset = Coreset(guide.pseudodata, factors * guide.weights)
    return guide, coreset, ModelFunction(guide.posterior, coreset, **options)


CASES: list[tuple[Any, tuple[Tensor, ...], dict[str, Any]]] = [
    (regression, (X, X.sum(-1), NOISE), {}),
    (student, (X, X.sum(-1)), {}),
    (logistic, (X, (COUNTS > 2).float()), {}),
    (binomial, (X, COUNTS), {}),
    (poisson, (X, COUNTS), {}),
    (several_outputs, (X, X[:, :2]), {}),
    (masked, (X, X.sum(-1)), {}),
    (latent_noise, (X, X.sum(-1)), {"function": "f", "likelihood": of_location_and_scale}),
]


@pytest.mark.parametrize(("model", "args", "options"), CASES)
@pytest.mark.parametrize("backend", ["trace", "eager"])
def test_function_and_likelihood_make_up_the_model(
    model: Any, args: Any, options: Any, backend: Any
) -> None:
    """The likelihood of the values at latent values is that of the model, gradients included."""
    args = tuple(arg.double() if arg.is_floating_point() else arg for arg in args)
    guide, coreset, function = parts(model, *args, backend=backend, **options)
    size = guide.posterior.layout.size
    flat = 0.5 * torch.randn(3, size, generator=torch.Generator().manual_seed(1))
    leaves = [row.clone().requires_grad_(row.is_floating_point()) for row in coreset.rows]
    moved = Coreset(tuple(leaves), coreset.weights.clone().requires_grad_())
    values = torch.func.vmap(function.at(moved))(flat)
    found = function.log_likelihood(values, moved)
    expected = guide.posterior.log_likelihood(flat, moved)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(function.log_likelihood(values.flatten(1), moved), expected)
    inputs = [leaf for leaf in (*moved.rows, moved.weights) if leaf.requires_grad]
    one = torch.autograd.grad(found.sum(), inputs, allow_unused=True, materialize_grads=True)
    other = torch.autograd.grad(expected.sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(one, other)
    assert function.shape == values.shape[1:]


def test_functions_are_unconstrained() -> None:
    """Logits of probabilities, and logarithms of rates."""
    for model, y in ((logistic, (COUNTS > 2).double()), (poisson, COUNTS)):
        _, coreset, function = parts(model, X.double(), y)
        flat = torch.tensor([0.3, -0.2, 0.5])
        torch.testing.assert_close(function.at(coreset)(flat), coreset.rows[0] @ flat)


def test_logits_of_a_classifier() -> None:
    """Those of the observed site are normalized, those of a deterministic site as they are."""
    x, y = classes()
    model = Classifier([5])
    _, coreset, own = parts(model, x, y, function="logits", likelihood=categorical)
    _, _, other = parts(model, x, y)
    flat = torch.randn(own._layout.size, generator=torch.Generator().manual_seed(1))
    logits = own.at(coreset)(flat)
    assert logits.shape == (6, 4)
    torch.testing.assert_close(other.at(coreset)(flat), logits.log_softmax(-1))
    assert float(logits.logsumexp(-1).abs().min()) > 1e-3
    values = logits[None] + torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        own.log_likelihood(values, coreset), other.log_likelihood(values, coreset)
    )


def test_errors() -> None:
    x, y = X.double(), X.sum(-1).double()
    with pytest.raises(ValueError, match="given together.*got function alone"):
        parts(student, x, y, function="f")
    with pytest.raises(ValueError, match="given together.*got likelihood alone"):
        parts(student, x, y, likelihood=categorical)
    with pytest.raises(ValueError, match="scale of site 'y' depends on latent values"):
        parts(latent_noise, x, y)
    with pytest.raises(ValueError, match=r"one of \['f'\], got 'g'"):
        parts(latent_noise, x, y, function="g", likelihood=of_location_and_scale)
    with pytest.raises(ValueError, match=r"likelihood must map values .* the shape \(6,\)"):
        parts(
            latent_noise, x, y, function="f", likelihood=lambda f: dist.Normal(f.mean((0, -1)), 1.0)
        )

    def gamma(x: Tensor, y: Tensor) -> None:
        f = x @ weight_of(x)
        pyro.deterministic("total", f.sum())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Gamma(2.0, f.exp()), obs=y)

    with pytest.raises(ValueError, match="site 'y' has a Gamma distribution"):
        parts(gamma, x, y.exp())
    with pytest.raises(ValueError, match=r"a row of values for each observation.*'total'.*\(\)"):
        parts(gamma, x, y.exp(), function="total", likelihood=lambda f: dist.Gamma(2.0, f.exp()))

    def two_sites(x: Tensor, y: Tensor) -> None:
        f = x @ weight_of(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 1.0), obs=y)
            pyro.sample("z", dist.Normal(f, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"model must have one observed site, got \['y', 'z'\]"):
        parts(two_sites, x, y)


NETWORK = MLP(3, [4], 2, torch.nn.Tanh)
NAMES = {name: parameter.shape for name, parameter in NETWORK.named_parameters()}
SIZE = sum(shape.numel() for shape in NAMES.values())


def network_at(inputs: Tensor) -> Any:
    """Outputs of a network with flat parameters."""

    def function(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in NAMES.values()])
        values = {
            name: part.reshape(shape)
            for (name, shape), part in zip(NAMES.items(), parts, strict=True)
        }
        result: Tensor = functional_call(NETWORK, values, (inputs,))
        return result

    return function


def gaussian(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator) / size**0.5
    return torch.randn(size, generator=generator), root @ root.mT + 0.1 * torch.eye(size)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Self-check 1 of the spec: linear functions -------------------------------------------------------


@pytest.mark.parametrize("num_points", [2, 5])
def test_linear_push_forward(num_points: int) -> None:
    """Exact, also with more points than parameters, where the covariance is singular."""
    inputs, (mean, covariance) = some(num_points, 3), gaussian(3)
    distribution = linearized_marginal(lambda flat: inputs @ flat, mean, covariance)
    torch.testing.assert_close(distribution.mean, inputs @ mean)
    expected = inputs @ covariance @ inputs.mT + 1e-8 * torch.eye(num_points)
    torch.testing.assert_close(distribution.covariance_matrix, expected)
    lower = distribution.scale_tril
    torch.testing.assert_close(lower, lower.tril())
    assert bool((lower.diagonal() > 0).all())


def test_independent_parameters() -> None:
    inputs, mean, variances = some(4, 3), some(3, seed=1), some(3, seed=2).exp()
    distribution = linearized_marginal(lambda flat: inputs @ flat, mean, variances)
    other = linearized_marginal(lambda flat: inputs @ flat, mean, variances.diag())
    torch.testing.assert_close(distribution.covariance_matrix, other.covariance_matrix)
    torch.testing.assert_close(
        distribution.variance, inputs.square() @ variances + 1e-8, rtol=1e-10, atol=0
    )


# Moments of snapshots -----------------------------------------------------------------------------


def test_moments_of_snapshots() -> None:
    """Mean and covariance with the divisor of the spec, of a network's outputs."""
    inputs, snapshots = some(6, 3), some(5, SIZE, seed=1)
    function = network_at(inputs)
    values = torch.stack([function(row) for row in snapshots])  # (5, 6, 2)
    average = values.mean(0)
    variance = values.square().mean(0) - average.square()
    for mean, expected in (("last", values[-1]), ("average", average)):
        distribution = diagonal_marginal(function, snapshots, mean)
        torch.testing.assert_close(distribution.mean, expected)
        torch.testing.assert_close(distribution.variance, variance, rtol=1e-7, atol=2e-8)
        assert distribution.event_shape == (6, 2)
        full = full_marginal(function, snapshots, mean)
        torch.testing.assert_close(full.mean, expected)
        products = (values[..., None] * values[..., None, :]).mean(0)
        expected_matrix = products - average[..., None] * average[..., None, :]
        torch.testing.assert_close(
            full.base_dist.covariance_matrix, expected_matrix, rtol=1e-7, atol=2e-8
        )


def test_values_without_output_dimension() -> None:
    inputs, snapshots = some(4, 3), some(5, 3, seed=1)
    distribution = full_marginal(lambda flat: inputs @ flat, snapshots)
    assert distribution.event_shape == (4, 1)
    diagonal = diagonal_marginal(lambda flat: inputs @ flat, snapshots)
    assert diagonal.event_shape == (4,)
    torch.testing.assert_close(distribution.variance[:, 0], diagonal.variance)


# Gradients ----------------------------------------------------------------------------------------


def distributions(inputs: Tensor) -> dict[str, Any]:
    """One of each kind, with fewer snapshots than values."""
    function, snapshots = network_at(inputs), some(3, SIZE, seed=1)
    mean, covariance = gaussian(SIZE, seed=2)
    return {
        "diagonal": diagonal_marginal(function, snapshots),
        "average": diagonal_marginal(function, snapshots, "average"),
        "full": full_marginal(function, snapshots),
        "jacobian": linearized_marginal(function, mean, covariance),
        "independent": linearized_marginal(function, mean, covariance.diagonal()),
    }


@pytest.mark.parametrize("kind", ["diagonal", "average", "full", "jacobian", "independent"])
def test_gradients_in_the_inputs(kind: str) -> None:
    """Of means and of covariances, against differences."""
    inputs, direction = some(4, 3), some(4, 3, seed=5)

    def moments(length: Tensor) -> Tensor:
        distribution = distributions(inputs + length * direction)[kind]
        base = distribution.base_dist if kind == "full" else distribution
        if hasattr(base, "covariance_matrix"):
            spread = base.covariance_matrix
        else:
            spread = distribution.variance
        return torch.cat([distribution.mean.flatten(), spread.flatten()])

    zero = torch.zeros((), requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(moments, zero)
    assert torch.autograd.gradcheck(moments, zero, rtol=1e-6, atol=1e-7)
    assert float(jacobian.abs().max()) > 0.1


def test_single_precision_of_singular_covariances() -> None:
    """Fewer snapshots than outputs: draws and gradients are finite, and those of double."""
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = some(4, 3).to(dtype).requires_grad_()
        weight = some(3, 12 * 3, seed=1).to(dtype)

        def function(flat: Tensor, inputs: Tensor = inputs) -> Tensor:
            return (inputs @ flat.reshape(3, 12)).tanh()

        distribution = full_marginal(function, weight)
        noise = some(7, 4, 12, seed=3).to(dtype)
        draws = distribution.mean + torch.einsum(
            "pij,spj->spi", distribution.base_dist.scale_tril, noise
        )
        loss = -dist.Categorical(logits=draws).log_prob(torch.arange(4)).mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=2e-4)


# What is not there --------------------------------------------------------------------------------


def test_what_is_not_finite_shows_in_the_draws() -> None:
    """No error from the factorization: training reports a loss that is not finite."""
    inputs, mean = some(4, 3), some(3)
    distribution = linearized_marginal(
        lambda flat: inputs @ flat, mean, torch.full((3, 3), torch.nan)
    )
    assert bool(distribution.rsample().isnan().all())
    distribution = diagonal_marginal(lambda flat: inputs @ flat, torch.full((2, 3), torch.nan))
    assert bool(distribution.rsample().isnan().all())
