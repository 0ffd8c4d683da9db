"""Mass matrices of HMC and NUTS: what of draws they are estimated from, and when."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.adaptation import (
    DualAveraging,
    Moments,
    WindowsKind,
    add_draw,
    estimated_factor,
    first_factor,
    fisher_factor,
    growing_windows,
    low_rank_factor,
    new_moments,
    stan_windows,
)
from pyro_ext.inference.hmc.loop import Drawn
from pyro_ext.inference.hmc.trajectories import Outcome
from pyro_ext.potential import Layout

MassEstimate = Literal["fisher", "variance"]
FullMass = bool | Literal["low_rank"] | Sequence[Sequence[str]]

# A warm-up of 400 steps estimates from some 200 draws. In 100 dimensions, these show spurious
# directions if the posterior is not normal: for a horseshoe, a fifth of the transitions diverged.
_MOST_LOW_RANK = 50
# A trajectory that diverged within so many leapfrogs chose a point that is hardly another one.
_FEW_STEPS = 8


class HamiltonianState(NamedTuple):
    """State of chains between two transitions.

    :param Tensor position: **Shape:** ``(num_chains, size)``, as ``gradient`` and ``mean``.
    :param Tensor gradient: of the potential there.
    :param Tensor value: the potential there. **Shape:** ``(num_chains,)``, as all others but three.
    :param Tensor energy: of the draw with its momentum.
    :param Tensor acceptance_rate: of the last transition, as the symmetric one.
    :param Tensor num_steps: leapfrog steps of the last transition.
    :param Tensor tree_depth: doublings of the last transition.
    :param Tensor diverging: whether the last transition diverged.
    :param Tensor step_size: of the last transition.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param Tensor num_leapfrogs: of the chain so far.
    :param Tensor log_step: logarithm of the next step size.
    :param Tensor log_average: see :class:`DualAveraging`, as the three that follow.
    :param Tensor factor: of inverse mass matrices. **Shape:** ``(num_chains or 1, size)``, or with
        full ones ``(num_chains or 1, size, size)``.
    :param Tensor number: draws since the window before, with their ``mean`` and ``squares``; those
        of this window have ``new_`` before.
    :param Tensor window: these draws and their gradients, where masses take them all.
        **Shape:** ``(num_chains, num_draws, 2 * size)``.
    """

    position: Tensor
    gradient: Tensor
    value: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    symmetric_rate: Tensor
    num_steps: Tensor
    tree_depth: Tensor
    diverging: Tensor
    step_size: Tensor
    keys: Tensor
    num_leapfrogs: Tensor
    log_step: Tensor
    log_average: Tensor
    error: Tensor
    num_updates: Tensor
    center: Tensor
    factor: Tensor
    number: Tensor
    mean: Tensor
    squares: Tensor
    new_number: Tensor
    new_mean: Tensor
    new_squares: Tensor
    window: Tensor

    def outcome(self) -> Outcome:
        """The last transition."""
        return Outcome(*self[: len(Outcome._fields)])

    def search(self) -> DualAveraging:
        """The search for step sizes."""
        return DualAveraging(*(getattr(self, name) for name in DualAveraging._fields))

    def moments(self) -> Moments:
        """Moments since the window before."""
        return Moments(self.number, self.mean, self.squares)

    def new_moments(self) -> Moments:
        """Moments of this window."""
        return Moments(self.new_number, self.new_mean, self.new_squares)

    def with_moments(self, moments: Moments, new: Moments) -> "HamiltonianState":
        """Put in other moments."""
        named = {f"new_{name}": value for name, value in new._asdict().items()}
        return self._replace(**moments._asdict(), **named)


def checked_full_mass(
    full_mass: object,
) -> bool | Literal["low_rank"] | tuple[tuple[str, ...], ...] | None:
    """Check whether mass matrices are full, or which groups of sites have full blocks."""
    if full_mass is None or isinstance(full_mass, bool):
        return full_mass
    if isinstance(full_mass, str) and full_mass == "low_rank":
        return "low_rank"
    wanted = "True, False, 'low_rank' or a list of tuples of names of sites, each in one of them"
    groups = checks.sequence("full_mass", full_mass, wanted)
    blocks = tuple(tuple(checks.sequence("full_mass", group, wanted, kind=str)) for group in groups)
    names = [name for block in blocks for name in block]
    if len(set(names)) < len(names):
        raise ValueError(f"full_mass must be {wanted}, got {checks.shown(full_mass)}")
    return blocks


class Masses:
    """Mass matrices of a run, and its windows.

    :param str estimate: ``"fisher"`` or ``"variance"``.
    :param full_mass: what :func:`checked_full_mass` gave; ``None`` for low rank where there
        are few parameters for a warm-up of 400 steps.
    :param bool is_shared: whether all chains have the same.
    :param str windows: ``"growing"``, ``"stan"``, or ``None`` for what goes with the estimate.
    :param int warmup_steps: zero where masses do not adapt.
    :param Layout layout: of the parameters.
    """

    def __init__(
        self,
        estimate: MassEstimate,
        full_mass: bool | Literal["low_rank"] | tuple[tuple[str, ...], ...] | None,
        is_shared: bool,
        windows: WindowsKind | None,
        warmup_steps: int,
        layout: Layout,
    ) -> None:
        if full_mass is None:
            knows_directions = estimate == "fisher" and layout.size <= _MOST_LOW_RANK
            full_mass = "low_rank" if knows_directions else False
        self.full_mass, self.is_shared = full_mass, is_shared
        is_diagonal = full_mass is False and estimate == "fisher"
        self.takes_gradients = is_diagonal or full_mass == "low_rank"
        kind = windows or ("growing" if self.takes_gradients else "stan")
        self._is_growing = kind == "growing"
        self.windows = (growing_windows if self._is_growing else stan_windows)(warmup_steps)
        self._is_free = self._entries(layout)

    def _entries(self, layout: Layout) -> Tensor | None:
        """Mark the entries of full mass matrices that may differ from zero; all with ``None``."""
        if isinstance(self.full_mass, bool | str):
            return None
        entries = torch.eye(layout.size, dtype=torch.bool, device=layout.device)
        for block in self.full_mass:
            if unknown := sorted(set(block) - set(layout.shapes)):
                raise ValueError(
                    f"full_mass has sites {unknown} that are not among {sorted(layout.shapes)}"
                )
            columns = [column for name in block for column in layout.columns(name)]
            entries[torch.tensor(columns)[:, None], columns] = True
        return entries

    def first(self, position: Tensor, gradient: Tensor) -> Tensor:
        """Factors of the inverse mass matrices before the first transition."""
        factor = torch.ones_like(position)
        if self.takes_gradients and self.windows.updates:
            factor = first_factor(gradient)
        if self.is_shared:
            factor = factor.log().mean(0, True).exp()
        return (factor.diag_embed() if self.full_mass else factor).contiguous()

    def no_draws(self, position: Tensor) -> Moments:
        """Moments of no draws, with their gradients where masses take these."""
        if self.takes_gradients:
            return new_moments(position.repeat(1, 2), False)
        return new_moments(position, bool(self.full_mass))

    def collected(self, state: HamiltonianState, before: Tensor, made: Drawn) -> HamiltonianState:
        """Add transitions to the draws that masses are estimated from.

        Shapes: before (num_chains, size), positions before the first of them.
        """
        moments, new = state.moments(), state.new_moments()
        if not self.takes_gradients:
            for position in made.position:
                new = add_draw(new, position)
                if self._is_growing:
                    moments = add_draw(moments, position)
            return state.with_moments(moments, new)
        # A chain that stayed, or diverged at once, has no information on the posterior's shape.
        previous = torch.cat([before[None], made.position[:-1]])
        has_gone = ~made.diverging | (made.num_steps > _FEW_STEPS)
        is_good = (made.position != previous).any(-1) & has_gone
        draws = torch.cat([made.position, made.gradient], -1)
        for draw, good in zip(draws, is_good, strict=True):
            new = add_draw(new, draw, good)
            if self._is_growing:
                moments = add_draw(moments, draw, good)
        if self.full_mass == "low_rank":
            rows = torch.where(is_good[..., None], draws, torch.nan).movedim(0, 1)
            state = state._replace(window=torch.cat([state.window, rows], 1))
        return state.with_moments(moments, new)

    def switched(self, state: HamiltonianState, end: int) -> HamiltonianState:
        """Forget the draws before the last switch."""
        state = state.with_moments(state.new_moments(), self.no_draws(state.position))
        earlier = [each for each in self.windows.switches if each < end]
        return state._replace(window=state.window[:, -(end - max(earlier, default=0)) :])

    def estimated(self, state: HamiltonianState) -> Tensor:
        """Factors of the inverse mass matrices from the draws since the window before."""
        if not self.takes_gradients:
            return estimated_factor(state.moments(), self.is_shared, self._is_free)
        if self.full_mass != "low_rank":
            return fisher_factor(state.moments(), self.is_shared, state.factor)
        windows = state.window.double()
        together = windows.flatten(0, 1)[None] if self.is_shared else windows
        factors = []
        for rows, known in zip(together, state.factor, strict=True):
            draws, gradients = rows[rows.isfinite().all(-1)].chunk(2, -1)
            found = low_rank_factor(draws, gradients)
            factors.append(known if found is None else found.to(known))
        return torch.stack(factors)
