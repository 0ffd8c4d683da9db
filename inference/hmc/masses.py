"""Mass matrices of HMC and NUTS: what of draws they are estimated from, and when."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.adaptation import (
    DualAveraging,
    Moments,
    add_draw,
    estimated_factor,
    first_factor,
    fisher_factor,
    growing_windows,
    low_rank_factor,
    new_moments,
    pooled,
    stan_windows,
)
from pyro_ext.inference.hmc.trajectories import Outcome
from pyro_ext.potential import Layout

FullMass = bool | Literal["low_rank"] | Sequence[Sequence[str]]

# A warm-up of 400 steps estimates from some 200 draws. In 100 dimensions, these show spurious
# directions if the posterior is not normal: for a horseshoe, a fifth of the transitions diverged.
_MOST_LOW_RANK = 50
# A trajectory that diverged within so many leapfrogs chose a point that is hardly another one.
_FEW_STEPS = 8
# Of trajectories that the warm-up chooses: limits of numbers of steps and of their growth, and how
# much of the mean square between independent draws is enough.
_MOST_STEPS = 256.0
_MOST_CHANGE = 3.0
_UNCORRELATED = 0.85


class Lengths(NamedTuple):
    """Lengths of trajectories where the warm-up finds them, from the draws of a window.

    :param Tensor mean_steps: mean number of steps of the next trajectories. **Shape:**
        ``(num_chains,)``, as ``num_moves``.
    :param Moments draws: of the window.
    :param Tensor jumps: sum of squared differences between draws and those before them.
        **Shape:** ``(num_chains, size)``.
    :param Tensor num_moves: how many draws are not those before them.
    """

    mean_steps: Tensor
    draws: Moments
    jumps: Tensor
    num_moves: Tensor

    def with_draws(self, before: Tensor, draws: Tensor) -> "Lengths":
        """Take in the next draws. Shapes: before (num_chains, size), draws (number, *before)."""
        moments, jumps = self.draws, draws - torch.cat([before[None], draws[:-1]])
        for draw in draws:
            moments = add_draw(moments, draw)
        return self._replace(
            draws=moments,
            jumps=self.jumps + jumps.square().sum(0),
            num_moves=self.num_moves + (jumps != 0).any(-1).sum(0),
        )

    def adapted(self, is_late: bool) -> "Lengths":
        r"""End a window, with lengths at which draws are uncorrelated with those before them.

        There, :math:`E (x' - x)^2 = 2 \sigma^2`; of trajectories that are short beside the
        posterior, the root of the mean square is proportional to their length. Longer ones lead to
        uncorrelated draws, too: until late, half of such a length is tried next.
        """
        variance = self.draws.squares / (self.draws.number - 1.0)[:, None]
        share = (0.5 * self.jumps / self.num_moves[:, None] / variance).nanmean(-1)
        change = share.rsqrt().nan_to_num(nan=1.0).clamp(max=_MOST_CHANGE)
        if not is_late:
            change = torch.where(share > _UNCORRELATED, 0.5, change)
        return Lengths.begun((self.mean_steps * change).clamp(1.0, _MOST_STEPS), self.jumps)

    @classmethod
    def begun(cls, mean_steps: Tensor, position: Tensor) -> "Lengths":
        """Begin a window."""
        zero = torch.zeros_like(position)
        return cls(mean_steps, new_moments(position), zero, torch.zeros_like(mean_steps))


class HamiltonianState(NamedTuple):
    """State of chains between two transitions.

    :param Tensor position: **Shape:** ``(num_chains, size)``, as ``gradient``.
    :param Tensor gradient: of the potential there.
    :param Tensor value: the potential there. **Shape:** ``(num_chains,)``.
    :param Tensor energy: as of :class:`Outcome`, like the four that follow.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param Tensor num_leapfrogs: of the chain so far.
    :param DualAveraging search: for step sizes.
    :param Tensor factor: of inverse mass matrices. **Shape:** ``(num_chains, size)``, or with full
        ones ``(num_chains, size, size)``; of one that chains share, one in place of their number.
    :param Moments moments: of the draws since the window before.
    :param Moments new_moments: of those of this window.
    :param Tensor window: draws and their gradients since the window before, where masses take them
        all. **Shape:** ``(num_chains, num_draws, 2 * size)``.
    :param Lengths lengths: of trajectories; zero where they are not found in the warm-up.
    """

    position: Tensor
    gradient: Tensor
    value: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    num_steps: Tensor
    tree_depth: Tensor
    diverging: Tensor
    step_size: Tensor
    keys: Tensor
    num_leapfrogs: Tensor
    search: DualAveraging
    factor: Tensor
    moments: Moments
    new_moments: Moments
    window: Tensor
    lengths: Lengths

    def outcome(self) -> Outcome:
        """The last transition."""
        return Outcome(*(getattr(self, name) for name in Outcome._fields))


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

    :param full_mass: what :func:`checked_full_mass` gave; ``None`` for low rank where there
        are few parameters for a warm-up of 400 steps.
    :param int warmup_steps: zero where masses do not adapt.
    :param Layout layout: of the parameters.
    """

    def __init__(
        self,
        full_mass: bool | Literal["low_rank"] | tuple[tuple[str, ...], ...] | None,
        warmup_steps: int,
        layout: Layout,
    ) -> None:
        if full_mass is None:
            full_mass = "low_rank" if layout.size <= _MOST_LOW_RANK else False
        self.full_mass = full_mass
        self.takes_gradients = full_mass in (False, "low_rank")
        windows_of = growing_windows if self.takes_gradients else stan_windows
        self.windows = windows_of(warmup_steps)
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
        return (factor.diag_embed() if self.full_mass else factor).contiguous()

    def no_draws(self, position: Tensor) -> Moments:
        """Moments of no draws, with their gradients where masses take these."""
        if self.takes_gradients:
            return new_moments(position.repeat(1, 2))
        return new_moments(position, is_dense=True)

    def collected(self, state: HamiltonianState, before: Tensor, made: Outcome) -> HamiltonianState:
        """Add transitions to the draws that masses are estimated from.

        Shapes: before (num_chains, size), positions before the first of them.
        """
        moments, new = state.moments, state.new_moments
        if not self.takes_gradients:
            for position in made.position:
                new = add_draw(new, position)
            return state._replace(new_moments=new)
        # A chain that stayed, or diverged at once, has no information on the posterior's shape.
        previous = torch.cat([before[None], made.position[:-1]])
        has_gone = ~made.diverging | (made.num_steps > _FEW_STEPS)
        is_good = (made.position != previous).any(-1) & has_gone
        draws = torch.cat([made.position, made.gradient], -1)
        for draw, good in zip(draws, is_good, strict=True):
            moments, new = (add_draw(each, draw, good) for each in (moments, new))
        if self.full_mass == "low_rank":
            rows = torch.where(is_good[..., None], draws, torch.nan).movedim(0, 1)
            state = state._replace(window=torch.cat([state.window, rows], 1))
        return state._replace(moments=moments, new_moments=new)

    def switched(self, state: HamiltonianState, end: int) -> HamiltonianState:
        """Forget the draws before the last switch."""
        earlier = [each for each in self.windows.switches if each < end]
        return state._replace(
            moments=state.new_moments,
            new_moments=self.no_draws(state.position),
            window=state.window[:, -(end - max(earlier, default=0)) :],
        )

    def estimated(self, state: HamiltonianState) -> Tensor:
        """Factors of the inverse mass matrices from the draws since the window before."""
        if not self.takes_gradients:
            return estimated_factor(state.moments, self._is_free)
        if self.full_mass != "low_rank":
            return fisher_factor(state.moments, state.factor)
        factors = []
        for rows, known in zip(state.window.double(), state.factor, strict=True):
            draws, gradients = rows[rows.isfinite().all(-1)].chunk(2, -1)
            found = low_rank_factor(draws, gradients)
            factors.append(known if found is None else found.to(known))
        return torch.stack(factors)


class SharedMasses(Masses):
    """Mass matrices that all chains share, estimated from the draws of them all."""

    def first(self, position: Tensor, gradient: Tensor) -> Tensor:
        """Factor of the inverse mass matrix before the first transition, a geometric mean."""
        factors = super().first(position, gradient)
        if not self.full_mass:
            return factors.log().mean(0, True).exp()
        return factors.diagonal(dim1=-2, dim2=-1).log().mean(0, True).exp().diag_embed()

    def estimated(self, state: HamiltonianState) -> Tensor:
        """Factor of the inverse mass matrix from the draws since the window before."""
        rows = state.window.flatten(0, 1)[None]
        return super().estimated(state._replace(moments=pooled(state.moments), window=rows))
