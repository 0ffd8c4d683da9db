"""Check that data fit a network and its loss before a training begins."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks


def check_fits(
    argument: str,
    network: Callable[..., Any],
    loss: Callable[..., Any],
    inputs: Tensor,
    *targets: Tensor,
) -> None:
    """Check that a network takes rows like the inputs, and a loss all targets.

    It runs the network on one row, in evaluation mode, and leaves it as it was.
    """
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.no_grad(), torch.random.fork_rng():
            with checks.named_in_errors(argument, inputs):
                outputs = network(inputs[:1])
            if not targets or not isinstance(outputs, Tensor):
                return
            # Losses such as Pyro's TraceEnum_ELBO want outputs that have a gradient.
            outputs = outputs.clone().requires_grad_(outputs.is_floating_point())
            with torch.enable_grad(), checks.named_in_errors(argument, targets[0]):
                loss(outputs.expand(len(inputs), *outputs.shape[1:]), *targets)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
