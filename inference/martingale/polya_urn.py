"""The Polya urn: the predictive rule of the Bayesian bootstrap and of the Dirichlet process."""

import math
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.predictive_rule import (
    PredictiveRule,
    Resampled,
    check_data,
    seed_generator,
    uniforms,
)
from pyro_ext.inference.martingale.weighted_sample import WeightedSample

_ATOMS_PER_CALL = 64
_LOST_MASS = 1e-6
_STEPS, _WEIGHTS, _STICKS = range(3)


class UrnState(NamedTuple):
    """Contents of the urns."""

    data: tuple[Tensor, ...]  # which all draws share
    # Of balls as they came: up to n - 1 observations and their copies, then atoms of the base
    # measure (num_draws, size).
    labels: Tensor
    num_labels: Tensor  # number of different ones (num_draws,)
    atoms: Tensor | None  # for labels from n on and some to come (num_draws, num_atoms, *event)


class PolyaUrn(PredictiveRule):
    r"""Draws an earlier observation again, or sometimes a new one from a base measure.

    .. math:: P_i = \frac{\alpha F_0 + \sum_{j \le i} \delta_{y_j}}{\alpha + i}

    Without a base measure, :math:`\alpha = 0`, this gives the Bayesian bootstrap [1, 2]; with one,
    the posterior of a Dirichlet process [3]. Its martingale posterior is exact: the population at
    size :math:`N` is drawn from the urn itself, and for ``horizon=math.inf`` from the limit, in
    which the weights of the observations and of the base measure are
    :math:`\mathrm{Dirichlet}(1, \dots, 1, \alpha)`. In the limit, the part of the base measure is
    broken into sticks until, on average, less than a fraction of :math:`10^{-6}` of it remains; the
    last stick takes the rest.

    The data may be several tensors, such as covariates and responses, whose rows stay together.
    Populations are of type :class:`~pyro_ext.inference.martingale.WeightedSample`.

    :param base_measure: :math:`F_0`, a distribution of an observation; requires data of one tensor.
    :param float concentration: :math:`\alpha \ge 0`, the number of observations that the base
        measure counts for. A positive value requires a base measure.

    [1] D. B. Rubin (1981), The Bayesian bootstrap.

    [2] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    [3] D. Blackwell, J. B. MacQueen (1973), Ferguson distributions via Polya urn schemes.

    Example::

        >>> import math
        >>> from pyro_ext.inference.martingale import MartingalePosterior, Mean
        >>> posterior = MartingalePosterior(
        ...     PolyaUrn(), Mean(), num_samples=500, horizon=math.inf, seed=0, progress=False
        ... )
        >>> posterior.run(torch.arange(10.0)).get_samples()["theta"].shape
        torch.Size([500])
    """

    def __init__(
        self, base_measure: TorchDistributionMixin | None = None, concentration: float = 0.0
    ) -> None:
        if base_measure is not None and not isinstance(base_measure, TorchDistributionMixin):
            raise TypeError(
                f"base_measure must be a Pyro distribution or None, got {base_measure!r:.80}"
            )
        self.concentration = checks.number("concentration", concentration, least=0.0)
        if self.concentration > 0.0 and base_measure is None:
            raise ValueError(
                f"concentration must be 0 without a base_measure to draw from, got {concentration}"
            )
        self.base_measure = base_measure

    def begin(self, data: tuple[Tensor, ...], keys: Tensor) -> Resampled:
        """Start urns that hold the observations, one ball each."""
        size = check_data(data)
        atoms = None
        if self.concentration > 0.0:
            assert self.base_measure is not None
            wanted = tuple(self.base_measure.shape())
            if len(data) != 1 or tuple(data[0].shape[1:]) != wanted:
                raise ValueError(
                    f"data must be one tensor of the shape (n, *event) with the event {wanted} of "
                    f"base_measure, got the shapes {[tuple(value.shape) for value in data]}"
                )
            atoms = data[0].new_empty(len(keys), 0, *wanted)
        labels = torch.arange(size, dtype=torch.int32).repeat(len(keys), 1)
        number = torch.full((len(keys),), size)
        return Resampled(keys, size, size, UrnState(tuple(data), labels, number, atoms))

    def advance(self, state: Resampled, num_steps: int) -> Resampled:
        """Draw balls and put each back with another of its kind."""
        urns: UrnState = state.value
        size = state.size + num_steps
        numbers = uniforms(state.keys, state.size, size, stream=_STEPS).cpu().contiguous()
        labels = torch.cat([urns.labels, urns.labels.new_empty(len(numbers), num_steps)], 1)
        number = urns.num_labels.clone()
        # Imported here: Numba is slow to import.
        from pyro_ext.inference.martingale._urn_loops import draw_labels

        draw_labels(labels.numpy(), numbers.numpy(), state.size, number.numpy(), self.concentration)
        atoms = self._atoms(state, int(number.max()) - state.num_observed)
        return state._replace(size=size, value=UrnState(urns.data, labels, number, atoms))

    def population(self, state: Resampled) -> WeightedSample:
        """Return the contents of the urns: each point with its fraction of the balls."""
        return self._sample(state, self._counts(state) / state.size)

    def _counts(self, state: Resampled) -> Tensor:
        """Balls with each label. **Shape:** ``(num_draws, num_labels)``."""
        urns: UrnState = state.value
        counts = torch.zeros(len(urns.labels), int(urns.num_labels.max()), dtype=torch.float64)
        return counts.scatter_add_(1, urns.labels.long(), counts.new_ones(urns.labels.shape))

    def limit(self, state: Resampled) -> WeightedSample:
        """Return the limiting contents of the urns as ever more balls are drawn from them."""
        counts = self._counts(state)
        gammas = _gammas(counts, uniforms(state.keys, 0, counts.shape[1], stream=_WEIGHTS))
        if self.concentration > 0.0:
            # All balls are points of their own in the limit; new points share the rest.
            sticks = self._sticks(state.keys)
            rest = torch.full((len(counts), 1), self.concentration, dtype=torch.float64)
            number = uniforms(state.keys, 0, 1, stream=_STICKS)
            gammas = torch.cat([gammas, _gammas(rest, number) * sticks], 1)
        return self._sample(state, gammas / gammas.sum(1, keepdim=True))

    def _sticks(self, keys: Tensor) -> Tensor:
        """Weights of a Dirichlet process. **Shape:** ``(num_draws, num_sticks)``."""
        decay = math.log(self.concentration / (1.0 + self.concentration))
        num_sticks = max(2, math.ceil(math.log(_LOST_MASS) / decay) + 1)
        # The sticks' numbers follow the one that the weight of the base measure takes.
        numbers = uniforms(keys, 1, num_sticks, stream=_STICKS).cpu()
        left = (numbers.log() / self.concentration).cumsum(1).exp()
        left = torch.cat([torch.ones(len(keys), 1, dtype=left.dtype), left], 1)
        return torch.cat([left[:, :-1] - left[:, 1:], left[:, -1:]], 1)

    def _sample(self, state: Resampled, weights: Tensor) -> WeightedSample:
        urns: UrnState = state.value
        weights = weights.to(urns.data[0].device)
        num_atoms = weights.shape[1] - state.num_observed
        if not num_atoms:
            return WeightedSample(urns.data, weights)
        (points,) = urns.data
        atoms = self._atoms(state, num_atoms)
        assert atoms is not None
        shared = points.expand(len(weights), *points.shape)
        points = torch.cat([shared, atoms[:, :num_atoms]], 1)
        return WeightedSample((points,), weights, is_shared=False)

    def _atoms(self, state: Resampled, number: int) -> Tensor | None:
        """So many atoms at least, drawn in blocks that have a seed each."""
        atoms: Tensor | None = state.value.atoms
        if atoms is None or atoms.shape[1] >= number:
            return atoms
        assert self.base_measure is not None
        blocks = range(atoms.shape[1] // _ATOMS_PER_CALL, -(-number // _ATOMS_PER_CALL))
        shape = torch.Size([_ATOMS_PER_CALL])
        drawn = []
        with torch.random.fork_rng():
            for key in state.keys:
                for block in blocks:
                    seed_generator(key, block)
                    drawn.append(self.base_measure.sample(shape))
        new = torch.cat(drawn).reshape(len(state.keys), -1, *atoms.shape[2:])
        return torch.cat([atoms, new.to(atoms)], 1)


def _gammas(concentration: Tensor, numbers: Tensor) -> Tensor:
    """Gamma variables of rate one, by inversion; those of concentration one are exponential."""
    from scipy.special import gammaincinv  # slow to import

    numbers = numbers.cpu()
    if bool((concentration == 1.0).all()):
        return -numbers.log()
    values = torch.from_numpy(gammaincinv(concentration.numpy(), numbers.numpy()))
    return values.where(concentration > 0.0, 0.0)
