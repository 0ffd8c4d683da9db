"""What an example is, and the examples of Pyro whose sites are all continuous.

The models are those of Pyro's examples and tutorials, written anew from their mathematics, on small
data that follow the default dtype. The last argument of a model is what was observed; with ``None``
in its place it is drawn.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib import gp
from pyro.contrib.forecast import ForecastingModel
from pyro.contrib.forecast.util import PrefixConditionMessenger
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    LatentStableReparam,
    LinearHMMReparam,
    LocScaleReparam,
    StableReparam,
    StudentTReparam,
)
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

__all__ = ["EXAMPLES", "Example", "counts", "example", "example_of", "normals", "uniforms"]


class Example(NamedTuple):
    """A model, its arguments, and the names of the likelihoods of single points.

    Pyro sums discrete sites that are masked out over all of their values without weights: over
    ``num_masked`` combinations, which is a factor of its density. It is NaN where other sites
    depend on such values, so that Pyro's density is another one.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    likelihoods: tuple[str, ...] = ()
    num_masked: float = 1.0

    @property
    def unobserved(self) -> tuple[Any, ...]:
        """Arguments with which the model draws its observations."""
        return (*self.args[:-1], None)


EXAMPLES: dict[str, Callable[[], Example]] = {}


def example(build: Callable[[], Example]) -> Callable[[], Example]:
    """Add a builder under its own name."""
    EXAMPLES[build.__name__] = build
    return build


def example_of(
    args: Callable[[], tuple[Any, ...]], *likelihoods: str, num_masked: float = 1.0
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a model under its own name, whose arguments are made in the dtype of the time."""

    def add(model: Callable[..., Any]) -> Callable[..., Any]:
        EXAMPLES[model.__name__] = lambda: Example(model, args(), likelihoods, num_masked)
        return model

    return add


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that depend on nothing but their seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    """Numbers between zero and one."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def counts(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Whole numbers below a bound."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# Groups -------------------------------------------------------------------------------------------


def schools(sigma: Tensor, y: Tensor | None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(25.0)))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _schools_data() -> tuple[Tensor, Tensor]:
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return sigma, torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


@example
def eight_schools_centered() -> Example:
    return Example(schools, _schools_data(), ("y",))


@example
def eight_schools_noncentered() -> Example:
    model = poutine.reparam(schools, {"theta": LocScaleReparam(0.0)})
    return Example(model, _schools_data(), ("y",))


def _baseball_data() -> tuple[Tensor, Tensor]:
    at_bats = torch.tensor([45.0, 45.0, 40.0, 45.0, 30.0])
    return at_bats, torch.tensor([18.0, 14.0, 9.0, 10.0, 7.0])


@example_of(_baseball_data, "hits")
def baseball_partially_pooled(at_bats: Tensor, hits: Tensor | None) -> None:
    mean = pyro.sample("mean", dist.Uniform(torch.tensor(0.0), 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(torch.tensor(1.0), 1.5))
    with pyro.plate("player", len(at_bats)):
        chance = pyro.sample("chance", dist.Beta(mean * kappa, (1.0 - mean) * kappa))
        pyro.sample("hits", dist.Binomial(at_bats, chance), obs=hits)


@example_of(_baseball_data, "hits")
def baseball_pooled_in_log_odds(at_bats: Tensor, hits: Tensor | None) -> None:
    loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("player", len(at_bats)):
        logit = pyro.sample("logit", dist.Normal(loc, scale))
        pyro.sample("hits", dist.Binomial(at_bats, logits=logit), obs=hits)


@example_of(_baseball_data, "hits")
def baseball_not_pooled(at_bats: Tensor, hits: Tensor | None) -> None:
    with pyro.plate("player", len(at_bats)):
        chance = pyro.sample("chance", dist.Uniform(torch.tensor(0.0), 1.0))
        pyro.sample("hits", dist.Binomial(at_bats, chance), obs=hits)


@example_of(lambda: (3, normals(10, 3)), "y")
def lkj_covariance(size: int, y: Tensor | None) -> None:
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(size)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(size, torch.tensor(1.0)))
    scale_tril = scale.sqrt()[..., None] * factor
    with pyro.plate("observation", 10):
        normal = dist.MultivariateNormal(torch.zeros(size), scale_tril=scale_tril)
        pyro.sample("y", normal, obs=y)


# Regressions --------------------------------------------------------------------------------------


@example
def linear_regression_of_a_module() -> Example:
    class Regression(PyroModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
            sigma = pyro.sample("sigma", dist.Uniform(torch.tensor(0.0), 10.0))
            mean: Tensor = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, sigma), obs=y)
            return mean

    x = normals(12, 2)
    return Example(Regression(), (x, x @ torch.tensor([1.0, -0.5]) + normals(12, seed=1)), ("y",))


@example_of(lambda: (x := normals(15, 3), (x[:, 0] + normals(15, seed=1) > 0).to(x)), "y")
def logistic_regression(x: Tensor, y: Tensor | None) -> None:
    # As in Pyro's example, a batch dimension of the weights is no plate.
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), torch.ones(3)))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight + intercept), obs=y)


@example_of(lambda: (x := normals(12, 2), counts(4, 12).to(x)), "y")
def poisson_regression(x: Tensor, y: Tensor | None) -> None:
    weight = pyro.sample("weight", dist.Laplace(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ weight).exp()), obs=y)


@example_of(lambda: (x := normals(12, 2), x.sum(1) + normals(12, seed=1) ** 3), "y")
def robust_regression(x: Tensor, y: Tensor | None) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    freedom = pyro.sample("freedom", dist.Gamma(torch.tensor(2.0), 0.1))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(2.5)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(freedom, x @ weight, scale), obs=y)


@example_of(lambda: (x := normals(20, 5), x[:, 0] * x[:, 1] + x[:, 2] + 0.3 * normals(20, seed=1)))
def sparse_regression(x: Tensor, y: Tensor | None) -> None:
    """Pairwise interactions under horseshoe-like priors, integrated out by the kernel trick."""
    number, size = x.shape
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(3.0)))
    phi = 2.0 * sigma / (size - 2.0) / number**0.5
    eta1 = pyro.sample("eta1", dist.HalfCauchy(phi))
    inverse = pyro.sample("inverse", dist.InverseGamma(torch.tensor(3.0), 1.0))
    other = pyro.sample("other", dist.InverseGamma(torch.tensor(3.0), 1.0))
    with pyro.plate("dimension", size):
        local = pyro.sample("local", dist.HalfCauchy(torch.ones(size)))
    kappa = inverse.sqrt() * local / (inverse + (eta1 * local).square()).sqrt()
    eta2 = eta1.square() * other.sqrt() / inverse
    scaled = kappa * x
    inner, squares = scaled @ scaled.mT, scaled.square() @ scaled.square().mT
    covariance = (
        0.5 * eta2.square() * ((1.0 + inner).square() - squares)
        + (eta1.square() - eta2.square()) * inner
        + (1.0 - 0.5 * eta2.square())
        + sigma.square() * torch.eye(number)
    )
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(number), covariance), obs=y)


# Gaussian processes -------------------------------------------------------------------------------


@example
def gp_regression() -> Example:
    """A process of ``pyro.contrib.gp`` that holds its data, with priors on its hyperparameters."""
    x = torch.linspace(0.0, 3.0, 8)
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(torch.tensor(0.0), 1.0))
    kernel.variance = PyroSample(dist.LogNormal(torch.tensor(0.0), 1.0))
    y = torch.sin(2.0 * x) + 0.2 * normals(8)
    process = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.3))

    def model(values: Tensor | None) -> None:
        if values is not None:
            process.model()
            return
        process.set_mode("model")
        covariance = process.kernel(x) + process.noise * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance))

    return Example(model, (y,))


@example_of(lambda: (x := torch.linspace(-1.0, 1.0, 8), x + 0.2 * x**3 + 0.3 * normals(8)))
def gp_with_three_hyperparameters(x: Tensor, y: Tensor | None) -> None:
    variance = pyro.sample("variance", dist.LogNormal(torch.tensor(0.0), 2.0))
    length = pyro.sample("length", dist.LogNormal(torch.tensor(0.0), 2.0))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(0.0), 2.0))
    kernel = variance * torch.exp(-0.5 * ((x[:, None] - x) / length).square())
    covariance = kernel + (noise + 1e-6) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


@example
def gpytorch_sampled_from_prior() -> Example:
    """A process of GPyTorch, copied and sampled from its priors inside the model."""
    import gpytorch  # optional, and slow to import

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc, name-defined]
        def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    x = torch.linspace(0.0, 1.0, 8)
    y = torch.sin(6.0 * x) + 0.2 * normals(8)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    process = Process(x, y, likelihood).to(x.dtype)
    uniform = gpytorch.priors.UniformPrior
    process.mean.register_prior("mean_prior", gpytorch.priors.NormalPrior(0.0, 1.0), "constant")
    process.kernel.base_kernel.register_prior("length_prior", uniform(0.01, 0.5), "lengthscale")
    process.kernel.register_prior(
        "scale_prior", gpytorch.priors.GammaPrior(2.0, 2.0), "outputscale"
    )
    likelihood.register_prior("noise_prior", uniform(0.05, 0.5), "noise")

    def model(x: Tensor, y: Tensor | None) -> None:
        with gpytorch.settings.fast_computations(False, False, False):
            sampled = process.pyro_sample_from_prior()
            pyro.sample("y", sampled.likelihood(sampled(x)), obs=y)

    return Example(model, (x, y))


# Time series --------------------------------------------------------------------------------------


@example
def stable_volatility() -> Example:
    """Returns with heavy tails whose logarithmic scale is a random walk."""

    def model(number: int, returns: Tensor | None) -> None:
        start = pyro.sample("start", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(torch.tensor(-1.0), 0.5))
        stability = pyro.sample("stability", dist.Uniform(torch.tensor(1.0), 2.0))
        skew = pyro.sample("skew", dist.Uniform(torch.tensor(-1.0), 1.0))
        noise = pyro.sample("noise", dist.Normal(torch.zeros(number), 1.0).to_event(1))
        scale = (0.5 * (start + sigma * noise.cumsum(-1))).exp()
        with pyro.plate("time", number):
            pyro.sample("returns", dist.Stable(stability, skew, scale, 0.0), obs=returns)

    config = {"noise": DiscreteCosineReparam(), "returns": StableReparam()}
    return Example(poutine.reparam(model, config), (8, normals(8)), ("returns",))


@example
def latent_stable_walk() -> Example:
    """A path with rare jumps under normal noise."""

    def model(number: int, y: Tensor | None) -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-1.0), 0.5))
        with pyro.plate("time", number):
            step = pyro.sample("step", dist.Stable(torch.tensor(1.5), 0.0, scale, 0.0))
        with pyro.plate("observation", number):
            pyro.sample("y", dist.Normal(step.cumsum(-1), 0.5), obs=y)

    model = poutine.reparam(model, {"step": LatentStableReparam()})
    return Example(model, (6, normals(6).cumsum(0)), ("y",))


@example_of(lambda: (8, normals(8, 1).cumsum(0)))
def gaussian_hmm(number: int, y: Tensor | None) -> None:
    """A dynamic linear model, level and slope, whose states are integrated out."""
    level = pyro.sample("level", dist.LogNormal(torch.tensor(-1.0), 1.0))
    slope = pyro.sample("slope", dist.LogNormal(torch.tensor(-2.0), 1.0))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
    hmm = dist.GaussianHMM(
        dist.Normal(torch.zeros(2), 2.0).to_event(1),
        torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        dist.Normal(torch.zeros(2), torch.stack([level, slope])).to_event(1),
        torch.tensor([[1.0], [0.0]]),
        dist.Normal(torch.zeros(1), noise[None]).to_event(1),
        duration=number,
    )
    pyro.sample("y", hmm, obs=y)


@example
def linear_hmm_of_student_noise() -> Example:
    """A dynamic linear model with heavy tails, Gaussian given auxiliary scales."""

    def model(number: int, y: Tensor | None) -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-1.0), 1.0))
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
        freedom = torch.tensor([4.0])
        hmm = dist.LinearHMM(
            dist.StudentT(freedom, 0.0, 2.0).to_event(1),
            torch.eye(1),
            dist.StudentT(freedom, torch.zeros(number, 1), scale[None]).to_event(1),
            torch.eye(1),
            dist.StudentT(freedom, torch.zeros(number, 1), noise[None]).to_event(1),
            duration=number,
        )
        pyro.sample("y", hmm, obs=y)

    own = StudentTReparam()
    model = poutine.reparam(model, {"y": LinearHMMReparam(own, own, own)})
    return Example(model, (6, normals(6, 1).cumsum(0)))


@example
def forecasting_local_level() -> Example:
    """A model of ``pyro.contrib.forecast``: a drifting level and a covariate."""

    class LocalLevel(ForecastingModel):  # type: ignore[misc]
        def model(self, zero_data: Tensor, covariates: Tensor) -> None:
            weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
            scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-2.0), 1.0))
            noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
            with poutine.reparam(config={"drift": LocScaleReparam(0.0)}), self.time_plate:
                drift = pyro.sample("drift", dist.Normal(0.0, scale))
            mean = drift.cumsum(-1)[..., None] + weight * covariates
            self.predict(dist.Normal(zero_data[..., :1, :], noise), mean)

    forecaster = LocalLevel()

    def model(covariates: Tensor, data: Tensor | None) -> Any:
        if data is not None:
            return forecaster(data, covariates)
        with PrefixConditionMessenger(forecaster._prefix_condition_data):
            return pyro.deterministic("forecast", forecaster(first, covariates))

    data = normals(8, 1, seed=1).cumsum(0)
    first = data[:2]
    return Example(model, (normals(8, 1), data))


# Simulators ---------------------------------------------------------------------------------------


@example
def logistic_growth() -> Example:
    def model(time: Tensor, y: Tensor | None) -> None:
        capacity = pyro.sample("capacity", dist.LogNormal(torch.tensor(2.0), 0.5))
        rate = pyro.sample("rate", dist.LogNormal(torch.tensor(-1.0), 0.5))
        start = pyro.sample("start", dist.LogNormal(torch.tensor(0.0), 0.5))
        noise = pyro.sample("noise", dist.HalfNormal(torch.tensor(0.5)))
        size = capacity / (1.0 + (capacity / start - 1.0) * (-rate * time).exp())
        pyro.deterministic("size", size)
        with pyro.plate("time", len(time)):
            pyro.sample("y", dist.LogNormal(size.log(), noise), obs=y)

    time = torch.arange(10.0)
    y = 8.0 / (1.0 + 7.0 * (-0.6 * time).exp()) * (0.1 * normals(10)).exp()
    return Example(model, (time, y), ("y",))


GRAVITY, ANGLE, LENGTH = 9.8, math.pi / 6, 2.0


def _sliding_time(friction: Tensor) -> Tensor:
    """Time to slide down a plane, counted in steps that see numbers only."""
    acceleration = GRAVITY * (math.sin(ANGLE) - math.cos(ANGLE) * friction.item())
    if acceleration <= 0.0:
        return torch.tensor(1e5)
    time = speed = distance = 0.0
    while distance < LENGTH and time < 10.0:
        distance += speed * 0.01
        speed += acceleration * 0.01
        time += 0.01
    return torch.tensor(time)


class _SlidingTime(torch.autograd.Function):
    """The same by a formula outside of PyTorch, with its derivative."""

    @staticmethod
    def forward(context: Any, friction: Tensor) -> Tensor:
        slope = GRAVITY * (math.sin(ANGLE) - math.cos(ANGLE) * friction.item())
        time = math.sqrt(2.0 * LENGTH / slope) if slope > 0.0 else math.inf
        context.derivative = 0.5 * time / slope * GRAVITY * math.cos(ANGLE) if slope > 0 else 0.0
        return friction.new_tensor(time)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * context.derivative


def _inclined_plane(time: Callable[[Tensor], Tensor]) -> Example:
    def model(number: int, observed: Tensor | None) -> None:
        friction = pyro.sample("friction", dist.Uniform(torch.tensor(0.0), 0.5))
        mean = time(friction)
        with pyro.plate("run", number):
            pyro.sample("observed", dist.Normal(mean, 0.2), obs=observed)

    return Example(model, (5, 1.1 + 0.2 * normals(5)), ("observed",))


@example
def inclined_plane_in_steps() -> Example:
    return _inclined_plane(_sliding_time)


@example
def inclined_plane_with_a_derivative() -> Example:
    return _inclined_plane(_SlidingTime.apply)
