"""The eight processes in small, and tasks to try them on."""

import math

import torch

from pyro_ext.models.neural_processes import (
    ANP,
    BANP,
    BNP,
    CANP,
    CNP,
    MPANP,
    MPNP,
    NP,
    Batch,
    BootstrapProcess,
)

MAKERS = {
    "CNP": CNP,
    "NP": NP,
    "CANP": CANP,
    "ANP": ANP,
    "BNP": BNP,
    "BANP": BANP,
    "MPNP": lambda *sizes: MPNP(*sizes, num_pseudo=4),
    "MPANP": lambda *sizes: MPANP(*sizes, num_pseudo=4),
}
RANDOM = ["NP", "ANP", "BNP", "BANP", "MPNP", "MPANP"]


def make(name, x_dim=2, y_dim=3, width=16):
    """A process whose predictions depend on what is random in it enough to be seen."""
    process = MAKERS[name](x_dim, y_dim, width)
    with torch.no_grad():
        for parameter in process.parameters():
            parameter.mul_(1.5)
    return process


def tasks(num_context=5, num_target=7, num_tasks=4, x_dim=2, y_dim=3):
    return Batch(
        torch.randn(num_tasks, num_context, x_dim),
        torch.randn(num_tasks, num_context, y_dim),
        torch.randn(num_tasks, num_target, x_dim),
        torch.randn(num_tasks, num_target, y_dim),
    )


def padded(batch, filling=math.nan):
    """The same tasks with padding among the points, and the numbers of the true ones."""

    def spread(values):
        if values is None:
            return None
        out = torch.full((values.shape[0], values.shape[1] + 3, values.shape[2]), filling)
        out[:, rows(values.shape[1])] = values
        return out.to(values.dtype)

    def mask(values):
        out = torch.zeros(values.shape[0], values.shape[1] + 3, dtype=torch.bool)
        out[:, rows(values.shape[1])] = True
        return out

    return Batch(
        spread(batch.context_inputs),
        spread(batch.context_outputs),
        spread(batch.target_inputs),
        spread(batch.target_outputs),
        mask(batch.context_inputs),
        mask(batch.target_inputs),
    )


def rows(number):
    """Where true points are among the padding: one pad first, one second last, one last."""
    points = torch.arange(number) + 1
    if number:
        points[-1] += 1
    return points


def fixed_draws(process, context, num_samples=3, seed=0):
    """What is random in a process, for the context given."""
    return process._draw(context, num_samples, torch.Generator().manual_seed(seed))


def is_bootstrap(process):
    return isinstance(process, BootstrapProcess)
