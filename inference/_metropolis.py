"""What kernels share whose proposals are taken or not as Metropolis has it."""

from collections.abc import Callable
from typing import Any, Generic, TypedDict, TypeVar

from torch import Tensor

from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.potential import Backend, InitStrategy

__all__ = ["MetropolisKernel", "MetropolisOptions"]

Prepared = TypeVar("Prepared")


class MetropolisOptions(TypedDict, total=False):
    """Keyword arguments that such kernels take."""

    potential_fn: Callable[[dict[str, Tensor]], Tensor] | None
    backend: Backend
    num_steps: int


class MetropolisKernel(SGMCMCKernel, Generic[Prepared]):
    """Kernel whose draws are from the posterior itself, and which looks at it before the first.

    :param model: a Pyro model, or ``None`` where ``potential_fn`` is given.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar.
    :param str backend: how the potential runs, see :class:`~pyro_ext.potential.Potential`.
    :param int num_steps: transitions that one call of ``sample`` takes, under Pyro's driver.
    :param init_strategy: where the look begins.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        backend: Backend = "trace",
        num_steps: int = 1,
        init_strategy: InitStrategy,
    ) -> None:
        super().__init__(
            model,
            potential_fn=potential_fn,
            backend=backend,
            num_steps=num_steps,
            init_strategy=init_strategy,
        )
        self._known: Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}

    @property
    def _preparation(self) -> Prepared:
        if self._known is None:
            raise RuntimeError("the kernel has not seen its posterior yet: call setup(...) first")
        return self._known

    def _prepare(self) -> None:
        if plates := self.potential.subsampled_plates:
            names = [plate.name for plate in plates]
            raise ValueError(f"model must see all of its data, but it subsamples in {names}")
