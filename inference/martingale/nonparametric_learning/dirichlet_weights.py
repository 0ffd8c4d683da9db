"""Weights of observations under a Dirichlet process, and the atoms of a prior guess."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions import BlockDirichlet
from pyro_ext.random import chain_keys, spawn_seed, uniform

BlockConcentration = Literal["aggregate", "unit"]

_GAMMAS, _BOOSTS, _ORDER, _ATOM_ORDER = range(40, 44)  # streams of random numbers


class DirichletWeights:
    r"""Distribution of the weights of observations, and of atoms that a prior guess adds [1].

    .. math:: (w_1, \ldots, w_n, \tilde w_1, \ldots, \tilde w_m) \sim
              \text{Dirichlet}(1, \ldots, 1, \alpha / m, \ldots, \alpha / m)

    Observations may share weights in blocks, which are resampled for each draw, and so may atoms,
    in as many blocks: the sums of the weights in the blocks have a Dirichlet distribution.

    :param int num_observed: :math:`n`.
    :param int num_atoms: :math:`m`, zero without a prior guess.
    :param float concentration: :math:`\alpha \ge 0`.
    :param int num_blocks: number of blocks of observations; without it each is one.
    :param str block_concentration: ``"aggregate"`` for the distribution that the sums of all
        weights in a block have, so that the mean of each weight is as without blocks; ``"unit"``
        for concentrations of one for blocks of observations, and :math:`\alpha / L` for those of
        atoms. With the former, means vary less than without blocks, by the root of the size of a
        block, and intervals are that much too narrow; with the latter they vary as much.

    [1] E. Fong, S. Lyddon, C. Holmes (2019), Scalable nonparametric sampling from multimodal
    posteriors with the posterior bootstrap.

    Example::

        >>> distribution = DirichletWeights(6, 3, concentration=1.5)
        >>> weights = distribution.draw(range(100), seed=0)
        >>> weights.shape, distribution.mean[0] * 7.5, distribution.mean[-1] * 7.5
        (torch.Size([100, 9]), tensor(1., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """

    def __init__(
        self,
        num_observed: int,
        num_atoms: int = 0,
        concentration: float = 0.0,
        num_blocks: int | None = None,
        block_concentration: BlockConcentration = "aggregate",
    ) -> None:
        self.num_observed = checks.integer("num_observed", num_observed, 1)
        self.num_atoms = checks.integer("num_atoms", num_atoms, 0)
        self.concentration = checks.number("concentration", concentration, least=0)
        if self.concentration > 0 and not num_atoms:
            raise ValueError(
                f"concentration={concentration:g} puts weight on atoms of a base measure, but "
                "there are none: give a base_measure"
            )
        if num_blocks is not None and checks.integer("num_blocks", num_blocks, 1) > num_observed:
            raise ValueError(
                f"num_blocks must be at most the {num_observed} observations, got {num_blocks}"
            )
        checks.choice("block_concentration", block_concentration, get_args(BlockConcentration))
        self.num_blocks = num_blocks
        self.block_concentration = block_concentration
        sizes, concentrations, self._num_own_blocks = self._blocks()
        self._distribution = BlockDirichlet(concentrations, sizes, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of each weight. **Shape:** ``(num_observed + num_atoms,)``."""
        mean = self._distribution.concentration / self._distribution.concentration.sum()
        own = mean[: self._num_own_blocks].sum() / self.num_observed
        atom = mean[self._num_own_blocks :].sum() / max(1, self.num_atoms)
        return torch.cat([own.repeat(self.num_observed), atom.repeat(self.num_atoms)])

    def draw(self, draws: Sequence[int], seed: int) -> Tensor:
        """Weights of some draws, each a function of the seed and its number.

        :param Sequence draws: numbers of the draws.
        :param int seed: of all.
        :returns: in float64. **Shape:** ``(len(draws), num_observed + num_atoms)``.
        """
        key = chain_keys(seed, range(1))
        numbers = torch.as_tensor(list(draws), dtype=torch.int64)

        def uniforms(size: int, stream: int) -> Tensor:
            # A step of the stream for each draw: its numbers depend on nothing else.
            return uniform(key, numbers, size, stream=stream, dtype=torch.float64).squeeze(-2)

        totals = self._log_gammas(uniforms).softmax(-1)
        weights = self._padded(self._distribution.share_out(totals))
        if self.num_blocks is None:
            return weights
        own = uniforms(self.num_observed, _ORDER).argsort(-1)
        atoms = self.num_observed + uniforms(self.num_atoms, _ATOM_ORDER).argsort(-1)
        return weights.gather(-1, torch.cat([own, atoms], -1))

    def _log_gammas(self, uniforms: Callable[[int, int], Tensor]) -> Tensor:
        """Logarithms ``(num_draws, num_blocks)`` of gamma variables, which may underflow."""
        from scipy.special import gammaincinv  # slow to import

        concentration = self._distribution.concentration
        numbers = uniforms(len(concentration), _GAMMAS)
        result = (-numbers.log()).log()  # of exponential variables
        others = concentration != 1.0
        if bool(others.any()):
            # A gamma variable is one of a concentration greater by one, times a power of a uniform
            # variable.
            shape = concentration[others]
            larger = gammaincinv(shape.numpy() + 1.0, numbers[:, others].numpy())
            power = uniforms(len(concentration), _BOOSTS)[:, others].log() / shape
            result[:, others] = torch.from_numpy(larger).log() + power
        return result

    def _blocks(self) -> tuple[list[int], Tensor, int]:
        """Sizes and concentrations of the blocks that have a weight, and how many hold data."""
        own = self._sizes(self.num_observed)
        atoms = self._sizes(self.num_atoms) if self.concentration > 0 else []
        if self.block_concentration == "unit" and self.num_blocks is not None:
            parts = [1.0] * len(own) + [self.concentration / max(1, len(atoms))] * len(atoms)
        else:
            each = self.concentration / max(1, self.num_atoms)
            parts = [float(size) for size in own] + [each * size for size in atoms]
        return own + atoms, torch.tensor(parts, dtype=torch.float64), len(own)

    def _sizes(self, number: int) -> list[int]:
        """Sizes of blocks that differ by one at most, no more blocks than points."""
        num_blocks = min(self.num_blocks or number, number)
        small, larger = divmod(number, num_blocks)
        return [small + 1] * larger + [small] * (num_blocks - larger)

    def _padded(self, weights: Tensor) -> Tensor:
        """Weights with those of atoms that have none."""
        missing = self.num_observed + self.num_atoms - weights.shape[-1]
        return torch.nn.functional.pad(weights, (0, missing))


class EmpiricalBase:
    """A base measure with finitely many atoms, all of which every draw has.

    :param atoms: tensors with a row for each atom, in the order of the data that the posterior is
        run on. **Shape:** ``(m, *event)`` each.

    Example::

        >>> base = EmpiricalBase(torch.zeros(4, 2), torch.ones(4))
        >>> len(base)
        4
    """

    def __init__(self, *atoms: Tensor) -> None:
        atoms = tuple(
            checks.as_tensor(f"atoms[{i}]", part, "(n, ...)", finite=True)
            for i, part in enumerate(atoms)
        )
        if len({len(part) for part in atoms}) != 1:
            raise ValueError(
                "atoms must be tensors with as many rows each, at least one, got the shapes "
                f"{[tuple(part.shape) for part in atoms]}"
            )
        self.atoms = atoms

    def __len__(self) -> int:
        return len(self.atoms[0])


@dataclass(frozen=True)
class BootstrapWeights:
    r"""Weights that a :class:`~pyro_ext.inference.PosteriorBootstrap` draws, and its prior guess.

    :param float concentration: :math:`\alpha`, how many observations the prior guess is worth.
    :param base_measure: the prior guess. A Pyro distribution, for data of one tensor; or a function
        of a number of atoms that returns a tensor for each tensor of the data, drawn by PyTorch's
        generator; or an :class:`~pyro_ext.inference.martingale.EmpiricalBase`, whose atoms all
        draws share. Of a model, the data are those arguments that have a row for each observation.
    :param int truncation: :math:`m`, the number of atoms that each draw has of its own.
    :param int num_blocks: number of blocks of observations that share a weight, for many of them.
    :param str block_concentration: ``"aggregate"`` or ``"unit"``; intervals take the latter. See
        :class:`~pyro_ext.inference.martingale.DirichletWeights`.

    Example::

        >>> BootstrapWeights(3.0, EmpiricalBase(torch.zeros(4, 2), torch.ones(4))).concentration
        3.0
    """

    concentration: float = 0.0
    base_measure: Any = None
    truncation: int = 100
    num_blocks: int | None = None
    block_concentration: BlockConcentration = "aggregate"

    def __post_init__(self) -> None:
        if not isinstance(self.base_measure, EmpiricalBase):
            wanted = "a Pyro distribution, an EmpiricalBase or a function of a number of atoms"
            checks.optional(
                checks.function, "base_measure", self.base_measure, wanted, or_class=False
            )
        if (
            checks.number("concentration", self.concentration, least=0)
            and self.base_measure is None
        ):
            raise ValueError(
                f"concentration={self.concentration} needs a base_measure to put its weight on"
            )
        checks.integer("truncation", self.truncation, 1)
        checks.optional(checks.integer, "num_blocks", self.num_blocks, 1)
        checks.choice("block_concentration", self.block_concentration, get_args(BlockConcentration))

    def of(self, num_observed: int, num_atoms: int) -> DirichletWeights:
        """Return the distribution for so many observations and atoms."""
        blocks = self.num_blocks, self.block_concentration
        return DirichletWeights(num_observed, num_atoms, self.concentration, *blocks)


def atoms_of_draws(
    base_measure: Any, num_atoms: int, rows: tuple[Tensor, ...], draws: Sequence[int], seed: int
) -> list[Tensor]:
    """Atoms of some draws, a function of the seed and the number of each."""
    is_distribution = isinstance(base_measure, TorchDistributionMixin)
    draw = base_measure.sample if is_distribution else base_measure
    size = torch.Size([num_atoms]) if is_distribution else num_atoms
    found = []
    with torch.random.fork_rng(), torch.no_grad():
        for number in draws:
            torch.manual_seed(spawn_seed(seed, number, 3))
            found.append(fitting_atoms(draw(size), num_atoms, rows))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def fitting_atoms(found: Any, num_atoms: int, rows: tuple[Tensor, ...]) -> list[Tensor]:
    """Atoms in the types of the data."""
    atoms = [found] if isinstance(found, Tensor) else list(found)
    wanted = [(num_atoms, *part.shape[1:]) for part in rows]
    shapes = [tuple(part.shape) for part in atoms]
    if shapes != wanted:
        raise ValueError(
            f"base_measure must give tensors of the shapes {wanted}, like the data, got {shapes}"
        )
    return [atom.to(part) for atom, part in zip(atoms, rows, strict=True)]
