"""What kernels with momentum and friction share."""

from collections.abc import Callable, Mapping
from typing import Any, Self, Unpack

from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.inference.sgmcmc.kernel import KernelOptions, SGMCMCKernel

__all__ = ["FrictionKernel"]


class FrictionKernel(SGMCMCKernel):
    """A kernel whose momentum decays: at a friction times the step size, or at a rate of its own.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param friction: a number, or numbers by pattern of site names such as ``{"weight*": 100.0,
        "default": 1.0}``. Its product with the largest step size must be at most one.
    :param momentum_decay: share of the momentum lost in a step, instead of friction; it then does
        not follow the schedule of the step size. Like friction a number or numbers by site.
    :param options: step size, temperature and what else all kernels take, see
        :class:`SGMCMCKernel`.
    :raises ValueError: for arguments out of range, or for both.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None,
        friction: float | Mapping[str, float] | None,
        momentum_decay: float | Mapping[str, float] | None,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(model, **options)
        if friction is not None and momentum_decay is not None:
            raise ValueError(
                "either friction or momentum_decay must be given, and not both, got "
                f"friction={friction!r:.80}, momentum_decay={momentum_decay!r:.80}"
            )
        self.friction = friction
        self.momentum_decay = momentum_decay
        if momentum_decay is None:
            _numbers("friction", friction)
        else:
            _numbers("momentum_decay", momentum_decay, most=1)

    def _smallest_decay(self) -> float:
        """Share of the momentum that the largest step takes at least, once friction is checked."""
        least, most = self._least_and_most()
        if self.momentum_decay is not None:
            return least
        largest = self.schedule.max_step_size
        if most * largest > 1.0:
            raise ValueError(
                "friction times the largest step_size must be at most 1, got "
                f"{most!r} * {largest!r} = {most * largest!r}"
            )
        return least * largest

    def _least_and_most(self) -> tuple[float, float]:
        """The smallest and the largest friction or momentum decay of all sites."""
        if self.momentum_decay is not None:
            numbers = _numbers("momentum_decay", self.momentum_decay)
        else:
            numbers = _numbers("friction", self.friction)
        return min(numbers), max(numbers)

    def replace(self, **changes: Any) -> Self:
        """Return a new kernel with other settings; friction or momentum decay puts out the other.

        See :meth:`SGMCMCKernel.replace`.
        """
        if "friction" in changes:
            changes.setdefault("momentum_decay", None)
        elif "momentum_decay" in changes:
            changes["friction"] = None
        return super().replace(**changes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__getstate__().items() if name != "_rate"}

    def _prepare(self) -> None:
        layout = self.potential.layout
        if self.momentum_decay is not None:
            self._rate = layout.expand(self.momentum_decay, "momentum_decay")
        else:
            assert self.friction is not None
            self._rate = layout.expand(self.friction, "friction")

    def _decay(self, step_size: Tensor) -> Tensor:
        """Share of the momentum that a step takes, for each parameter. **Shape:** ``(size,)``."""
        return self._rate if self.friction is None else step_size * self._rate


def _numbers(
    argument: str, value: float | Mapping[str, float] | None, most: float | None = None
) -> list[float]:
    """A number, or those of a mapping by site, all of them positive."""
    if not isinstance(value, Mapping):
        return [check_number(argument, value, above=0, most=most)]
    if not value:
        raise ValueError(f"{argument} must be a number or a number by site, got an empty mapping")
    return [check_number(f"{argument}[{k!r}]", v, above=0, most=most) for k, v in value.items()]
