"""Steps of an optimizer on the parameters of a coreset."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_ext._checks import check_integer
from pyro_ext._progress import progress_bar
from pyro_ext.random import seeded

__all__ = ["Optimizer", "Trainer"]

Optimizer = Callable[[list[Any]], torch.optim.Optimizer] | PyroOptim

_SHARE = 0.005


class Trainer:
    """Takes steps down a divergence, and never keeps a state that is not finite.

    :param guide: a module with parameters, a ``model``, ``args`` and ``kwargs``.
    :param pyro.infer.ELBO divergence: the loss.
    :param optimizer: makes an optimizer of a list of parameters, or one of Pyro's; without one
        Adam, whose steps are half a percent of the spreads.
    :param Sequence spreads: how far the parameters of the guide spread. **Shape:** of each
        parameter, without its first dimension or none.
    """

    def __init__(
        self,
        guide: Any,
        divergence: Any,
        optimizer: Optimizer | None,
        spreads: Sequence[Tensor],
    ) -> None:
        if not isinstance(divergence, ELBO):
            raise TypeError(
                f"divergence must be one such as ForwardKL(), an ELBO, got {divergence!r:.80}"
            )
        if optimizer is not None and not callable(optimizer):
            raise TypeError(
                "optimizer must make an optimizer of a list of parameters, or be one of Pyro's, "
                f"got {optimizer!r:.80}"
            )
        self.guide = guide
        self.divergence: Any = divergence
        self.optimizer = optimizer
        self._parameters: list[nn.Parameter] = list(guide.parameters())
        if not self._parameters:
            raise ValueError(
                "guide has nothing to learn: name row arguments in learnable, or take "
                "weights='learned'"
            )
        self._made: torch.optim.Optimizer | None = None
        if optimizer is None:
            self._made = _StandardizedAdam(self._parameters, spreads)
        elif not isinstance(optimizer, PyroOptim):
            self._made = optimizer(self._parameters)

    def step(self) -> float:
        """Take one step.

        :returns: the loss before it. Where it or its gradient is not finite, nothing is changed.
        """
        guide = self.guide
        for parameter in self._parameters:
            parameter.grad = None
        if self._made is not None:
            self._made.zero_grad()  # it may hold more than the parameters, such as a learning rate
        loss = self.divergence.differentiable_loss(guide.model, guide, *guide.args, **guide.kwargs)
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        loss.backward()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return math.nan
        if self._made is not None:
            self._made.step()
        else:
            assert isinstance(self.optimizer, PyroOptim)
            self.optimizer(self._parameters)
        return value

    def run(self, num_steps: int, seed: int | None, progress: bool) -> list[float]:
        """Take steps until they are done, Ctrl-C is pressed or a number is not finite.

        :param int num_steps: number of steps.
        :param int seed: of what is random in them.
        :param bool progress: whether to show a progress bar.
        :returns: the loss before each step.
        """
        num_steps = check_integer("num_steps", num_steps, 1)
        losses: list[float] = []
        good = self._state()
        name = type(self.divergence).__name__
        with seeded(seed), progress_bar(total=num_steps, desc=name, disable=not progress) as bar:
            try:
                for number in range(num_steps):
                    before = self._state()
                    loss = self.step()
                    if not math.isfinite(loss):
                        self._restore(good)
                        warnings.warn(
                            f"the divergence or its gradient is not finite at step {number}; the "
                            "last state at which it was is kept. A smaller learning rate may help",
                            RuntimeWarning,
                            stacklevel=3,
                        )
                        break
                    good = before
                    losses.append(loss)
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    bar.update()
                if not all(bool(p.isfinite().all()) for p in self._parameters):
                    self._restore(good)
            except KeyboardInterrupt:
                if not all(bool(p.isfinite().all()) for p in self._parameters):
                    self._restore(good)
        return losses

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    def _restore(self, state: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state, strict=True):
                parameter.copy_(value)


class _StandardizedAdam(torch.optim.Adam):
    """Adam on parameters in units of their spreads.

    :param Sequence parameters: what is learned.
    :param Sequence spreads: as of ``Trainer``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], spreads: Sequence[Tensor]) -> None:
        # Its own parameters are the moves of a step: next to a large value rounding would eat them.
        self._parts = [
            (p, spread, torch.zeros_like(p)) for p, spread in zip(parameters, spreads, strict=True)
        ]
        super().__init__([move for _, _, move in self._parts], lr=_SHARE)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for parameter, spread, move in self._parts:
            move.zero_()
            move.grad = None if parameter.grad is None else spread * parameter.grad
        super().step(closure)
        for parameter, spread, move in self._parts:
            parameter.add_(spread * move)
