"""Exact Metropolis-Hastings for paths, with preconditioned Crank-Nicolson proposals."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self, Unpack

import pyro
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions import DirichletOU
from pyro_ext.inference.adjoint.samplers import check_path_energy, path_grid
from pyro_ext.inference.vectorized import Info, VectorizedKernel, VectorizedOptions
from pyro_ext.random import uniform


class PathModel:
    r"""Paths between two ends as a Pyro model: a Brownian bridge with an energy.

    Its sites are the whitened modes ``"z"``, which are standard normal a priori, and ``"path"``,
    which is a function of them; its factor is :math:`e^{-U}`. Any kernel or guide can run on it.

    :param DirichletOU reference: defines the modes and the end points.
    :param path_energy: :math:`U`, a function of paths ``(*batch, num_points, dim)`` and their grid.
    :param Tensor grid: points of the paths, as for
        :class:`~pyro_ext.inference.FunctionalAdjointSampler`. **Shape:** ``(num_points,)``.
    :raises ValueError: for a grid that does not increase.

    Example::

        >>> from pyro_ext.distributions import DirichletOU
        >>> from pyro_ext.inference.adjoint import DoubleWell1D, OnsagerMachlup, PathModel
        >>> reference = DirichletOU(2.0, num_modes=4, dim=1, start=-1.0, end=1.0)
        >>> energy = OnsagerMachlup(DoubleWell1D())
        >>> model = PathModel(reference, energy)
        >>> pyro.poutine.trace(model).get_trace().nodes["path"]["value"].shape
        torch.Size([25, 1])
    """

    def __init__(
        self,
        reference: DirichletOU,
        path_energy: Callable[[Tensor, Tensor], Tensor],
        grid: Tensor | None = None,
    ) -> None:
        self.grid = path_grid(reference, grid)
        check_path_energy(path_energy)
        self.reference, self.path_energy = reference, path_energy

    def __call__(self) -> Tensor:
        """Draw a path."""
        z = pyro.sample("z", self.reference.invariant)
        path: Tensor = pyro.deterministic("path", self.reference.synthesis(z, self.grid))
        pyro.factor("path_energy", -self.path_energy(path, self.grid))
        return path


class PathPCNState(NamedTuple):
    """State of chains.

    :param Tensor position: whitened modes, flat. **Shape:** ``(num_chains, size)``.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param Tensor num_transitions: **Shape:** ``(num_chains,)``.
    :param Tensor is_taken: one where the last proposal was taken. **Shape:** ``(num_chains,)``.
    """

    position: Tensor
    keys: Tensor
    num_transitions: Tensor
    is_taken: Tensor


class PathPCN(VectorizedKernel):
    r"""Samples paths between two ends by preconditioned Crank-Nicolson proposals [1].

    A proposal mixes the modes with a fresh draw of the reference,
    :math:`z' = \sqrt{1 - \beta^2} \, z + \beta \zeta`, and is accepted with probability
    :math:`\min(1, e^{U(\gamma) - U(\gamma')})`. Chains are exact for any number of modes and any
    :math:`\beta`, and the acceptance rate does not fall as modes are added. No gradient is needed.
    Between distant groups of paths, chains move slowly: run many of them, and check R-hat.

    Draws hold the modes ``"z"`` and the paths ``"path"``.

    :param DirichletOU reference: the modes and the ends of the paths.
    :param path_energy: :math:`U`, a function of paths ``(*batch, num_points, dim)`` and their grid
        ``(num_points,)`` that returns ``(*batch)``.
    :param float step_size: :math:`\beta`, in ``(0, 1]``. If few proposals are accepted, as the
        sample statistic ``acceptance_rate`` shows, use a smaller one.
    :param Tensor grid: as for :class:`~pyro_ext.inference.FunctionalAdjointSampler`.
    :param options: ``backend``, ``steps_per_sample`` and ``init_strategy``, as for
        :class:`~pyro_ext.inference.VectorizedKernel`.
    :raises ValueError: for numbers out of range.

    [1] S. L. Cotter, G. O. Roberts, A. M. Stuart, D. White (2013),
    MCMC methods for functions: modifying old algorithms to make them faster.

    Example::

        >>> from pyro_ext.distributions import DirichletOU
        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.inference.adjoint import DoubleWell1D, OnsagerMachlup
        >>> reference = DirichletOU(2.0, num_modes=4, dim=1, start=-1.0, end=1.0)
        >>> kernel = PathPCN(reference, OnsagerMachlup(DoubleWell1D()), step_size=0.4)
        >>> mcmc = MCMC(kernel, 100, 50, num_chains=10, seed=0, progress=False).run()
        >>> mcmc.get_samples()["path"].shape
        torch.Size([1000, 25, 1])
    """

    def __init__(
        self,
        reference: DirichletOU,
        path_energy: Callable[[Tensor, Tensor], Tensor],
        *,
        step_size: float = 0.4,
        grid: Tensor | None = None,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        model = PathModel(reference, path_energy, grid)
        self.reference, self.path_energy, self.grid = reference, path_energy, model.grid
        self.step_size = checks.number("step_size", step_size, above=0, most=1)
        super().__init__(model, **options)

    def replace(self, **changes: Any) -> Self:
        """Return a new kernel with other settings.

        :param changes: keyword arguments of the constructor.
        :raises TypeError: for a keyword that the constructor does not take.
        """
        settings = self.settings()
        if unknown := set(changes) - set(settings):
            raise TypeError(f"PathPCN has no setting {sorted(unknown)}; it has {list(settings)}")
        return type(self)(**{**settings, **changes})

    def _init(self, position: Tensor, keys: Tensor) -> PathPCNState:
        count = torch.zeros(len(position), dtype=torch.int64, device=position.device)
        return PathPCNState(position, keys, count, position.new_ones(len(position)))

    def _function(self) -> Any:
        return self.potential.value

    def _step(
        self,
        state: PathPCNState,
        function: Callable[[Tensor], Tensor],
        noise: Tensor,
        **schedules: Tensor,
    ) -> tuple[PathPCNState, Info]:
        chance = uniform(state.keys, state.num_transitions[0], 1, stream=1, dtype=noise.dtype)
        beta, position = self.step_size, state.position
        proposal = (1.0 - beta**2) ** 0.5 * position + beta * noise
        value, proposed = function(position), function(proposal)
        # The potential holds the prior, which the proposal leaves invariant.
        prior = 0.5 * (proposal.square() - position.square()).sum(-1)
        is_taken = chance[:, 0].log() < value - proposed + prior
        after = torch.where(is_taken[:, None], proposal, position)
        keys = state.keys.clone()  # a compiled loop wants no state that is the one before
        taken = is_taken.to(noise.dtype)
        return PathPCNState(after, keys, state.num_transitions + 1, taken), Info(value)

    def _statistics(self, state: PathPCNState) -> dict[str, Tensor]:
        return {"acceptance_rate": state.is_taken}
