"""An optimizer whose steps fit a normal posterior of the weights, at the cost of Adam."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_ext._checks import check_callable, check_integer, check_number, check_sequence, shown
from pyro_ext.random import fresh_seed, spawn_seed

__all__ = ["IVON"]


class IVON(Optimizer):
    r"""Variational online Newton steps for a diagonal normal posterior of the parameters [1].

    The posterior is :math:`N(m, \sigma^2)` with :math:`\sigma = 1 / \sqrt{\lambda (h + \delta)}`,
    for a loss that is a mean over the data and a normal prior of precision
    :math:`\lambda \delta`. Each step evaluates the gradient :math:`\hat g` at a draw
    :math:`\theta`, whose product with the noise is an estimate of the curvature,
    :math:`\hat h = \hat g (\theta - m) / \sigma^2`, and then takes

    .. math::
        g &\leftarrow \beta_1 g + (1 - \beta_1) \hat g, \qquad
        h \leftarrow (1 - \rho) h + \rho \hat h + \tfrac{\rho^2}{2} (h - \hat h)^2 / (h + \delta)

        m &\leftarrow m - \alpha \, (g / (1 - \beta_1^t) + \delta m) / (h + \delta)

    with :math:`\rho = 1 - \beta_2`, which leaves :math:`h + \delta` positive. The parameters hold
    :math:`m`. As the gradient has to be taken elsewhere, the loss goes through :meth:`sampled`.

    A curvature that starts too small makes the first draws wide, and the steps long: where
    training diverges, raise ``hess_init``. Take :math:`1 / \rho` steps at least, or the curvature
    is still what it was at the start.

    :param params: tensors, or groups of them, as of :class:`torch.optim.Optimizer`.
    :param float lr: :math:`\alpha`.
    :param float ess: :math:`\lambda`, the effective number of data.
    :param float hess_init: :math:`h` at the start.
    :param betas: :math:`\beta_1` and :math:`\beta_2`.
    :param float weight_decay: :math:`\delta`.
    :param float clip_radius: largest size of what :math:`\alpha` multiplies, element by element;
        ``None`` does not clip.
    :param int num_samples: draws of a step.
    :param int seed: of the draws, which are the same in a training that goes on from a checkpoint.
    :raises ValueError: for numbers out of range.

    [1] Y. Shen and others (2024), Variational learning is effective for large deep networks.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.inference import IVON, Trainer
        >>> network, x = torch.nn.Linear(2, 1), torch.randn(100, 2)
        >>> def loss():
        ...     return (network(x)[:, 0] - x.sum(-1)).square().mean()
        >>> ivon = partial(IVON, lr=0.1, ess=100, betas=(0.9, 0.99), seed=0)
        >>> trainer = Trainer(network, ivon, seed=0)
        >>> losses = trainer.run(trainer.optimizer.sampled(loss), 200, progress=False)
        >>> [tuple(draws.shape) for draws in trainer.optimizer.draws(5, seed=0)]
        [(5, 1, 2), (5, 1)]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        *,
        ess: float,
        hess_init: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        clip_radius: float | None = None,
        num_samples: int = 1,
        seed: int | None = None,
    ) -> None:
        check_number("lr", lr, above=0)
        check_number("ess", ess, above=0)
        check_number("hess_init", hess_init, above=0)
        pair = check_sequence("betas", betas, "two numbers from 0 to below 1")
        if len(pair) != 2:
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {shown(betas)}")
        for beta in pair:
            check_number("betas", beta, least=0, below=1)
        check_number("weight_decay", weight_decay, least=0)
        if clip_radius is not None:
            check_number("clip_radius", clip_radius, above=0)
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self._curvatures: list[Tensor] | None = None
        if isinstance(params, Tensor | str) or not hasattr(params, "__iter__"):
            raise TypeError(f"params must be tensors or groups of them, got {shown(params)}")
        given = list(params)
        tensors = [t for p in given for t in (p["params"] if isinstance(p, dict) else [p])]
        if not tensors or not all(isinstance(one, Tensor) for one in tensors):
            raise TypeError(f"params must be tensors or groups of them, got {shown(given)}")
        defaults = dict(
            lr=lr,
            ess=ess,
            hess_init=hess_init,
            betas=tuple(pair),
            weight_decay=weight_decay,
            clip_radius=clip_radius,
            seed=fresh_seed(seed),
        )
        super().__init__(given, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": 0,
                    "momentum": torch.zeros_like(parameter),
                    "hess": torch.full_like(parameter, group["hess_init"]),
                }

    def sampled(self, loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """The loss at draws from the posterior, with its gradients there.

        :param Callable loss: returns a scalar, or one of each row that has nothing to do with
            others; the mean over the data of what is to be minimized.
        :returns: a function of the same arguments, as :meth:`pyro_ext.inference.Trainer.run` takes
            it, after which the parameters are the mean again.
        """
        check_callable("loss", loss)

        @wraps(loss)
        def run(*args: Any) -> tuple[Tensor, list[Tensor]]:
            parameters = self._parameters()
            means = [parameter.detach().clone() for parameter in parameters]
            scales = self.scales()
            values, gradients, curvatures = [], [], []
            try:
                for number in range(self.num_samples):
                    noises = self._noises(number)
                    with torch.no_grad():
                        for p, m, s, e in zip(parameters, means, scales, noises, strict=True):
                            p.copy_(m + s * e)
                    value = loss(*args)
                    if not isinstance(value, Tensor) or not value.requires_grad:
                        raise ValueError(
                            "loss must return a tensor that depends on the parameters, got "
                            f"{shown(value)}"
                        )
                    found = torch.autograd.grad(
                        value.sum(), parameters, allow_unused=True, materialize_grads=True
                    )
                    values.append(value.detach())
                    gradients.append(found)
                    curvatures.append(
                        [g * e / s for g, e, s in zip(found, noises, scales, strict=True)]
                    )
            finally:
                with torch.no_grad():
                    for parameter, mean in zip(parameters, means, strict=True):
                        parameter.copy_(mean)
            self._curvatures = _averages(curvatures)
            return torch.stack(values).mean(0), _averages(gradients)

        return run

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients at draws.

        :param Callable closure: the loss, where it has not been evaluated by :meth:`sampled`.
        :returns: the loss of the closure.
        :raises RuntimeError: where no loss has been evaluated since the last step.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value, gradients = self.sampled(closure)()
            for parameter, gradient in zip(self._parameters(), gradients, strict=True):
                parameter.grad = gradient
        if self._curvatures is None:
            raise RuntimeError("IVON needs the loss to be evaluated by sampled(loss) before a step")
        curvatures, self._curvatures = iter(self._curvatures), None
        for group in self.param_groups:
            decay, radius = group["weight_decay"], group["clip_radius"]
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state, curvature = self.state[parameter], next(curvatures)
                state["step"] += 1
                gradient = parameter.grad
                if gradient is None:
                    gradient = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1.0 - beta1)
                before, rho = state["hess"], 1.0 - beta2
                change = rho * (curvature - before)
                state["hess"] = before + change + 0.5 * change.square() / (before + decay)
                unbiased = state["momentum"] / (1.0 - beta1 ** state["step"])
                move = (unbiased + decay * parameter) / (state["hess"] + decay)
                if radius is not None:
                    move = move.clamp(-radius, radius)
                parameter.sub_(group["lr"] * move)
        return value

    def scales(self) -> list[Tensor]:
        r""":math:`\sigma` of each parameter, in their order."""
        return [
            (group["ess"] * (self.state[p]["hess"] + group["weight_decay"])).rsqrt()
            for group in self.param_groups
            for p in group["params"]
        ]

    def draws(self, num_samples: int, *, seed: int | None = None) -> list[Tensor]:
        """Draws of each parameter from the posterior, in their order.

        :param int num_samples: how many.
        :param int seed: of the draws; ``None`` takes one from PyTorch's generator.
        :returns: **Shape:** ``(num_samples, *shape)`` each.
        """
        number = check_integer("num_samples", num_samples, 1)
        key = fresh_seed(seed)
        return [
            p.detach() + scale * _noise((number, *p.shape), p, spawn_seed(key, place))
            for place, (p, scale) in enumerate(zip(self._parameters(), self.scales(), strict=True))
        ]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _noises(self, number: int) -> list[Tensor]:
        """Noise of a draw, which follows from the seed and the number of the step."""
        noises: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                key = (self.state[parameter]["step"], number, len(noises))
                noises.append(_noise(parameter.shape, parameter, spawn_seed(group["seed"], *key)))
        return noises


def _noise(shape: Any, like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of the type and on the device of a tensor."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _averages(samples: list[Any]) -> list[Tensor]:
    """Means over samples of lists of tensors."""
    return [torch.stack(list(one)).mean(0) for one in zip(*samples, strict=True)]
