"""Learned diffusion and curl: derivatives, the corrections, and what they are worth."""

import pytest
import torch

from pyro_ext.inference import MCMC, SGHMC, MetaSGMCMC
from pyro_ext.inference.sgmcmc import LearnedDiffusion, meta_sgmcmc

pytestmark = pytest.mark.usefixtures("float64")


def random_diffusion(seed=0, **options):
    return LearnedDiffusion(output_scale=1.0, seed=seed, **options)


@pytest.mark.parametrize("seed", range(3))
def test_derivatives(seed):
    """Those in closed form against automatic differentiation, through the mean energy too."""
    diffusion = random_diffusion(seed)
    torch.manual_seed(seed)
    position, momentum = (torch.randn(2, 7, requires_grad=True) for _ in range(2))
    energy = (position**4).sum(-1, keepdim=True) / 10
    (slope,) = torch.autograd.grad(energy.sum(), position, create_graph=True)
    found = diffusion(energy, slope.detach(), momentum)
    for value, by, expected in (
        (found.curl, momentum, found.curl_by_momentum),
        (found.diffusion, momentum, found.diffusion_by_momentum),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), by, retain_graph=True)
        torch.testing.assert_close(gradient, expected)
    for element in range(7):
        (gradient,) = torch.autograd.grad(found.curl[:, element].sum(), position, retain_graph=True)
        torch.testing.assert_close(gradient[:, element], found.curl_by_position[:, element])


def test_diffusion_is_cut_with_its_derivative():
    diffusion = random_diffusion(max_diffusion=1.0)
    momentum = 4.0 * torch.randn(1, 500)
    found = diffusion(torch.zeros(1, 1), torch.zeros_like(momentum), momentum)
    is_cut = (found.diffusion == 0.0) | (found.diffusion == 1.0)
    assert 0 < is_cut.sum() < 500 and (found.diffusion >= 0).all() and (found.diffusion <= 1).all()
    assert (found.diffusion_by_momentum[is_cut] == 0).all()


def constants(energy, slope, momentum):
    one, zero = torch.ones_like(momentum), torch.zeros_like(momentum)
    return meta_sgmcmc.RecipeMatrices(one, one, zero, zero, zero)


def test_constants_are_sghmc():
    """At temperature zero, where the sign of the noise does not matter."""

    def flat(z):
        return 0.5 * z["x"].square().sum() + torch.cos(z["x"].sum())

    draws = []
    options = {"potential_fn": flat, "step_size": 0.1, "friction": 3.0, "temperature": 0}
    start = {"x": torch.ones(2, 3)}
    for kernel in (MetaSGMCMC(diffusion=constants, **options), SGHMC(**options)):
        mcmc = MCMC(kernel, 5, num_chains=2, thinning=3, initial_params=start, progress=False)
        draws.append(mcmc.run().get_samples()["x"])
    torch.testing.assert_close(*draws)


def test_one_step_by_hand():
    """Momenta first, then positions at the matrices of the new momenta."""
    start = meta_sgmcmc.MetaSGMCMCState(torch.tensor([0.3, -0.7]), torch.tensor([0.5, 0.2]))
    numbers = {"step_size": 0.1, "temperature": 0.6, "momentum_decay": 0.25}
    noise = torch.tensor([0.4, -1.1])
    x, p = start
    gradient, energy = 3.0 * x, 1.5 * x.square().sum().reshape(1)
    after, _ = meta_sgmcmc.step(
        start,
        lambda x: (1.5 * x.square().sum(-1), 3.0 * x),
        noise,
        diffusion=strong,
        data_size=10,
        **{name: torch.tensor(value) for name, value in numbers.items()},
    )
    old = strong(energy / 10, gradient / 10, p)
    expected = (
        p
        - 0.1 * old.curl * gradient
        - 0.25 * old.diffusion * p
        + 0.6 * (0.1 * old.curl_by_position + 0.25 * old.diffusion_by_momentum)
        + (2.0 * 0.25 * old.diffusion * 0.6).sqrt() * noise
    )
    new = strong(energy / 10, gradient / 10, expected)
    torch.testing.assert_close(after.momentum, expected)
    velocity = new.curl * expected - 0.6 * new.curl_by_momentum
    torch.testing.assert_close(after.position, x + 0.1 * velocity)


def moments(diffusion, step_size, time=18.0, num_chains=40_000):
    """Moments of chains in the potential `x^4 / 4 + |x|^2 / 4` over two elements."""
    generator = torch.Generator().manual_seed(0)

    def value_and_gradient(x):
        return (x**4 / 4 + x**2 / 4).sum(-1), x**3 + x / 2

    state = meta_sgmcmc.init(torch.zeros(num_chains, 2))
    size = torch.tensor(step_size)
    options = {"step_size": size, "temperature": torch.tensor(1.0), "momentum_decay": size}
    with torch.no_grad():
        for _ in range(round(time / step_size)):
            noise = torch.randn(num_chains, 2, generator=generator)
            state, _ = meta_sgmcmc.step(
                state, value_and_gradient, noise, diffusion=diffusion, **options
            )
    x, p = state
    return torch.stack([value.mean() for value in (x, x**2, x**4, p, p**2, x * p)])


def strong(energy, slope, momentum):
    """Matrices that depend strongly on everything, with derivatives by hand."""
    bend = torch.tanh(momentum)
    curl = 1.0 + 0.6 * bend + 0.8 * torch.sin(2.0 * energy)
    diffusion = 1.0 + 0.8 * bend * torch.cos(slope)
    by_momentum = 1.0 - bend.square()
    return meta_sgmcmc.RecipeMatrices(
        curl,
        diffusion,
        1.6 * torch.cos(2.0 * energy) * slope,
        0.6 * by_momentum,
        0.8 * by_momentum * torch.cos(slope),
    )


def exact_moments():
    x = torch.linspace(-6, 6, 4001)
    density = torch.exp(-(x**4) / 4 - x**2 / 4)
    density /= density.sum()
    return torch.stack(
        [(density * x**k).sum() for k in (1, 2, 4)] + [x.new_tensor(v) for v in (0, 1, 0)]
    )


# Of standard deviations of the moments over two elements of 40,000 chains, times sqrt(4 + 1).
ALLOWED = 4 * torch.tensor([0.75, 0.76, 2.1, 1.0, 1.42, 0.75]) * (5.0 / 80_000) ** 0.5


@pytest.mark.slow
@pytest.mark.statistical
def test_the_corrections_keep_the_posterior():
    """Moments by quadrature. The error of steps is linear in their size, so that two sizes give
    the limit; the bounds are four standard errors of it, a false-alarm rate of 4e-4."""
    limit = 2.0 * moments(strong, 0.02) - moments(strong, 0.04)
    assert ((limit - exact_moments()).abs() < ALLOWED).all()
