"""Gradients of distributions and of their draws against finite differences and quadrature."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import biject_to

from pyro_ext.random import seeded
from pyro_ext.testing._comparisons import (
    PROBABILITIES,
    Atoms,
    Make,
    Parameters,
    close,
    has_cdf,
    quantiles_of,
    require,
    supports,
)
from pyro_ext.testing._quadrature import Quadrature


def check_gradients(make: Make, parameters: Parameters, *, atoms: Atoms | None = None) -> None:
    """Compare gradients of densities, probabilities and quantiles with finite differences."""
    distribution = make(**parameters)
    name = type(distribution).__name__
    with seeded(3):
        draws = distribution.sample((12,))
    if atoms is not None:
        draws = draws[~torch.isin(draws, atoms(distribution))]
    draws = draws[:3]
    leaves = [value.clone().requires_grad_() for value in parameters.values()]
    support: Any = getattr(distribution.support, "inside", distribution.support)
    # On a surface finite differences would leave it.
    if not support.is_discrete and biject_to(support).inverse_shape(draws.shape) == draws.shape:
        draws.requires_grad_()

    def along(method: str) -> Callable[..., Tensor]:
        def function(value: Tensor, *values: Tensor) -> Tensor:
            with pyro.validation_enabled(False):
                moved = make(**dict(zip(parameters, values, strict=True)))
            result: Tensor = getattr(moved, method)(value)
            return result

        return function

    methods = ["log_prob", "cdf"] if has_cdf(distribution) else ["log_prob"]
    for method in methods:
        try:
            torch.autograd.gradcheck(
                along(method), (draws, *leaves), eps=1e-5, atol=1e-5, rtol=1e-5
            )
        except NotImplementedError:  # PyTorch has no derivative of some of its own functions
            continue
        except RuntimeError as error:
            raise AssertionError(f"gradient of {method} of {name}: {error}") from error
    quantiles = quantiles_of(distribution)
    if quantiles is None or atoms is not None:
        return
    # By differentiation of F(x) = p, with the gradients of F that were compared.
    fraction = torch.tensor(PROBABILITIES).to(quantiles).requires_grad_()
    value = along("icdf")(fraction, *leaves)
    found = torch.autograd.grad(value.sum(), (fraction, *leaves), allow_unused=True)
    density = distribution.log_prob(quantiles).exp()
    below = along("cdf")(quantiles, *leaves) / density
    exact = (1.0 / density, *torch.autograd.grad(-below.sum(), leaves, allow_unused=True))
    for what, slope, expected in zip(("p", *parameters), found, exact, strict=True):
        if expected is not None:
            require(slope is not None, f"icdf of {name} has no gradient in {what}")
            close(f"gradient of icdf of {name} in {what} and its own", slope, expected, 1e-6)


def check_rsample(
    make: Make,
    parameters: Parameters,
    *,
    atoms: Atoms | None = None,
    jumps: Atoms | None = None,
    num_draws: int = 4_000,
    seed: int = 0,
) -> None:
    """Compare the mean gradient of a function of draws with the gradient of its expectation."""
    distribution = make(**parameters)
    name = type(distribution).__name__
    with seeded(seed):
        typical = distribution.sample((401,))
    low, center, high = typical.quantile(torch.tensor([0.25, 0.5, 0.75]).to(typical), dim=0)
    weights = torch.arange(1.0, 1.0 + center.numel()).to(center).reshape(center.shape)

    def bounded(value: Tensor) -> Tensor:
        z = (value - center) / (high - low)
        ratio: Tensor = weights * z / torch.hypot(torch.ones_like(z), z)
        return ratio

    def total(value: Tensor) -> Tensor:
        return bounded(value).sum(tuple(range(1, value.dim())))

    each = {
        key: value.expand((num_draws, *value.shape)).clone().requires_grad_()
        for key, value in parameters.items()
    }
    with pyro.validation_enabled(False), seeded(seed):
        moved = make(**each)
        draws = moved.rsample()
    slopes = torch.autograd.grad(
        total(draws).sum(), list(each.values()), retain_graph=True, allow_unused=True
    )
    exacts: list[Tensor]
    if distribution.event_shape:
        factor = total(draws).detach()
        score = ((factor - factor.mean()) * moved.log_prob(draws.detach())).sum()
        exacts = list(torch.autograd.grad(score, list(each.values())))
    else:
        quadrature = Quadrature(distribution, [bounded], atoms, jumps)
        exacts = []
        for key, value in parameters.items():
            step = 1e-5 * max(1.0, float(value.abs()))
            with pyro.validation_enabled(False):
                up, down = (
                    quadrature.expectations(make(**{**parameters, key: value + sign * step}))
                    for sign in (1.0, -1.0)
                )
            exacts.append(((up - down) / (2.0 * step)).expand(num_draws))
    num_comparisons = sum(value.numel() for value in parameters.values())
    threshold = stats.norm.isf(1e-5 / 2.0 / num_comparisons)  # 1e-5 of seeds fail
    for key, slope, exact in zip(parameters, slopes, exacts, strict=True):
        require(slope is not None, f"rsample of {name} has no gradient in {key}")
        difference = slope - exact
        error = difference.std(0) / num_draws**0.5
        excess = (difference.mean(0).abs() - 1e-7).clamp(min=0.0)
        z = float(torch.where(excess > 0, excess / error, 0.0).max())
        require(
            z < threshold,
            f"the gradient of rsample of {name} in {key} is {slope.mean(0).tolist()} on average, "
            f"not {exact.mean(0).tolist()}: {z:.3g} standard errors away",
        )


def check_finite(make: Make, parameters: Parameters, values: Tensor) -> None:
    """Check that nothing is infinite or no number, for a batch of parameters however extreme.

    In float64 densities, probabilities, draws and gradients have to be finite, and in float32 what
    is at most 1e37 in float64; gradients of draws, where draws are of moderate size.
    """

    def results(parameters: Parameters, values: Tensor) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        values = values.detach().requires_grad_()
        distribution = make(**leaves)
        found = {}
        for method in ("log_prob", "cdf"):
            value = getattr(distribution, method)(values)
            every = (values, *leaves.values())
            slopes = torch.autograd.grad(value.sum(), every, retain_graph=True, allow_unused=True)
            found[method] = value.detach()
            for name, slope in zip(("value", *leaves), slopes, strict=True):
                if slope is not None:
                    found[f"gradient of {method} in {name}"] = slope
        with seeded(0):
            draws = distribution.rsample()
        found["draws"] = draws.detach()
        for method in ("log_prob", "cdf"):
            found[f"{method} of draws"] = getattr(distribution, method)(draws.detach()).detach()
        is_inside = supports(distribution, draws.detach())
        require(bool(is_inside.all()), f"draws of {draws.dtype} leave the support")
        for method in ("cdf", "cdf of draws"):
            is_fraction = (found[method] >= 0) & (found[method] <= 1)
            require(bool(is_fraction.all()), f"{method} of {draws.dtype} is not in [0, 1]")
        is_moderate = (draws.detach() < torch.finfo(draws.dtype).max ** 0.25) & (draws > 1e-9)
        slopes = torch.autograd.grad(draws.sum(), list(leaves.values()), allow_unused=True)
        for name, slope in zip(leaves, slopes, strict=True):
            if slope is not None:
                found[f"gradient of draws in {name}"] = torch.where(is_moderate, slope, 0.0)
        return found

    def show(index: int) -> str:
        listed = ", ".join(f"{name}={value[index]:g}" for name, value in parameters.items())
        return f"{listed} and value={values[index]:g}"

    exact = results(parameters, values)
    single = {name: value.float() for name, value in parameters.items()}
    narrow = results(single, values.float())
    rounded = results({k: v.double() for k, v in single.items()}, values.float().double())
    for what, value in exact.items():
        is_bad = ~value.isfinite()
        require(not bool(is_bad.any()), f"{what} at {show(int(is_bad.int().argmax()))}")
    for what, value in narrow.items():
        is_bad = value.isnan()
        if "draws" not in what:
            is_bad |= (rounded[what].abs() < 1e37) & ~value.isfinite()
        require(not bool(is_bad.any()), f"{what} in float32 at {show(int(is_bad.int().argmax()))}")
