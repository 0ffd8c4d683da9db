"""Adjoint matching: the control of a diffusion, regressed on gradients at its end."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.smc import effective_sample_size
from pyro_ext.inference.training import Trainer, TrainingDiverged
from pyro_ext.inference.training.options import TrainingOptions
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.random import seeded

_ADAM = partial(torch.optim.Adam, lr=3e-3)
_MOST_LOST = 0.1

Control = Callable[[Tensor, Tensor], Tensor]
"""Maps times ``(n,)`` and states ``(n, *event)`` to controls ``(n, *event)``."""


class Transition(NamedTuple):
    """A step of a linear diffusion whose control stands still.

    The next state is ``decay * state + gain * control + scale * noise``.
    """

    decay: Tensor
    gain: Tensor
    scale: Tensor


class Evidence(NamedTuple):
    r"""Estimates of the normalizer and of the quality of the draws, by importance weights.

    :param float log_normalizer: logarithm of the mean weight, which estimates :math:`\log Z`.
    :param float lower_bound: mean of the log weights, a lower bound of :math:`\log Z`.
    :param float effective_fraction: effective sample size [1] as a fraction of the draws.

    [1] A. Kong, J. S. Liu, W. H. Wong (1994),
    Sequential imputations and Bayesian missing data problems.
    """

    log_normalizer: float
    lower_bound: float
    effective_fraction: float


class MatchingOptions(TypedDict, total=False):
    """Keyword arguments that both samplers take."""

    num_time_steps: int
    num_draws: int
    steps_per_round: int
    batch_size: int
    num_rounds_kept: int
    clip_norm: float | None
    optimizer: Optimizer
    scheduler: Callable[[Any], Any] | None
    max_norm: float | None
    ema_decay: float | None
    seed: int | None


class AdjointMatching(ABC):
    r"""Base class of both samplers: a linear diffusion from zero, and the control learned for it.

    In each round it simulates draws with the current control, computes the gradient of the terminal
    cost once for each draw, and then regresses the control on these gradients for many steps: at a
    random time :math:`t`, at a state :math:`x_t` of the uncontrolled diffusion from zero to the
    draw :math:`x_1`,

    .. math:: \lambda_t \tfrac12 \| u(t, x_t) + C_t \nabla g(x_1) \|^2 .

    The draws of a few rounds are kept. A subclass defines the diffusion and the cost.

    :param control: a module that maps times ``(n,)`` and states ``(n, *event)`` to controls
        ``(n, *event)``, such as :class:`~pyro_ext.inference.adjoint.ControlNetwork`; its parameters
        are trained in place. A plain function can be sampled with.
    :param int num_time_steps: steps of a simulation.
    :param int num_draws: draws of a round.
    :param int steps_per_round: steps of the optimizer in a round.
    :param int batch_size: draws that a step of the optimizer takes.
    :param int num_rounds_kept: rounds whose draws are kept.
    :param float clip_norm: to which the norm of the gradient at each draw is clipped. Clipping
        biases what is learned; ``clipped_fraction`` is how often it happens.
    :param optimizer: as of :class:`~pyro_ext.inference.Trainer`, by default Adam with the learning
        rate 0.003.
    :param trainer: ``scheduler``, ``max_norm``, ``ema_decay`` and ``seed``, likewise; with a decay,
        draws are taken with the average of the weights.
    """

    def __init__(
        self,
        control: Control,
        event_shape: torch.Size,
        settings: Mapping[str, Any],
        *,
        num_time_steps: int = 40,
        num_draws: int = 1024,
        steps_per_round: int = 50,
        batch_size: int = 512,
        num_rounds_kept: int = 8,
        clip_norm: float | None = None,
        optimizer: Optimizer = _ADAM,
        **trainer: Any,
    ) -> None:
        if unknown := trainer.keys() - MatchingOptions.__annotations__.keys():
            raise TypeError(f"options must be those of MatchingOptions, got {sorted(unknown)}")
        wanted = "a module or a function of times and states"
        checks.function("control", control, wanted, or_class=False)
        self.control = control
        self.event_shape = event_shape
        self.num_time_steps = checks.integer("num_time_steps", num_time_steps, 1)
        self.num_draws = checks.integer("num_draws", num_draws, 1)
        self.steps_per_round = checks.integer("steps_per_round", steps_per_round, 1)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.clip_norm = checks.optional(checks.number, "clip_norm", clip_norm, above=0)
        rounds = checks.integer("num_rounds_kept", num_rounds_kept, 1)
        # Times, and a state that tells type and device.
        self._zero = self._like().new_zeros(event_shape)
        self._buffer = _Buffer(rounds, num_draws, self._zero)
        self._trainer: Trainer | None = None
        if isinstance(control, nn.Module) and any(p.requires_grad for p in control.parameters()):
            self._trainer = Trainer(
                control,
                optimizer,
                stateful=[self._buffer],
                identity={
                    **settings,
                    "num_time_steps": num_time_steps,
                    "num_draws": num_draws,
                    "steps_per_round": steps_per_round,
                    "batch_size": batch_size,
                    "num_rounds_kept": num_rounds_kept,
                    "clip_norm": clip_norm,
                },
                **trainer,
            )

    # What a subclass says ------------------------------------------------------------------------

    @abstractmethod
    def _like(self) -> Tensor:
        """A tensor of the type and on the device of the states."""

    @abstractmethod
    def _transition(self, start: Tensor, end: Tensor) -> Transition:
        """The step from one time to another, two scalars."""

    @abstractmethod
    def _between(self, t: Tensor, end: Tensor) -> Tensor:
        """States of the uncontrolled diffusion at times ``(n,)``, given those at time one."""

    @abstractmethod
    def _pull(self, t: Tensor) -> Tensor:
        """Return the factor by which the terminal gradient is multiplied at times ``(n,)``."""

    @abstractmethod
    def _weight(self, t: Tensor) -> Tensor:
        """Weight of the loss at times ``(n,)``."""

    @abstractmethod
    def _cost(self, x: Tensor) -> Tensor:
        """The terminal cost ``(n,)``."""

    # Training ------------------------------------------------------------------------------------

    @property
    def trainer(self) -> Trainer:
        """Trainer that takes the steps.

        :raises ValueError: where the control has nothing to learn.
        """
        if self._trainer is None:
            raise ValueError(
                f"control must be a module with parameters to train it, "
                f"got {checks.shown(self.control)}"
            )
        return self._trainer

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return self.trainer.losses

    @property
    def clipped_fraction(self) -> float:
        """Fraction of the gradients in the buffer that were clipped, zero before the first step."""
        return self._buffer.clipped_fraction

    @property
    def num_lost(self) -> int:
        """Number of draws at which the gradient was not finite, in whose places others were put."""
        return self._buffer.num_lost

    def step(self) -> float:
        """Take one step of the optimizer; the first one of a round simulates before.

        :returns: the loss before the step.
        :raises TrainingDiverged: where a loss is not finite, or more than a tenth of the gradients.
        """
        return self.trainer.step(self._loss)

    def fit(self, num_steps: int, **training: Unpack[TrainingOptions]) -> Self:
        """Train until ``num_steps`` steps have been taken in total, as :meth:`Trainer.run` does.

        :param int num_steps: number of steps, those of earlier calls included.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`; the
            buffer is in the checkpoint, too, which is saved every 1,000 steps by default.
        :returns: the sampler itself.
        :raises TrainingDiverged: as :meth:`step`.
        """
        training.setdefault("save_every", 1000)
        self.trainer.run(self._loss, num_steps, description=type(self).__name__, **training)
        return self

    def _loss(self) -> Tensor:
        round_number, place = divmod(self.trainer.num_steps, self.steps_per_round)
        if place == 0:
            self._fill(round_number)
        end, gradient = self._buffer.draw(self.batch_size)
        return self.matching_loss(end, gradient)

    def matching_loss(self, end: Tensor, gradient: Tensor) -> Tensor:
        """Loss at random times, one for each draw.

        :param Tensor end: draws at time one. **Shape:** ``(n, *event)``.
        :param Tensor gradient: of the terminal cost there. **Shape:** ``(n, *event)``.
        :returns: a scalar that can be differentiated in the parameters of the control.
        """
        # A time in each of n intervals, rather than n anywhere: the mean of the loss is the same.
        number = torch.arange(len(end)).to(end)
        t = ((number + torch.rand_like(number)) / len(end)).clamp(1e-6, 1.0 - 1e-6)
        state = self._between(t, end)
        residual = self.control(t, state) + self._pull(t) * gradient
        return 0.5 * (self._weight(t) * residual.flatten(1).square().sum(-1)).mean()

    def terminal_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the terminal cost, not clipped.

        :param Tensor x: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(n, *event)``.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self._cost(x).sum(), x)[0]

    def _fill(self, round_number: int) -> None:
        """Simulate the draws of a round."""
        with torch.no_grad():
            end, _ = self._simulate(self.control, self.num_draws)
        gradient = self.terminal_gradient(end)
        norm = gradient.flatten(1).norm(dim=1)
        if num_lost := int((~norm.isfinite()).sum()):
            self._lose(num_lost, round_number)
            kept = norm.isfinite().nonzero().flatten()
            others = kept[torch.randint(len(kept), (num_lost,), device=kept.device)]
            index = torch.cat([kept, others])
            end, gradient, norm = end[index], gradient[index], norm[index]
        is_clipped = norm > (self.clip_norm or math.inf)
        factor = torch.where(is_clipped, (self.clip_norm or 1.0) / norm, 1.0)
        gradient = gradient * factor.reshape(-1, *[1] * (gradient.dim() - 1))
        self._buffer.put(round_number, end, gradient, is_clipped)

    def _lose(self, num_lost: int, round_number: int) -> None:
        """Say that some draws of a round are of no use, or raise where they are many."""
        message = (
            f"energy must have a finite gradient at every draw, got {num_lost} of "
            f"{self.num_draws} in round {round_number + 1} that are not"
        )
        if num_lost > _MOST_LOST * self.num_draws:
            raise TrainingDiverged(message, self.losses)
        if not self.num_lost:
            warnings.warn(
                f"{message}; other draws of the round take their places. num_lost counts them",
                stacklevel=2,
            )
        self._buffer.num_lost += num_lost

    # Drawing -------------------------------------------------------------------------------------

    def simulate(
        self, num_samples: int, num_time_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the controlled diffusion, with gradients in the parameters of the control.

        :param int num_samples: number of draws.
        :param int num_time_steps: steps of the simulation; those of the training without it.
        :returns: the states at time one, **Shape:** ``(num_samples, *event)``, and the log density
            of the whole simulation with respect to the one without control,
            **Shape:** ``(num_samples,)``. It is exact for the steps as they are taken.
        """
        num_samples = checks.integer("num_samples", num_samples, 1)
        average = None if self._trainer is None else self._trainer.average
        control = self.control if average is None else average
        return self._simulate(control, num_samples, num_time_steps)

    def _simulate(
        self, control: Control, num_samples: int, num_time_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        if num_time_steps is None:
            num_time_steps = self.num_time_steps
        num_time_steps = checks.integer("num_time_steps", num_time_steps, 1)
        x = self._zero.expand(num_samples, *self.event_shape)
        log_ratio = self._zero.new_zeros(num_samples)
        for start, end in pairwise(
            torch.linspace(0.0, 1.0, num_time_steps + 1, dtype=x.dtype, device=x.device)
        ):
            decay, gain, scale = self._transition(start, end)
            push = control(start.expand(num_samples), x)
            if not isinstance(push, Tensor) or push.shape != x.shape:
                raise ValueError(
                    f"control must return a tensor of shape {tuple(x.shape)}, "
                    f"got {checks.shown(push)}"
                )
            shift, noise = gain * push / scale, torch.randn_like(x)
            x = decay * x + scale * (shift + noise)
            log_ratio = log_ratio + (shift * noise + 0.5 * shift.square()).flatten(1).sum(-1)
        return x, log_ratio

    @torch.no_grad()
    def evaluate(
        self, num_samples: int, *, num_time_steps: int | None = None, seed: int | None = None
    ) -> Evidence:
        r"""Estimate the normalizer, and how much draws are worth as importance samples.

        :param int num_samples: number of draws.
        :param int num_time_steps: steps of the simulation; those of the training without it.
        :param int seed: of the draws.
        """
        num_samples = checks.integer("num_samples", num_samples, 1)
        with seeded(seed):
            x, log_ratio = self.simulate(num_samples, num_time_steps)
        log_weight = (-self._cost(x) - log_ratio).double()
        return Evidence(
            float(log_weight.logsumexp(0)) - math.log(num_samples),
            float(log_weight.mean()),
            float(effective_sample_size(log_weight)) / num_samples,
        )

    def __repr__(self) -> str:
        steps = 0 if self._trainer is None else self._trainer.num_steps
        return f"{type(self).__name__}({tuple(self.event_shape)}, {steps} steps)"


class _Buffer:
    """Draws of the last rounds and gradients there; a round that is repeated replaces itself."""

    def __init__(self, num_rounds: int, num_draws: int, like: Tensor) -> None:
        self._ends = like.new_zeros(num_rounds, num_draws, *like.shape)
        self._gradients = torch.zeros_like(self._ends)
        self._clipped = like.new_zeros(num_rounds)
        self._num_filled = self.num_lost = 0

    @property
    def clipped_fraction(self) -> float:
        return float(self._clipped[: self._num_filled].mean()) if self._num_filled else 0.0

    def put(self, number: int, ends: Tensor, gradients: Tensor, is_clipped: Tensor) -> None:
        """Keep the draws of a round in place of the oldest one."""
        row = number % len(self._ends)
        self._ends[row], self._gradients[row] = ends, gradients
        self._clipped[row] = is_clipped.to(self._clipped).mean()
        self._num_filled = min(number + 1, len(self._ends))

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Some draws, with replacement."""
        number = self._num_filled * self._ends.shape[1]
        index = torch.randint(number, (size,), device=self._ends.device)
        return self._ends.flatten(0, 1)[index], self._gradients.flatten(0, 1)[index]

    def state_dict(self) -> dict[str, Any]:
        tensors = {"ends": self._ends, "gradients": self._gradients, "clipped": self._clipped}
        return {**tensors, "num_filled": self._num_filled, "num_lost": self.num_lost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, own in self.state_dict().items():
            if isinstance(own, Tensor):
                own.copy_(state[name])
        self._num_filled, self.num_lost = state["num_filled"], state["num_lost"]
