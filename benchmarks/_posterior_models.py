"""Models of the posteriors of ``_posteriors.py``, in Pyro's words.

The first are the Stan programs of posteriordb as a Pyro user would write them: the same priors, and
the same parameters. A parameter that Stan leaves without a prior has an ``ImproperUniform``. Where
Stan cuts a prior off by the bounds of its parameter, the site is flat on that support and a factor
holds the density, up to a constant. Differential equations are solved in fixed steps, and the
states of a Markov chain are summed out by ``DiscreteHMM``.

Data are float64, so set PyTorch's default type to that, too: sites with numbers for parameters take
it from there. Models use what Pyro and NumPyro, PyTorch and ``jax.numpy`` have in common, so that
``_numpyro_posteriors.py`` can run the same source in NumPyro.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

# What models are made of ------------------------------------------------------------------------


def flat(name: str, support: Any, *shape: int) -> Tensor:
    """Sample a site that is flat on its support, as a parameter of Stan without a prior."""
    value: Tensor = pyro.sample(name, dist.ImproperUniform(support, (), shape))
    return value


def restricted(name: str, prior: Any, support: Any) -> Tensor:
    """Sample a site from a distribution cut off at the bounds of a support."""
    value = flat(name, support, *prior.event_shape)
    pyro.factor(f"{name}_prior", prior.log_prob(value))
    return value


def normal_rows(mean: Tensor, scale: Tensor, outcome: Tensor) -> None:
    """Observe independent normal outcomes."""
    with pyro.plate("rows", len(outcome)):
        pyro.sample("outcome", dist.Normal(mean, scale), obs=outcome)


def covariance_factor(x: Tensor, height: Tensor, length: Tensor, noise: Tensor | float) -> Tensor:
    """Cholesky factor of a squared exponential covariance, plus noise. Parameters may be batched.

    :param Tensor x: where the process is looked at. **Shape:** ``(n,)``.
    :param Tensor height: its standard deviation. **Shape:** ``(*batch)``.
    :param Tensor length: its length scale. **Shape:** ``(*batch)``.
    :param noise: variance that is added on the diagonal.
    :returns: **Shape:** ``(*batch, n, n)``.
    """
    distance = (x[:, None] - x) / length[..., None, None]
    covariance = height[..., None, None] ** 2 * torch.exp(-0.5 * distance**2)
    factor: Tensor = torch.linalg.cholesky(covariance + noise * torch.eye(len(x)))
    return factor


def scan(step: Callable[[Tensor, Tensor], Tensor], state: Tensor, inputs: Tensor) -> Tensor:
    """Apply a function of state and input again and again; NumPyro has ``jax.lax.scan`` for it.

    :param step: gives the next state.
    :param Tensor state: the first, which is not among the results.
    :param Tensor inputs: one after the other.
    :returns: the states after each input. **Shape:** ``(len(inputs), *state.shape)``.
    """
    states = []
    for each in inputs:
        state = step(state, each)
        states.append(state)
    return torch.stack(states)


def solve(
    derivative: Callable[[Tensor, Tensor], Tensor], state: Tensor, step: float, num_steps: int
) -> Tensor:
    """Solve a differential equation by the classical Runge-Kutta method of the fourth order.

    :param derivative: of the state, by time and state.
    :param Tensor state: where it begins, at time zero.
    :param float step: length of a step.
    :param int num_steps: number of steps.
    :returns: the states after each step. **Shape:** ``(num_steps, *state.shape)``.
    """

    def advance(state: Tensor, time: Tensor) -> Tensor:
        first = derivative(time, state)
        second = derivative(time + step / 2, state + step / 2 * first)
        third = derivative(time + step / 2, state + step / 2 * second)
        fourth = derivative(time + step, state + step * third)
        return state + step / 6 * (first + 2 * (second + third) + fourth)

    return scan(advance, state, step * torch.arange(num_steps))


# Models of posteriordb --------------------------------------------------------------------------


def regression(design: Tensor, outcome: Tensor) -> None:
    """Linear regression without priors."""
    beta = flat("beta", constraints.real_vector, design.shape[1])
    sigma = flat("sigma", constraints.positive)
    normal_rows(design @ beta, sigma, outcome)


def regression_cauchy(design: Tensor, outcome: Tensor) -> None:
    """Linear regression with a prior on the scale of the noise."""
    beta = flat("beta", constraints.real_vector, design.shape[1])
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    normal_rows(design @ beta, sigma, outcome)


def blr(design: Tensor, outcome: Tensor) -> None:
    """Linear regression with normal priors."""
    with pyro.plate("columns", design.shape[1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    normal_rows(design @ beta, sigma, outcome)


def kilpisjarvi(x: Tensor, y: Tensor, means: Tensor, scales: Tensor) -> None:
    """Trend of the summer temperature at a lake, with informative priors."""
    alpha = pyro.sample("alpha", dist.Normal(means[0], scales[0]))
    beta = pyro.sample("beta", dist.Normal(means[1], scales[1]))
    sigma = flat("sigma", constraints.positive)
    normal_rows(alpha + beta * x, sigma, y)


def eight_schools(y: Tensor, errors: Tensor) -> None:
    """Effects of coaching in eight schools, in standard deviations from their mean."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        standard = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * standard, errors), obs=y)


def autoregression(lags: Tensor, y: Tensor) -> None:
    """Autoregressive series, given what went before each value."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    with pyro.plate("lags", lags.shape[1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    normal_rows(alpha + lags @ beta, sigma, y)


def arma(y: Tensor) -> None:
    """Series with one autoregressive and one moving average term."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    rest = y - mu - phi * torch.cat([mu[None], y[:-1]])
    errors = scan(lambda error, rest: rest - theta * error, torch.zeros(()), rest)
    normal_rows(y - errors, sigma, y)


def garch(y: Tensor, first_scale: Tensor) -> None:
    """Series whose variance follows its last square and its last variance.

    The two coefficients and what they leave of one are uniform on a simplex, which is flat in both.
    """
    mu = flat("mu", constraints.real)
    alpha0 = flat("alpha0", constraints.positive)
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    first = first_scale**2
    shocks = alpha0 + shares[0] * (y[:-1] - mu) ** 2
    later = scan(lambda variance, shock: shock + shares[1] * variance, first, shocks)
    normal_rows(mu, torch.sqrt(torch.cat([first[None], later])), y)


def gp_regression(x: Tensor, y: Tensor) -> None:
    """Regression by a Gaussian process; ``sigma`` is the variance of the noise, as in Stan's."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    factor = covariance_factor(x, alpha, rho, sigma)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=factor), obs=y)


def latent_process(x: Tensor, alpha: Tensor, rho: Tensor, standard: Tensor) -> Tensor:
    """Values of a Gaussian process by standard normal ones; all but ``x`` may be batched."""
    return (covariance_factor(x, alpha, rho, 1e-10) @ standard[..., None])[..., 0]


def gp_poisson(x: Tensor, counts: Tensor) -> None:
    """Counts whose logarithmic rate is a Gaussian process."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    with pyro.plate("points", len(x)):
        standard = pyro.sample("f_tilde", dist.Normal(0.0, 1.0))
        rate = torch.exp(latent_process(x, alpha, rho, standard))
        pyro.sample("k", dist.Poisson(rate), obs=counts)


def mixture(y: Tensor) -> None:
    """Mixture of two normal components in ascending order."""
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    normal = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    mu = restricted("mu", normal, constraints.ordered_vector)
    with pyro.plate("components", 2):
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    weights = dist.Categorical(probs=torch.stack([theta, 1.0 - theta]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def observe_chain(transitions: Tensor, emissions: Any, values: Tensor) -> None:
    """Observe a hidden Markov chain that is in any state at first, with the same probability."""
    is_first = torch.arange(len(values)) == 0
    logits = torch.where(is_first[:, None, None], 0.0, torch.log(transitions))
    chain = dist.DiscreteHMM(torch.zeros(len(transitions)), logits, emissions)
    pyro.sample("values", chain, obs=values)


def hmm_example(y: Tensor) -> None:
    """Hidden Markov model of two states with normal emissions."""
    with pyro.plate("states", 2):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
    normal = dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1)
    mu = restricted("mu", normal, constraints.positive_ordered_vector)
    observe_chain(theta, dist.Normal(mu, 1.0), y)


def drives(support: Any, concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Transitions, and a parameter for each state (rows) and each of two series (columns)."""
    with pyro.plate("states", 2):
        theta = pyro.sample("theta", dist.Dirichlet(concentration))
    normal = dist.Normal(torch.tensor([0.0, 3.0]), 1.0).to_event(1)
    phi = restricted("phi", normal, support)
    slope = restricted("lambda", normal, support)
    return theta, torch.stack([phi, slope], -1)


def hmm_drive_0(values: Tensor, concentration: Tensor) -> None:
    """Model a basketball player's drives, by speed and distance of the hoop, both exponential."""
    theta, rates = drives(constraints.positive_ordered_vector, concentration)
    observe_chain(theta, dist.Exponential(rates).to_event(1), values)


def hmm_drive_1(values: Tensor, concentration: Tensor, scales: Tensor) -> None:
    """The same, both normal."""
    theta, means = drives(constraints.ordered_vector, concentration)
    observe_chain(theta, dist.Normal(means, scales).to_event(1), values)


def lotka_volterra(populations: Tensor) -> None:
    """Hares and lynxes, year by year; the equation is solved for the logarithms."""
    normal = dist.Normal(torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05]))
    theta = restricted(
        "theta", normal.to_event(1), constraints.independent(constraints.positive, 1)
    )
    species = pyro.plate("species", 2, dim=-1)
    with species:
        z_init = pyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0))
    sign = torch.tensor([1.0, -1.0])  # the first grows and is eaten, the second dies and eats
    growth, contact = sign * theta[::2], sign * theta[1::2]

    def derivative(time: Tensor, logarithms: Tensor) -> Tensor:
        return growth - contact * torch.roll(torch.exp(logarithms), 1)

    first = torch.log(z_init)
    later = solve(derivative, first, 1 / 3, 3 * (len(populations) - 1))[2::3]
    with pyro.plate("years", len(later), dim=-2), species:
        pyro.sample("y", dist.LogNormal(later, sigma), obs=populations[1:])
    with species:
        pyro.sample("y_init", dist.LogNormal(first, sigma), obs=populations[0])


def one_compartment(concentration: Tensor, dose: Tensor, volume: Tensor) -> None:
    """Concentration of a drug every half day; its elimination saturates."""
    k_a = pyro.sample("k_a", dist.HalfCauchy(1.0))
    k_m = pyro.sample("K_m", dist.HalfCauchy(1.0))
    v_m = pyro.sample("V_m", dist.HalfCauchy(1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))

    absorption, elimination = dose * k_a / volume, v_m / volume

    def derivative(time: Tensor, state: Tensor) -> Tensor:
        return absorption * torch.exp(-k_a * time) - elimination * state / (k_m + state)

    mean = solve(derivative, torch.zeros(()), 0.25, 2 * len(concentration))[1::2]
    with pyro.plate("rows", len(concentration)):
        pyro.sample("C_hat", dist.LogNormal(torch.log(mean), sigma), obs=concentration)


# Wider models -----------------------------------------------------------------------------------


def population() -> tuple[Tensor, Tensor, Tensor]:
    """Mean and scale of intercepts and slopes, and the scale of the noise."""
    with pyro.plate("coefficients", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
    return mean, scale, pyro.sample("sigma", dist.HalfNormal(2.0))


def slopes_centered(x: Tensor, y: Tensor) -> None:
    """Intercepts and slopes that vary between groups, which are rows of the data."""
    mean, scale, sigma = population()
    with pyro.plate("groups", len(x)):
        line = pyro.sample("line", dist.Normal(mean, scale).to_event(1))
        pyro.sample("y", dist.Normal(line[:, :1] + line[:, 1:] * x, sigma).to_event(1), obs=y)


def slopes_noncentered(x: Tensor, y: Tensor) -> None:
    """The same in standard deviations from their means."""
    mean, scale, sigma = population()
    with pyro.plate("groups", len(x)):
        standard = pyro.sample("standard", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        line = mean + scale * standard
        pyro.sample("y", dist.Normal(line[:, :1] + line[:, 1:] * x, sigma).to_event(1), obs=y)


def stochastic_volatility(y: Tensor) -> None:
    """Returns whose logarithmic variance is an autoregressive series, by its shocks."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("times", len(y)):
        shocks = pyro.sample("shocks", dist.Normal(0.0, 1.0))
    first = sigma * shocks[0] / torch.sqrt(1.0 - phi**2)
    later = scan(lambda state, shock: phi * state + shock, first, sigma * shocks[1:])
    volatility = torch.exp((mu + torch.cat([first[None], later])) / 2.0)
    normal_rows(torch.zeros_like(y), volatility, y)


def item_response(answers: Tensor) -> None:
    """Model answers of persons (rows) to items (columns) of unlike difficulty and sharpness."""
    mean = pyro.sample("mean_difficulty", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale_difficulty", dist.HalfNormal(2.0))
    spread = pyro.sample("scale_discrimination", dist.HalfNormal(1.0))
    persons = pyro.plate("persons", answers.shape[0], dim=-2)
    items = pyro.plate("items", answers.shape[1], dim=-1)
    with persons:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with items:
        difficulty = pyro.sample("difficulty", dist.Normal(mean, scale))
        discrimination = pyro.sample("discrimination", dist.LogNormal(0.0, spread))
    with persons, items:
        logits = discrimination * (ability - difficulty)
        pyro.sample("answer", dist.Bernoulli(logits=logits), obs=answers)


def horseshoe(design: Tensor, outcome: Tensor) -> None:
    """Linear regression whose coefficients are mostly near zero, in their standard deviations."""
    tau = pyro.sample("tau", dist.HalfCauchy(0.1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("columns", design.shape[1]):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
    normal_rows(design @ (standard * local * tau), sigma, outcome)
