"""Uncertainty of an ensemble of potentials."""

from typing import NamedTuple

from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions import ForceNormal
from pyro_ext.inference.active_learning import mixture_moments
from pyro_ext.models.molecules.race import Prediction


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
    """Compute mean and variance of the mixture of members, for energies and forces.

    :param Prediction prediction: predictions with a leading member dimension, as from
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
