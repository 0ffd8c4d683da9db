"""Which function a Pyro model has, and that function and likelihood make up the model."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, Coreset, ModelFunction
from tests.inference.pseudocoresets.function_space_helpers import (
    Classifier,
    categorical,
    classes,
)

pytestmark = pytest.mark.usefixtures("float64")

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=GENERATOR)
COUNTS = torch.arange(40) % 5
NOISE = 0.5 + torch.rand(40, generator=GENERATOR)


def weight_of(x: Tensor) -> Any:
    return pyro.sample("weight", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))


def regression(x: Tensor, noise: Tensor, y: Tensor) -> None:
    """Noise that is known of each row."""
    f = x @ weight_of(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def student(x: Tensor, y: Tensor) -> None:
    f = x @ weight_of(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(3.0, f, 0.7), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    f = x @ weight_of(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(probs=f.sigmoid()), obs=y.to(f))


def binomial(x: Tensor, y: Tensor) -> None:
    f = x @ weight_of(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Binomial(7.0, logits=f), obs=y)


def poisson(x: Tensor, y: Tensor) -> None:
    f = x @ weight_of(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson(f.exp()), obs=y)


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
    (regression, (X, NOISE, X.sum(-1)), {}),
    (student, (X, X.sum(-1)), {}),
    (logistic, (X, (COUNTS > 2).long()), {}),
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
    for model, y in ((logistic, (COUNTS > 2).long()), (poisson, COUNTS)):
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
            latent_noise,
            x,
            y,
            function="f",
            likelihood=lambda f: dist.Normal(f.mean((0, -1)), 1.0),
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
