"""The problems of the comparisons in plain PyTorch, as a skilled user writes them by hand.

All parameters of all chains are one matrix, so that the update is one operation; the loss is
written for many chains at once; minibatches are drawn with replacement, for every chain its own.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from _common import Array
from _problems import BATCH_SIZE, FRICTION, Problem, start
from torch import Tensor
from torch.nn import functional

__all__ = ["TorchLoop"]

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TorchLoop:
    """Chains in a hand-written loop.

    :param bool compiled: whether a step, from the draw of the minibatch to the update, is compiled.
    :param Problem problem: the problem.
    :param str algorithm: ``"SGLD"`` or ``"SGHMC"``.
    :param int num_chains: number of chains.
    """

    def __init__(self, compiled: bool, problem: Problem, algorithm: str, num_chains: int) -> None:
        device = problem.arguments[0].device
        parts = [
            torch.from_numpy(np.asarray(value)).to(device)
            for value in start(problem, num_chains).values()
        ]
        self._shapes = problem.shapes
        self._position = torch.cat([part.reshape(num_chains, -1) for part in parts], 1)
        self._momentum = torch.zeros_like(self._position)
        step = _step(problem, algorithm)
        if compiled:
            with torch.no_grad():
                graph = torch.fx.experimental.proxy_tensor.make_fx(step)(
                    self._position, self._momentum
                )
            self._step: Step = torch.compile(
                graph, fullgraph=True, dynamic=False, options={"fallback_random": True}
            )
        else:
            self._step = step

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        position, momentum = self._position, self._momentum
        with torch.no_grad():
            for _ in range(num_steps):
                position, momentum = self._step(position, momentum)
        self._position, self._momentum = position, momentum

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains."""
        return {
            name: value.cpu().numpy().copy()
            for name, value in _split(self._position, self._shapes).items()
        }


def _step(problem: Problem, algorithm: str) -> Step:
    inputs, labels = problem.arguments
    scale = len(inputs) / BATCH_SIZE
    loss = _logistic_loss if problem.name == "logistic regression" else _network_loss
    step_size = problem.step_size if algorithm == "SGLD" else problem.step_size**0.5
    decay = FRICTION * step_size

    def gradient(position: Tensor) -> Tensor:
        index = torch.randint(len(inputs), (len(position), BATCH_SIZE), device=position.device)
        # Through the parts and not through the whole: to differentiate the split costs more.
        parts = _split(position.detach(), problem.shapes)
        params = {name: part.requires_grad_() for name, part in parts.items()}
        with torch.enable_grad():
            total = scale * loss(params, inputs[index], labels[index])
            slopes = torch.autograd.grad(total, list(params.values()))
        return position + torch.cat([slope.reshape(len(position), -1) for slope in slopes], 1)

    def langevin(position: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(position)
        moved = position - step_size * gradient(position) + math.sqrt(2 * step_size) * noise
        return moved, momentum

    def hamiltonian(position: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(position)
        kick = step_size * gradient(position)
        momentum = (1 - decay) * momentum - kick + math.sqrt(2 * decay) * noise
        return position + step_size * momentum, momentum

    return langevin if algorithm == "SGLD" else hamiltonian


def _split(flat: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = flat.split(sizes, 1)
    return {
        name: part.reshape(len(flat), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _logistic_loss(params: dict[str, Tensor], rows: Tensor, labels: Tensor) -> Tensor:
    logits = torch.baddbmm(params["bias"][:, None, None], rows, params["weight"][..., None])[..., 0]
    return functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="sum"
    )


def _network_loss(params: dict[str, Tensor], rows: Tensor, labels: Tensor) -> Tensor:
    hidden = torch.baddbmm(params["bias0"][:, None], rows, params["weight0"]).tanh()
    logits = torch.baddbmm(params["bias1"][:, None], hidden, params["weight1"])
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
