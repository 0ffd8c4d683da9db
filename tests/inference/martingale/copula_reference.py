"""The copula recursions as one writes them down, in NumPy and SciPy, one observation at a time."""

import math

import numpy as np
import torch
from scipy.stats import norm


def score(u):
    return norm.ppf(np.clip(u, 1e-6, 1 - 1e-6))


def copula_density(u, v, rho):
    a, b = score(u), score(v)
    power = -(rho**2 * (a**2 + b**2) - 2 * rho * a * b) / (2 * (1 - rho**2))
    return np.exp(power) / math.sqrt(1 - rho**2)


def copula_cdf(u, v, rho):
    value = norm.cdf((score(u) - rho * score(v)) / math.sqrt(1 - rho**2))
    value = value * np.minimum(u / 1e-6, 1)  # linear where scores are clipped
    return 1 - (1 - value) * np.minimum((1 - u) / 1e-6, 1)


def alpha(i):
    return (2 - 1 / i) / (i + 1)


def kernel(x, other, rho):
    """Of covariates, product over the last dimension."""
    power = -(rho**2 * (x**2 + other**2) - 2 * rho * x * other) / (2 * (1 - rho**2))
    return np.prod(np.exp(power) / np.sqrt(1 - rho**2), -1)


def rate(i, weight=None):
    if weight is None:
        return alpha(i)
    value = alpha(i) * weight / (1 - alpha(i) + alpha(i) * weight)
    return np.clip(value, 1e-5, 1 - 1e-5)


def step(cdfs, density, v, a, rho):
    """Update conditional distribution functions (points, d) and a joint density (points,)."""
    product, new = np.ones(len(cdfs)), np.empty_like(cdfs)
    for j in range(cdfs.shape[1]):
        top = (1 - a) * cdfs[:, j] + a * product * copula_cdf(cdfs[:, j], v[j], rho[j])
        new[:, j] = top / ((1 - a) + a * product)
        product = product * copula_density(cdfs[:, j], v[j], rho[j])
    return new, density * ((1 - a) + a * product)


def recursion(y, points, rho, x=None, queries=None, rho_x=None):
    """Distribution of standardized observations (n, d) in their order, at points (m, d).

    Returns conditional distribution functions, the joint density, and log densities of the
    observations before they were seen.
    """
    both = np.concatenate([y, points])
    weights = None if x is None else np.concatenate([x, queries])
    cdfs, density, log_predicted = norm.cdf(both), norm.pdf(both).prod(1), []
    for i in range(len(y)):
        log_predicted.append(math.log(density[i]))
        weight = None if x is None else kernel(weights, x[i], rho_x)
        cdfs, density = step(cdfs, density, cdfs[i].copy(), rate(i + 1, weight), rho)
    return cdfs[len(y) :], density[len(y) :], np.array(log_predicted)


def classify(y, x, queries, rho, rho_x):
    """Probability of the label one at queries, and log probabilities of the labels seen."""
    both = np.concatenate([x, queries])
    p, log_predicted = np.full(len(both), 0.5), []
    for i in range(len(y)):
        q = p[i]
        log_predicted.append(math.log(q if y[i] else 1 - q))
        a = rate(i + 1, kernel(both, x[i], rho_x))
        least = np.minimum(p, q)
        f = least / (p * q) if y[i] else 1 / (1 - q) - least / (p * (1 - q))
        p = np.clip(p * (1 - a + a * (1 - rho + rho * f)), 5e-5, 1 - 5e-5)
    return p[len(y) :], np.array(log_predicted)


def assert_is_law(distribution, grid, levels, mean=1e-4, variance=2e-3, reached=1e-6):
    """Density, distribution function, moments and quantiles agree, by quadrature over a grid."""
    density, cdf = distribution.log_prob(grid).exp(), distribution.cdf(grid)
    total = torch.trapezoid(density, grid, dim=0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    slope = (cdf[2:] - cdf[:-2]) / (grid[2:] - grid[:-2])
    torch.testing.assert_close(slope, density[1:-1], rtol=0, atol=1e-4)
    center = torch.trapezoid(density * grid, grid, dim=0)
    torch.testing.assert_close(distribution.mean, center, rtol=0, atol=mean)
    spread = torch.trapezoid(density * (grid - center) ** 2, grid, dim=0)
    torch.testing.assert_close(distribution.variance, spread, rtol=variance, atol=0)
    found = distribution.cdf(distribution.icdf(levels))
    torch.testing.assert_close(found, levels.expand(found.shape), rtol=0, atol=reached)
