"""One of Pyro's optimizers as one of PyTorch's."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor

from pyro_ext.inference.training.checkpoints import comparable


class PyroOptimizer:
    """Steps of one of Pyro's optimizers, which has one of PyTorch's for each parameter."""

    def __init__(self, optimizer: PyroOptim, parameters: Sequence[Tensor]) -> None:
        self._optimizer: Any = optimizer
        self._parameters = parameters

    def zero_grad(self) -> None:
        """Do nothing: it has no other parameters."""

    def step(self) -> None:
        """Take a step, and one of the schedule where it has one."""
        self._optimizer(self._parameters)
        if isinstance(self._optimizer, PyroLRScheduler):
            self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """States of all, and how they are made."""
        made = self._optimizer.optim_objs
        states = [made[p] for p in self._parameters if p in made]
        kind = getattr(self._optimizer.pt_optim_constructor, "__name__", "")
        arguments = self._optimizer.pt_optim_args
        return {
            "param_groups": comparable([kind, arguments]),
            "states": [
                [
                    one.state_dict(),
                    one.optimizer.state_dict() if hasattr(one, "optimizer") else None,
                ]
                for one in states
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up states, where there had been steps."""
        for parameter, (own, inner) in zip(self._parameters, state["states"], strict=False):
            made = self._optimizer._get_optim(parameter)
            self._optimizer.optim_objs[parameter] = made
            self._optimizer.grad_clip[parameter] = self._optimizer._get_grad_clip(parameter)
            made.load_state_dict(own)
            if inner is not None:
                made.optimizer.load_state_dict(inner)
