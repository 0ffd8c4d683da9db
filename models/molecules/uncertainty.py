"""Uncertainty of an ensemble of potentials, and the limits of its training region."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions import ForceNormal
from pyro_ext.inference.active_learning import mixture_moments
from pyro_ext.models.molecules.likelihood import ensemble_prediction
from pyro_ext.models.molecules.race import RACE, Prediction
from pyro_ext.models.molecules.structures import Neighbors, all_pairs, atomic_numbers


class LeftTrainingRegion(UserWarning):
    """A structure is unlike all that a potential was trained on."""


class TrainingRegion(NamedTuple):
    """Usual ranges in the data that a potential was trained on.

    :param float energy_scale: largest usual standard deviation of an energy, in eV.
    :param float force_scale: of a force, in eV per Angstrom.
    :param Mapping nearest: shortest and longest distance to the nearest other atom, in Angstrom, by
        atomic number.
    """

    energy_scale: float
    force_scale: float
    nearest: Mapping[int, tuple[float, float]]


class PredictiveMoments(NamedTuple):
    """Mean and total uncertainty of an ensemble of potentials, in eV and Angstrom.

    :param Tensor energy: **Shape:** ``batch``.
    :param Tensor energy_variance: **Shape:** ``batch``.
    :param Tensor forces: **Shape:** ``(*batch, num_atoms, 3)``.
    :param Tensor force_covariance: **Shape:** ``(*batch, num_atoms, 3, 3)``.
    """

    energy: Tensor
    energy_variance: Tensor
    forces: Tensor
    force_covariance: Tensor


def predictive_moments(prediction: Prediction) -> PredictiveMoments:
    """Mean and variance of the mixture of members, of energies and of forces.

    :param Prediction prediction: with a first dimension of members, as of
        :func:`~pyro_ext.models.molecules.ensemble_prediction`.

    Example::

        >>> from pyro_ext.models.molecules import RACE, ensemble_prediction, predictive_moments
        >>> members, x = [RACE([1], channels=4)], torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]])
        >>> found = predictive_moments(ensemble_prediction(members, x, [1, 1]))
        >>> found.force_covariance.shape
        torch.Size([2, 3, 3])
    """
    checks.instance("prediction", prediction, Prediction, "a Prediction")
    energy, variance = mixture_moments(prediction.energy, prediction.log_variance.exp())
    normal = ForceNormal(prediction.forces, prediction.l6, validate_args=False)
    forces, covariance = mixture_moments(prediction.forces, normal.covariance_matrix, 1)
    return PredictiveMoments(energy, variance, forces, covariance)


def training_region(
    networks: Sequence[RACE],
    positions: Any,
    species: Any,
    neighbors: Neighbors | None = None,
    *,
    margin: float = 1.5,
    distance_margin: float = 0.1,
) -> TrainingRegion:
    """The region of the training data, by the uncertainty there and by distances of neighbors.

    Uncertainty needs an ensemble: the variance that one network predicts hardly grows where it has
    no data.

    :param networks: the members.
    :param Tensor positions: of training, in Angstrom. **Shape:** ``(n, num_atoms, 3)``.
    :param species: atomic numbers or symbols. **Shape:** ``(num_atoms,)``.
    :param Neighbors neighbors: who sees whom; by default all atoms see all others.
    :param float margin: by which the largest standard deviations of the data are multiplied.
    :param float distance_margin: fraction by which distances may be shorter or longer.
    :raises ValueError: for shapes that do not fit, or numbers out of range.

    Example::

        >>> from pyro_ext.models.molecules import RACE, training_region
        >>> x = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, d]] for d in (0.7, 0.8)])
        >>> region = training_region([RACE([1], channels=4)], x, [1, 1], distance_margin=0.0)
        >>> [round(one, 4) for one in region.nearest[1]]
        [0.7, 0.8]
    """
    checks.number("margin", margin, above=0)
    checks.number("distance_margin", distance_margin, least=0, below=1)
    numbers = atomic_numbers(species)
    positions = checks.as_tensor("positions", positions, f"(n, {len(numbers)}, 3)", finite=True)
    found = predictive_moments(ensemble_prediction(networks, positions, species, neighbors))
    nearest = _nearest(positions, all_pairs(len(numbers)) if neighbors is None else neighbors)
    ranges = {}
    for number in set(numbers):
        of = nearest[:, [place for place, one in enumerate(numbers) if one == number]]
        ranges[number] = (
            float(of.min()) * (1.0 - distance_margin),
            float(of.max()) * (1.0 + distance_margin),
        )
    return TrainingRegion(
        margin * float(found.energy_variance.max().sqrt()),
        margin * float(_force_scales(found.force_covariance).max()),
        ranges,
    )


def departures(
    region: TrainingRegion,
    moments: PredictiveMoments,
    positions: Tensor,
    species: Sequence[int],
    neighbors: Neighbors,
) -> list[str]:
    """In what a structure is unlike the training data, in words; nothing where it is not."""
    found = []
    scale = float(moments.energy_variance.sqrt())
    if not scale <= region.energy_scale:
        found.append(f"energy uncertain by {scale:.3g} eV, usual is {region.energy_scale:.3g}")
    scale = float(_force_scales(moments.force_covariance).max())
    if not scale <= region.force_scale:
        found.append(f"a force uncertain by {scale:.3g} eV/A, usual is {region.force_scale:.3g}")
    for atom, distance in enumerate(_nearest(positions, neighbors).tolist()):
        if species[atom] not in region.nearest:
            found.append(f"atom {atom} is of an element that is not in the data")
            continue
        low, high = region.nearest[species[atom]]
        if not low <= distance <= high:
            usual = f"usual is {low:.3g} to {high:.3g}"
            found.append(f"atom {atom} is {distance:.3g} A from the nearest other, {usual}")
    return found


def _nearest(positions: Tensor, neighbors: Neighbors) -> Tensor:
    """Distances to the nearest other atom. **Shape:** ``(*batch, num_atoms)``."""
    index, shifts, mask = (one.to(positions.device) for one in neighbors)
    vectors = positions[..., index, :] - positions[..., None, :] + shifts.to(positions)
    distances = vectors.square().sum(-1).sqrt()
    if not index.shape[1]:
        return positions.new_full(positions.shape[:-1], torch.inf)
    nearest: Tensor = torch.where(mask, distances, torch.inf).amin(-1)
    return nearest


def _force_scales(covariance: Tensor) -> Tensor:
    """Standard deviations of forces along their most uncertain direction."""
    scale: Tensor = torch.linalg.eigvalsh(covariance)[..., -1].clamp(min=0.0).sqrt()
    return scale
