"""Valid calls of potentials, of what chooses labels and fits weights, for :mod:`walk` to spoil."""

from typing import Any

import torch

from pyro_ext.diagnostics import IsotonicRecalibrator
from pyro_ext.inference import IVON
from pyro_ext.models.molecules import RACE, EnergyForceModel, all_pairs, ensemble_prediction
from tests.bad_input.walk import Call, call, of

SPECIES = [8, 1, 1]
WATER = torch.tensor([[[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]]])
WATERS = torch.cat([WATER, 1.1 * WATER])
ENERGIES, FORCES = torch.tensor([-100.0, -99.0]), torch.ones(2, 3, 3)


def molecules() -> dict[str, Call]:
    race = RACE(SPECIES, channels=4)
    neighbors = all_pairs(3)
    found = race(WATERS, SPECIES)
    many = ensemble_prediction([race], WATERS, SPECIES)
    settings: dict[str, Any] = dict()
    weights = dict(force_weight=1.0)
    structures: dict[str, Any] = dict(positions=WATERS, species=SPECIES, neighbors=neighbors)
    model = EnergyForceModel(race, SPECIES)
    return {
        "RACE": call(species=SPECIES, **settings),
        "RACE.forward": of(race, **structures),
        "RACE.check_structures": of(race, **structures),
        "RACE.places": of(race, species=SPECIES),
        "RACE.center": of(race, species=SPECIES, energies=ENERGIES, forces=FORCES),
        "RACE.reference_energy": of(race, species=SPECIES),
        "RACE.relative": of(race, species=SPECIES, energies=ENERGIES),
        "atomic_numbers": call(species=torch.tensor(SPECIES)),
        "all_pairs": call(num_atoms=3),
        "periodic_neighbors": call(positions=WATER[0], cell=4.0 * torch.eye(3), cutoff=2.0),
        "molecule_frames": call(name="H2O", num_frames=1, every=1),
        "potential_loss": call(prediction=found, energies=torch.zeros(2), forces=FORCES, **weights),
        "EnergyForceModel": call(
            network=race, species=SPECIES, neighbors=neighbors, batch_size=1, **weights
        ),
        "EnergyForceModel.forward": of(model, positions=WATERS, energies=ENERGIES, forces=FORCES),
        "ensemble_prediction": call(networks=[race], **structures),
        "predictive_moments": call(prediction=many),
        "RACECalculator": call(networks=[race]),
    }


def distributions() -> dict[str, Call]:
    return {"ForceNormal": call(loc=torch.zeros(2, 3), l6=torch.zeros(2, 6))}


def inference() -> dict[str, Call]:
    weight = torch.nn.Parameter(torch.zeros(2))
    means, variances = torch.zeros(3, 4), torch.ones(3, 4)
    mixture: dict[str, Any] = dict(means=means, variances=variances)
    return {
        "IVON": call(params=[weight], ess=10.0, betas=(0.9, 0.99), clip_radius=1.0),
        "IVON.sampled": of(IVON([weight], ess=10.0), loss=lambda: weight.square().sum()),
        "IVON.add_param_group": of(
            IVON([weight], ess=10.0), param_group={"params": torch.zeros(2, requires_grad=True)}
        ),
        "IVON.draws": of(IVON([weight], ess=10.0), num_samples=2),
        "mixture_moments": call(**mixture),
        "bald": call(**mixture),
        "farthest_points": call(points=torch.rand(4, 2), num_points=2, chosen=torch.zeros(1, 2)),
        "best_by_turns": call(scores=[torch.rand(4), torch.rand(4)], num_points=2),
    }


def diagnostics() -> dict[str, Call]:
    values = torch.tensor([0.2, 0.5, 0.9])
    recalibrator = IsotonicRecalibrator(values)
    return {
        "IsotonicRecalibrator": call(cdf_values=values),
        "IsotonicRecalibrator.inverse": of(recalibrator, probabilities=values),
    }


def metrics() -> dict[str, Call]:
    values = torch.tensor([0.2, 0.5, 0.9])
    return {"interval_calibration_error": call(cdf_values=values)}


TABLES = {
    "pyro_ext.models.molecules": molecules,
    "pyro_ext.distributions (forces)": distributions,
    "pyro_ext.inference (active learning)": inference,
    "pyro_ext.diagnostics (recalibration)": diagnostics,
    "pyro_ext.diagnostics.metrics (intervals)": metrics,
}
