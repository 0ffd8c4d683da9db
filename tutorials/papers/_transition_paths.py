"""Rivals of sampled transition paths: an exact chain, dynamics and two-way shooting."""

import math
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_ext.distributions import DirichletOU
from pyro_ext.inference import MCMC, PathPCN
from pyro_ext.inference.adjoint import PathPotential
from pyro_ext.posterior import ConvergenceWarning


def exact_paths(
    reference: DirichletOU, energy: Any, grid: Tensor, num_chains: int, num_steps: int
) -> Tensor:
    """Paths of an exact chain, one of every 20 steps of the second half.

    :param DirichletOU reference: modes and ends of the paths.
    :param energy: of the paths.
    :param Tensor grid: times of the paths. **Shape:** ``(num_points,)``.
    :param int num_chains: number of chains.
    :param int num_steps: of each.
    :returns: **Shape:** ``(num_paths, num_points, dim)``.
    """
    kernel = PathPCN(reference, energy, grid=grid, step_size=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the page says so
        mcmc = MCMC(
            kernel,
            num_samples=max(1, num_steps // 40),
            warmup_steps=num_steps // 2,
            thinning=20,
            num_chains=num_chains,
            seed=0,
            progress=False,
        )
        return mcmc.run().get_samples()["path"]


def dynamics(
    potential: PathPotential,
    start: Tensor,
    noise: float,
    step: float,
    num_steps: int,
    spring: float = 0.0,
    target: Tensor | None = None,
) -> Tensor:
    """Paths of Langevin dynamics, which a spring may pull along the line to a target.

    :param PathPotential potential: of the dynamics.
    :param Tensor start: where each path starts. **Shape:** ``(n, dim)``.
    :param float noise: scale of the noise.
    :param float step: time of a step.
    :param int num_steps: number of steps.
    :param float spring: stiffness.
    :param Tensor target: where the line ends. **Shape:** ``(dim,)``.
    :returns: **Shape:** ``(n, num_steps + 1, dim)``.
    """
    points, first = [start], start
    for number in range(num_steps):
        drift = -potential.gradient(points[-1])
        if target is not None:
            drift = drift + spring * (torch.lerp(first, target, number / num_steps) - points[-1])
        kick = noise * math.sqrt(step) * torch.randn_like(start)
        points.append(points[-1] + step * drift + kick)
    return torch.stack(points, 1)


def shooting(
    potential: PathPotential, start: Tensor, end: Tensor, grid: Tensor, size: int, num_moves: int
) -> Tensor:
    """Two-way shooting from straight paths; ends within 0.5 of the wells count, and noise is one.

    :param PathPotential potential: of the dynamics.
    :param Tensor start: the first well. **Shape:** ``(dim,)``.
    :param Tensor end: the last one. **Shape:** ``(dim,)``.
    :param Tensor grid: even times. **Shape:** ``(num_points,)``.
    :param int size: number of paths.
    :param int num_moves: how often each is shot from.
    :returns: **Shape:** ``(size, num_points, dim)``.
    """
    last = len(grid) - 1
    current = torch.lerp(start, end, grid[:, None] / grid[-1]).repeat(size, 1, 1)
    for _ in range(num_moves):
        place = int(torch.randint(1, last, ()))
        go = partial(dynamics, potential, current[:, place], 1.0, float(grid[1]))
        proposed = torch.cat([go(place).flip(1), go(last - place)[:, 1:]], 1)
        arrives = (proposed[:, 0] - start).norm(dim=-1) < 0.5
        arrives &= (proposed[:, -1] - end).norm(dim=-1) < 0.5
        current = torch.where(arrives[:, None, None], proposed, current)
    return current


def draw_contours(axes: Any, potential: PathPotential, levels: Tensor, limits: Any) -> None:
    """Draw contours of a potential, at some levels and within limits of both axes."""
    across, up = (torch.linspace(low, high, 200) for low, high in limits)
    mesh = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)
    axes.contour(across, up, potential(mesh), levels=levels.tolist(), colors="0.75", linewidths=0.8)
    axes.set(xlim=limits[0], ylim=limits[1])
