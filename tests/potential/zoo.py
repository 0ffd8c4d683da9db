"""Pyro models as people write them, each with data, that a potential has to handle unchanged.

A builder takes ``full``: whether plates that subsample take all of their elements instead, which
gives the same model over all of the data. Data follow the default dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

__all__ = ["ZOO", "Problem"]


class Problem(NamedTuple):
    """A model and its arguments."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


ZOO: dict[str, Callable[[bool], Problem]] = {}


def zoo(build: Callable[[bool], Problem]) -> Callable[[bool], Problem]:
    """Add a builder under its own name."""
    ZOO[build.__name__] = build
    return build


def draws(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that depend on nothing but their seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def standard(*shape: int) -> Any:
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


# Regressions --------------------------------------------------------------------------------------


@zoo
def logistic_regression(full: bool) -> Problem:
    def model(x: Tensor, y: Tensor, size: int | None) -> None:
        weight = pyro.sample("weight", standard(x.shape[1]))
        intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            logits = x[index] @ weight + intercept
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y[index])

    x = draws(11, 3)
    return Problem(model, (x, (draws(11, seed=1) > 0).to(x), None if full else 4))


@zoo
def hierarchical_regression(full: bool) -> Problem:
    def model(group: Tensor, x: Tensor, y: Tensor, size: int | None) -> None:
        mean = pyro.sample("mean", dist.StudentT(3.0, 0.0, 5.0))
        spread = pyro.sample("spread", dist.HalfCauchy(1.0))
        with pyro.plate("groups", 3):
            slope = pyro.sample("slope", dist.Normal(mean, spread))
        noise = pyro.sample("noise", dist.InverseGamma(2.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            loc = slope[group[index]] * x[index]
            pyro.sample("y", dist.Normal(loc, noise), obs=y[index])

    return Problem(model, (torch.arange(10) % 3, draws(10), draws(10, seed=1), None if full else 5))


@zoo
def poisson_regression(full: bool) -> Problem:
    """Several likelihoods of counts and classes under the same plate."""

    def model(x: Tensor, size: int | None, count: Tensor, label: Tensor) -> None:
        rate = pyro.sample("rate", standard(2))
        concentration = pyro.sample("concentration", dist.Gamma(2.0, 1.0))
        table = pyro.sample("table", standard(2, 3))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            loc = x[index] @ rate
            pyro.sample("poisson", dist.Poisson(loc.exp()), obs=count[index])
            pyro.sample(
                "negative_binomial",
                dist.NegativeBinomial(concentration, logits=loc),
                obs=count[index],
            )
            pyro.sample("flag", dist.Bernoulli(logits=loc), obs=(count[index] > 1).to(x))
            pyro.sample("label", dist.Categorical(logits=x[index] @ table), obs=label[index])

    x = draws(7, 2)
    kwargs = {"count": torch.arange(7).to(x) % 4, "label": torch.arange(7) % 3}
    return Problem(model, (x, None if full else 3), kwargs)


@zoo
def multinomial_counts(full: bool) -> Problem:
    def model(counts: Tensor, size: int | None) -> None:
        logits = pyro.sample("logits", standard(3))
        with pyro.plate("data", len(counts), subsample_size=size) as index:
            pyro.sample("counts", dist.Multinomial(5, logits=logits), obs=counts[index])

    counts = torch.tensor([[5, 0, 0], [1, 2, 2], [0, 4, 1], [2, 2, 1]])
    return Problem(model, (counts.to(draws(1)), None if full else 3))


@zoo
def ordinal_regression(full: bool) -> Problem:
    """Improper priors, one of them on ordered vectors."""

    def model(x: Tensor, y: Tensor, size: int | None) -> None:
        slope = pyro.sample("slope", dist.ImproperUniform(constraints.real, (), ()))
        cuts = pyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
        pyro.sample("regularization", dist.Normal(cuts, 2.0).to_event(1), obs=torch.zeros(3))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("y", dist.OrderedLogistic(slope * x[index], cuts), obs=y[index])

    return Problem(model, (draws(9), torch.arange(9) % 4, None if full else 4))


# Plates -------------------------------------------------------------------------------------------


@zoo
def nested_subsampled_plates(full: bool) -> Problem:
    """Both plates subsample, neither size is divided by its subsample; local latents everywhere."""

    def model(y: Tensor, sizes: tuple[int | None, int | None]) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        rows = pyro.plate("rows", y.shape[0], subsample_size=sizes[0], dim=-2)
        columns = pyro.plate("columns", y.shape[1], subsample_size=sizes[1], dim=-1)
        with rows:
            row = pyro.sample("row", dist.LogNormal(0.0, scale))
        with columns:
            column = pyro.sample("column", dist.Dirichlet(torch.ones(3)))
            share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with rows as i, columns as j:
            cell = pyro.sample("cell", dist.Gamma(1.0 + row, 1.0))
            loc = pyro.deterministic("loc", cell * column[..., 0] + share, event_dim=0)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y[i][:, j])

    return Problem(model, (draws(5, 4), (None, None) if full else (2, 3)))


@zoo
def subsampled_inside_full(full: bool) -> Problem:
    def model(y: Tensor, size: int | None) -> None:
        with pyro.plate("series", y.shape[0], dim=-2):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", y.shape[1], subsample_size=size, dim=-1) as index:
                pyro.sample("y", dist.Laplace(loc, scale), obs=y[:, index])

    return Problem(model, (draws(2, 7), None if full else 3))


@zoo
def crossed_plates(full: bool) -> Problem:
    """Two plates that subsample side by side, not one inside the other."""

    def model(x: Tensor, y: Tensor, sizes: tuple[int | None, int | None]) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("first", len(x), subsample_size=sizes[0]) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        with pyro.plate("second", len(y), subsample_size=sizes[1]) as index:
            pyro.sample("y", dist.Cauchy(loc, 2.0), obs=y[index])

    return Problem(model, (draws(5), draws(3, seed=1), (None, None) if full else (2, 2)))


@zoo
def local_latents(full: bool) -> Problem:
    """Latent values of each element of a subsampled plate, constrained, of event rank 0 to 2."""

    def model(y: Tensor, size: int | None) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=size):
            batch = pyro.subsample(y, event_dim=1)
            scale = pyro.sample("scale", dist.Gamma(2.0, rate))
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
            low = pyro.sample("low", dist.Normal(0.0, 1.0))
            high = pyro.sample("high", dist.Uniform(low, low + 2.0))
            pyro.deterministic("total", (scale[..., None] * share), event_dim=1)
            loc = torch.stack([share[..., 0], share[..., 1] + high], -1)
            factor = scale[..., None, None] * factor
            pyro.sample("y", dist.MultivariateNormal(loc, scale_tril=factor), obs=batch)

    return Problem(model, (draws(7, 2), None if full else 3))


@zoo
def sequential_plate(full: bool) -> Problem:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for i in pyro.plate("series", len(y)):
            scale = pyro.sample(f"scale_{i}", dist.Exponential(1.0))
            with pyro.plate(f"data_{i}", y.shape[1]):
                pyro.sample(f"y_{i}", dist.Normal(mean, scale), obs=y[i])

    return Problem(model, (draws(3, 4),))


# Mixtures, matrices, time -------------------------------------------------------------------------


@zoo
def gaussian_mixture(full: bool) -> Problem:
    def model(x: Tensor, size: int | None) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", standard(2))
            scales = pyro.sample("scales", dist.LogNormal(0.0, 0.3).expand([2]).to_event(1))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            mixture = dist.MixtureSameFamily(
                dist.Categorical(weights), dist.Normal(locs, scales).to_event(1)
            )
            pyro.sample("x", mixture, obs=x[index])

    return Problem(model, (draws(8, 2), None if full else 3))


@zoo
def continuous_mixture_prior(full: bool) -> Problem:
    """A latent site whose own distribution is a mixture."""

    def model(x: Tensor) -> None:
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7])), dist.LogNormal(torch.zeros(2), 1.0)
        )
        with pyro.plate("features", 2):
            scale = pyro.sample("scale", mixture)
        pyro.sample("x", dist.Normal(0.0, scale).to_event(1), obs=x)

    return Problem(model, (draws(2),))


# Networks -----------------------------------------------------------------------------------------


class BayesianRegression(PyroModule):  # type: ignore[misc]
    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size
        self.hidden = PyroModule[nn.Linear](2, 3)
        # These distributions are made while validation is switched on.
        self.hidden.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        self.hidden.bias = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        self.scale = PyroSample(dist.HalfNormal(1.0))
        self.out = PyroSample(lambda self: dist.Normal(0.0, self.scale).expand([3]).to_event(1))
        self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        plate = pyro.plate("data", len(x), subsample_size=self.size)
        with plate as index:
            x, y = x[index], y[index]
        loc: Tensor = torch.relu(self.hidden(x)) @ self.out
        with plate:
            pyro.sample("y", dist.Normal(loc, self.noise), obs=y)
        return loc


@zoo
def pyro_module(full: bool) -> Problem:
    return Problem(BayesianRegression(None if full else 4), (draws(10, 2), draws(10, seed=1)))


@zoo
def lifted_module(full: bool) -> Problem:
    """A torch module lifted in place, with a layer norm left as a parameter and dropout asleep."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(2, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2)
        )
    network.eval()
    to_pyro_module_(network)
    for layer in (network[0], network[4]):
        for name, value in list(layer.named_parameters(recurse=False)):
            prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
            setattr(layer, name, PyroSample(prior))

    def model(x: Tensor, y: Tensor, size: int | None) -> None:
        plate = pyro.plate("data", len(x), subsample_size=size)
        with plate as index:
            x, y = x[index], y[index]
        logits = network(x)
        with plate:
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return Problem(model, (draws(6, 2), torch.arange(6) % 2, None if full else 4))


@zoo
def convolutional_network(full: bool) -> Problem:
    def model(images: Tensor, labels: Tensor, size: int | None) -> None:
        kernel = pyro.sample("kernel", standard(2, 1, 3, 3))
        bias = pyro.sample("bias", standard(2))
        weight = pyro.sample("weight", standard(8, 3))
        with pyro.plate("data", len(images), subsample_size=size) as index:
            hidden = nn.functional.conv2d(images[index], kernel, bias, padding=1)
            hidden = nn.functional.max_pool2d(nn.functional.silu(hidden), 3).flatten(1)
            pyro.sample("y", dist.Categorical(logits=hidden @ weight), obs=labels[index])

    return Problem(model, (draws(5, 1, 6, 6), torch.arange(5) % 3, None if full else 2))


@zoo
def attention(full: bool) -> Problem:
    """Self-attention over the elements of each sequence, all weights lifted."""
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    to_pyro_module_(layer.eval())
    for module in layer.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, PyroSample(standard(*value.shape)))

    def model(x: Tensor, y: Tensor, size: int | None) -> None:
        plate = pyro.plate("data", len(x), subsample_size=size)
        with plate as index:
            x, y = x[index], y[index]
        mixed, _ = layer(x, x, x, need_weights=False)
        with plate:
            pyro.sample("y", dist.Normal(mixed.sum((-1, -2)), 1.0), obs=y)

    return Problem(model, (draws(5, 3, 4), draws(5, seed=1), None if full else 2))


@zoo
def lifted_parameters(full: bool) -> Problem:
    """``poutine.lift`` turns the parameters of a program into latent sites."""

    def program(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    prior = {"loc": standard(2), "scale": dist.LogNormal(0.0, 1.0)}
    return Problem(poutine.lift(program, prior=prior), (draws(5, 2),))


# Constraints and handlers -------------------------------------------------------------------------


@zoo
def dependent_support(full: bool) -> Problem:
    def model(x: Tensor) -> None:
        low = pyro.sample("low", dist.Normal(-3.0, 1.0))
        width = pyro.sample("width", dist.Gamma(3.0, 1.0))
        with pyro.plate("groups", 2):
            loc = pyro.sample("loc", dist.Uniform(low, low + width))
        ranked = dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
        )
        order = pyro.sample("order", ranked)
        pyro.sample("x", dist.Normal(loc.sum() + order, 1.0).to_event(1), obs=x)

    return Problem(model, (draws(3),))


@zoo
def masked(full: bool) -> Problem:
    """Masks of every kind; missing entries of partly observed data are latent."""

    def model(x: Tensor, present: Tensor, size: int | None) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            with poutine.mask(mask=present[index]):
                pyro.sample("by_handler", dist.Normal(loc, 1.0), obs=x[index])
            by_method = dist.Normal(loc, 2.0).mask(present[index])
            pyro.sample("by_method", by_method, obs=x[index])
            filled = torch.where(present[index], x[index], torch.zeros(()).to(x))
            pyro.sample("partly", dist.Normal(loc, 3.0), obs=filled, obs_mask=present[index])

    x = draws(7)
    present = torch.arange(7) % 3 > 0
    return Problem(model, (torch.where(present, x, 5.0), present, None if full else 3))


@zoo
def scaled_and_factored(full: bool) -> Problem:
    def model(x: Tensor, size: int | None) -> Tensor:
        with poutine.scale(scale=0.3):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        pyro.factor("penalty", -loc.abs())
        with pyro.plate("data", len(x), subsample_size=size) as index:
            with poutine.scale(scale=torch.tensor(2.0)):
                pyro.sample("x", dist.Normal(loc, scale), obs=x[index])
            pyro.factor("local_penalty", -((x[index] - loc) ** 2))
        return pyro.deterministic("ratio", loc / scale)

    return Problem(model, (draws(7), None if full else 2))


@zoo
def reparameterized(full: bool) -> Problem:
    def model(y: Tensor, size: int | None) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        normal = dist.Normal(torch.zeros(()), 1.0)
        affine = dist.TransformedDistribution(
            normal, [dist.transforms.AffineTransform(mean, spread)]
        )
        level = pyro.sample("level", affine)
        with pyro.plate("data", len(y), subsample_size=size) as index:
            theta = pyro.sample("theta", dist.Normal(mean, spread))
            pyro.sample("y", dist.Normal(theta + level, 1.0), obs=y[index])

    config = {"theta": LocScaleReparam(centered=0.0), "level": TransformReparam()}
    return Problem(poutine.reparam(model, config=config), (draws(5), None if full else 2))


@zoo
def conditioned(full: bool) -> Problem:
    def program(n: int) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", n):
            pyro.sample("x", dist.Normal(loc, scale))

    model = poutine.condition(program, data={"scale": torch.tensor(0.7), "x": draws(6)})
    return Problem(model, (6,))


@zoo
def double_precision(full: bool) -> Problem:
    """Data and parameters in float64, whatever the default dtype."""

    def model(x: Tensor, size: int | None) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        loc = pyro.sample("loc", dist.Normal(zero, 1.0))
        scale = pyro.sample("scale", dist.Gamma(zero + 2.0, 2.0))
        coarse = pyro.sample("coarse", dist.Normal(torch.zeros((), dtype=torch.float32), 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("x", dist.Normal(loc + coarse, scale), obs=x[index])

    return Problem(model, (draws(7).double(), None if full else 3))
