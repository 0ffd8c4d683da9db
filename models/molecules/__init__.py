"""Interatomic potentials that quantify the uncertainty of their energies and forces.

:class:`RACE` predicts energies and forces with their variances, :class:`EnergyForceModel` makes
them observations of a Pyro model, and :class:`RACECalculator` runs molecular dynamics in ase, which
is imported with that name. The extra is ``molecules``.
"""

from typing import TYPE_CHECKING, Any

from pyro_ext._lib.optional import optional_module
from pyro_ext.models.molecules.frames import MoleculeFrames, molecule_frames
from pyro_ext.models.molecules.likelihood import (
    EnergyForceModel,
    ensemble_prediction,
    potential_loss,
)
from pyro_ext.models.molecules.race import RACE, Prediction
from pyro_ext.models.molecules.structures import (
    Neighbors,
    all_pairs,
    atomic_numbers,
    periodic_neighbors,
)
from pyro_ext.models.molecules.uncertainty import PredictiveMoments, predictive_moments

if TYPE_CHECKING:
    from pyro_ext.models.molecules.calculator import RACECalculator

__all__ = [
    "EnergyForceModel",
    "MoleculeFrames",
    "Neighbors",
    "Prediction",
    "PredictiveMoments",
    "RACE",
    "RACECalculator",
    "all_pairs",
    "atomic_numbers",
    "ensemble_prediction",
    "molecule_frames",
    "periodic_neighbors",
    "potential_loss",
    "predictive_moments",
]


def __getattr__(name: str) -> Any:
    """Import ase with the class that is one of its calculators."""
    if name != "RACECalculator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    optional_module("ase.calculators.calculator", name, "ase", "molecules")
    from pyro_ext.models.molecules.calculator import RACECalculator

    globals()[name] = RACECalculator
    return RACECalculator
