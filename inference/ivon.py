"""An optimizer whose steps fit a normal posterior of the weights, at the cost of Adam."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_ext._lib import checks
from pyro_ext.random import fresh_seed, spawn_seed


class IVON(Optimizer):
    r"""Variational online Newton steps for a diagonal normal posterior of the parameters [1].

    The posterior is :math:`N(m, \sigma^2)` with :math:`\sigma = 1 / \sqrt{\lambda (h + \delta)}`,
    for a loss that is a mean over the data, and a normal prior of precision
    :math:`\lambda \delta`. Each step evaluates the gradient :math:`\hat g` at a draw
    :math:`\theta`. Its product with the noise estimates the curvature,
    :math:`\hat h = \hat g (\theta - m) / \sigma^2`. The step is

    .. math::
        g &\leftarrow \beta_1 g + (1 - \beta_1) \hat g, \qquad
        h \leftarrow (1 - \rho) h + \rho \hat h + \tfrac{\rho^2}{2} (h - \hat h)^2 / (h + \delta)

        m &\leftarrow m - \alpha \, (g / (1 - \beta_1^t) + \delta m) / (h + \delta)

    with :math:`\rho = 1 - \beta_2`, which keeps :math:`h + \delta` positive. The parameters hold
    :math:`m`. Since the gradient is evaluated elsewhere, pass the loss through :meth:`sampled`.

    An initial curvature that is too small makes the first draws wide and the steps long: if
    training diverges, raise ``hess_init``. Take at least :math:`1 / \rho` steps, or the curvature
    still has its initial value. Parameters that require no gradient are not changed, and have no
    scales or draws.

    :param params: tensors, or groups of them, as for :class:`torch.optim.Optimizer`.
    :param float lr: :math:`\alpha`.
    :param float ess: :math:`\lambda`, the effective number of data.
    :param float hess_init: initial value of :math:`h`.
    :param betas: :math:`\beta_1` and :math:`\beta_2`.
    :param float weight_decay: :math:`\delta`.
    :param float clip_radius: bound on the factor of :math:`\alpha`, element by element; ``None``
        does not clip.
    :param int num_samples: number of draws of a step.
    :param int seed: seed of the draws, which stay the same if training resumes from a checkpoint.
    :raises ValueError: for numbers out of range, also in groups.
    :raises TypeError: for parameters that are not floating-point tensors.

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
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        self._curvatures: list[Tensor] | None = None
        if isinstance(params, Tensor | str) or not hasattr(params, "__iter__"):
            raise TypeError(f"params must be tensors or groups of them, got {checks.shown(params)}")
        given = list(params)
        tensors = [t for p in given for t in (p["params"] if isinstance(p, dict) else [p])]
        if not tensors or not all(isinstance(one, Tensor) for one in tensors):
            raise TypeError(f"params must be tensors or groups of them, got {checks.shown(given)}")
        defaults = dict(
            lr=lr,
            ess=ess,
            hess_init=hess_init,
            betas=betas,
            weight_decay=weight_decay,
            clip_radius=clip_radius,
            seed=fresh_seed(seed),
        )
        _check_settings(defaults)
        super().__init__(given, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "num_samples": self.num_samples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._curvatures = None
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, which start with the curvature ``hess_init``.

        :param dict param_group: ``"params"``, and settings that differ from the defaults.
        :raises ValueError: for settings out of range, or parameters that are not finite.
        :raises TypeError: for parameters that are not floating-point tensors.
        """
        checks.mapping("param_group", param_group, "a dict with params")
        _check_settings({**self.defaults, **param_group})
        params = param_group.get("params")
        params = [params] if isinstance(params, Tensor) else list(params or [])
        if not params:
            raise ValueError(f"param_group must hold params, got {checks.shown(param_group)}")
        for one in params:
            if not (isinstance(one, Tensor) and one.is_floating_point()):
                raise TypeError(f"params must be floating-point tensors, got {checks.shown(one)}")
            checks.all_finite("params", one)
        super().add_param_group({**param_group, "params": params})
        group = self.param_groups[-1]
        for parameter in params:
            self.state[parameter] = {
                "step": 0,
                "momentum": torch.zeros_like(parameter),
                "hess": torch.full_like(parameter, group["hess_init"]),
            }
        self._curvatures = None  # they are not of the new parameters

    def sampled(self, loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """Make a function that evaluates the loss and its gradients at draws from the posterior.

        The gradients are also left in the parameters' ``grad``, for :meth:`step`, as after a
        backward pass; earlier gradients are lost.

        :param Callable loss: returns a scalar, or one value for each of several independent rows:
            the mean over the data of what is minimized.
        :returns: a function with the same arguments, for :meth:`pyro_ext.inference.Trainer.run`.
            After a call, the parameters are the mean again.
        """
        checks.function("loss", loss)

        @wraps(loss)
        def run(*args: Any) -> tuple[Tensor, list[Tensor]]:
            parameters = self._parameters()
            means = [parameter.detach().clone() for parameter in parameters]
            scales = self.scales()
            values, gradients, curvatures = [], [], []
            for parameter in parameters:
                parameter.grad = None
            try:
                for number in range(self.num_samples):
                    noises = self._noises(number)
                    with torch.no_grad():
                        for p, m, s, e in zip(parameters, means, scales, noises, strict=True):
                            p.copy_(m + s * e)
                    value = loss(*args)
                    if any(parameter.grad is not None for parameter in parameters):
                        raise RuntimeError(
                            "loss must not call backward(), as IVON takes the gradients itself; "
                            "return its value only"
                        )
                    if not isinstance(value, Tensor) or not value.requires_grad:
                        raise ValueError(
                            "loss must return a tensor that depends on the parameters, got "
                            f"{checks.shown(value)}"
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
            averages = _averages(gradients)
            for parameter, gradient in zip(parameters, averages, strict=True):
                parameter.grad = gradient
            return torch.stack(values).mean(0), averages

        return run

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients at draws.

        :param Callable closure: the loss, if :meth:`sampled` has not evaluated it. It returns the
            value and does not call ``backward()``.
        :returns: the loss of the closure.
        :raises RuntimeError: if no loss has been evaluated since the last step, or its gradients
            have been set to ``None``.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value, _ = self.sampled(closure)()
        if self._curvatures is None:
            raise RuntimeError("IVON needs the loss to be evaluated by sampled(loss) before a step")
        if all(parameter.grad is None for parameter in self._parameters()):
            raise RuntimeError(
                "IVON needs gradients: call zero_grad() before sampled(loss), if ever"
            )
        curvatures, self._curvatures = iter(self._curvatures), None
        for group in self.param_groups:
            decay, radius = group["weight_decay"], group["clip_radius"]
            beta1, beta2 = group["betas"]
            for parameter in _trained(group):
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
        r""":math:`\sigma` of each parameter, in order."""
        return [
            (group["ess"] * (self.state[p]["hess"] + group["weight_decay"])).rsqrt()
            for group in self.param_groups
            for p in _trained(group)
        ]

    def draws(self, num_samples: int, *, seed: int | None = None) -> list[Tensor]:
        """Draw each parameter from the posterior, in order.

        :param int num_samples: number of draws.
        :param int seed: seed of the draws; ``None`` takes one from PyTorch's generator.
        :returns: **Shape:** ``(num_samples, *shape)`` each.
        """
        number = checks.integer("num_samples", num_samples, 1)
        key = fresh_seed(seed)
        return [
            p.detach() + scale * _noise((number, *p.shape), p, spawn_seed(key, place))
            for place, (p, scale) in enumerate(zip(self._parameters(), self.scales(), strict=True))
        ]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in _trained(group)]

    def _noises(self, number: int) -> list[Tensor]:
        """Noise of a draw, which follows from the seed and the number of the step."""
        noises: list[Tensor] = []
        for group in self.param_groups:
            for parameter in _trained(group):
                key = (self.state[parameter]["step"], number, len(noises))
                noises.append(_noise(parameter.shape, parameter, spawn_seed(group["seed"], *key)))
        return noises


def _trained(group: dict[str, Any]) -> list[Tensor]:
    """Parameters of a group that require gradients."""
    return [parameter for parameter in group["params"] if parameter.requires_grad]


def _check_settings(group: dict[str, Any]) -> None:
    """Check the numbers of a group."""
    for name in ("lr", "ess", "hess_init"):
        checks.number(name, group[name], above=0)
    pair = checks.sequence("betas", group["betas"], "two numbers from 0 to below 1")
    if len(pair) != 2:
        raise ValueError(
            f"betas must be two numbers from 0 to below 1, got {checks.shown(group['betas'])}"
        )
    for beta in pair:
        checks.number("betas", beta, least=0, below=1)
    checks.number("weight_decay", group["weight_decay"], least=0)
    checks.optional(checks.number, "clip_radius", group["clip_radius"], above=0)
    checks.integer("seed", group["seed"], 0)


def _noise(shape: Any, like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of the type and on the device of a tensor."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _averages(samples: list[Any]) -> list[Tensor]:
    """Means over samples of lists of tensors."""
    return [torch.stack(list(one)).mean(0) for one in zip(*samples, strict=True)]
