"""Bayesian E(3)-equivariant potential: forces, their uncertainty, and what it is good for."""

# %% [markdown]
# # Bayesian E(3)-equivariant potential
#
# A network that predicts the energy of a molecule gives the forces as its gradient. With a variance
# of the energy as a second output it can be trained by the likelihood, but the likelihood of the
# energies alone lets them drown the forces. S. Y. Willow and others (2025), Bayesian
# E(3)-equivariant interatomic potential with iterative restratification of many-body message
# passing, add a covariance of each force, and train by the joint likelihood, which is to be much
# more accurate. They compare ensembles, SWAG, IVON and Laplace approximations for finding frames
# unlike those learned from, and for choosing what to label next.
#
# After a program for water all is methanol, with energies and forces of the quantum-chemical method
# GFN2-xTB. `pyro-ext reproduce bayesian-e3-potential` runs the page.

# %%
from collections.abc import Sequence
from functools import partial
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import pdist

from pyro_ext.distributions import ForceNormal
from pyro_ext.inference import bald, best_by_turns, farthest_points
from pyro_ext.models.molecules import (
    RACE,
    MoleculeFrames,
    ensemble_prediction,
    molecule_frames,
    predictive_moments,
)
from pyro_ext.nn import BayesianModule
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page
from pyro_ext.tutorials.papers._potential_training import fit, ivon_draws, started, swag_draws

page = Page(
    "bayesian-e3-potential",
    paper="S. Y. Willow and others (2025), Bayesian E(3)-equivariant interatomic potential with "
    "iterative restratification of many-body message passing, arXiv 2510.03046",
)
SEEDS = page.seeds
TABLES = "Willow et al. (2025), tables of rMD17 and 3BPA; bound preregistered"

# %% [markdown]
# ## A Bayesian potential as a Pyro program
#
# The network `RACE` gets a prior of its weights, and energies and forces are observed sites, whose
# product is the joint likelihood. The prior counts a thousandth, since 60 frames hardly determine
# thousands of weights. An `AutoDelta` guide finds the weights of a member of an ensemble from its
# own start, and the members' weights are the draws for `Predictive`: hotter frames than those
# learned from should have a larger spread of forces.


# %%
def molecule(x: Tensor, energies: Tensor | None = None, forces: Tensor | None = None) -> None:
    """Energies and forces of frames of water."""
    with pyro.poutine.scale(scale=1e-3):
        found = prior(x, [8, 1, 1])
    pyro.deterministic("mean_forces", found.forces, event_dim=3)
    with pyro.plate("frames", len(x)):
        scale = (0.5 * found.log_variance).exp()
        pyro.sample("energy", dist.Normal(found.energy, scale), obs=energies)
        pyro.sample("forces", dist.Independent(ForceNormal(found.forces, found.l6), 1), obs=forces)


water = molecule_frames("H2O", 60, seed=0)
draws: list[dict[str, Tensor]] = []
for number in range(3):
    pyro.clear_param_store()
    with seeded(number):
        start = RACE(water.species, channels=16, num_layers=2)
        start.center(water.species, water.energies, water.forces)
        labels = start.relative(water.species, water.energies), water.forces.float()
        prior, starts = BayesianModule(start), dict(start.named_parameters())
        guide = AutoDelta(molecule, init_loc_fn=init_to_value(values=starts))
        optimizer = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.98})
        svi = SVI(molecule, guide, optimizer, Trace_ELBO())
        for _ in range(page.length(130, smoke=3)):
            batch = torch.randperm(60)[:20]
            svi.step(water.positions[batch].float(), *(one[batch] for one in labels))
        draws.append({name: value.detach() for name, value in guide.median().items()})
stacked = {name: torch.stack([one[name] for one in draws]) for name in starts}
for t in (300.0, 1200.0):
    new = molecule_frames("H2O", 30, t, seed=1)
    found = Predictive(molecule, stacked)(new.positions.float())["mean_forces"].flatten(0, -4)
    error = (found.mean(0) - new.forces).square().mean().sqrt()
    print(f"water at {t:g} K: error {error:.3f}, spread {found.var(0).mean().sqrt():.3f} eV/A")

# %% [markdown]
# ## Training by three losses
#
# There are 250 frames of methanol at 300 K to learn from, and frames at 300, 600 and 1200 K for
# tests. The pool at 1200 K is what active learning chooses from. Networks have 16 channels and
# three layers, and see 1,400 minibatches of 25 frames. An earlier run of this page had a quarter of
# these, and the first claim below failed on one seed; its bound has not changed.
#
# The loss of energies and forces as squares is "mse", that of the likelihood of the energy
# "energy", and "joint" is the paper's, but each force weighs one, as in a likelihood, which gave
# better forces in trials than the paper's mean over them. Three networks by the last are an
# ensemble, and its first member is the network that others are compared with.

# %%
NUM_TRAIN, NUM_TEST, NUM_STEPS = page.length((250, 120, 1400), smoke=(30, 12, 4))
TEMPERATURES, NUM_MEMBERS = (300.0, 600.0, 1200.0), 3
make = partial(molecule_frames, "CH3OH")
train = {seed: make(NUM_TRAIN, 300.0, seed=seed) for seed in SEEDS}
tests = {s: {t: make(NUM_TEST, t, seed=100 + s) for t in TEMPERATURES} for s in SEEDS}
pools = {seed: make(NUM_TRAIN, 1200.0, seed=200 + seed) for seed in SEEDS}
SPECIES = train[SEEDS[0]].species

members = [started(train[s], 10 * s + k) for s in SEEDS for k in range(NUM_MEMBERS)]
own_frames = list(train.values())
potentials: dict[str, dict[int, list[RACE]]] = {}
for kind in ("mse", "energy"):
    alone = fit(members[::NUM_MEMBERS], own_frames, kind, NUM_STEPS)
    potentials[kind] = {s: [one] for s, one in zip(SEEDS, alone, strict=True)}
trained = fit(members, [x for x in own_frames for _ in range(NUM_MEMBERS)], "joint", NUM_STEPS)
ensembles = {s: trained[NUM_MEMBERS * k :][:NUM_MEMBERS] for k, s in enumerate(SEEDS)}
potentials |= {"joint": {s: e[:1] for s, e in ensembles.items()}, "joint, 3 members": ensembles}


# %%
def errors(networks: Sequence[RACE], frames: MoleculeFrames) -> tuple[float, float]:
    """Root mean square errors of the mean of networks: meV of energies, meV/A of forces."""
    found = ensemble_prediction(networks, frames.positions, SPECIES)
    energies = found.energy.mean(0) - networks[0].relative(SPECIES, frames.energies)
    forces = found.forces.mean(0) - frames.forces
    of_energy, of_force = (x.double().square().mean().sqrt() for x in (energies, forces))
    return 1e3 * float(of_energy), 1e3 * float(of_force)


results = {
    name: np.array([[errors(of[s], tests[s][t]) for t in TEMPERATURES] for s in SEEDS])
    for name, of in potentials.items()
}
columns = [f"{what} {t:g} K" for t in TEMPERATURES for what in "EF"]
rows = {name: dict(zip(columns, x.mean(0).flatten(), strict=True)) for name, x in results.items()}
page.table(rows, title="RMSE, meV and meV/A", number_format=".1f")
joint_300, energy_300, mse_300 = (results[kind][:, 0] for kind in ("joint", "energy", "mse"))
page.claim(
    "Trained by the joint likelihood, forces are better than by the likelihood of the energies "
    "(ratio of RMSE at 300 K).",
    dict(zip(SEEDS, joint_300[:, 1] / energy_300[:, 1], strict=True)),
    "<",
    0.65,
    source=TABLES,
    central=True,
)
page.claim(
    "So are energies (ratio of RMSE at 300 K).",
    dict(zip(SEEDS, joint_300[:, 0] / energy_300[:, 0], strict=True)),
    "<",
    1.0,
    source=TABLES,
)
page.claim(
    "Forces are nearly as good as without uncertainty (ratio of RMSE at 300 K to that of squares).",
    dict(zip(SEEDS, joint_300[:, 1] / mse_300[:, 1], strict=True)),
    "<",
    1.6,
    source=TABLES,
)

# %% [markdown]
# ## Posteriors, and what lies outside of the data
#
# The standard deviation of the energy is to be larger at 1200 K than at 300 K; the area under the
# ROC curve (AUROC) says for how many pairs of frames it is. A single network's own variance is one
# way, the total of an ensemble another. SWAG and IVON go on from the first member of each ensemble,
# with five draws each. A Laplace approximation is left out: its noise came out far too large.


# %%
def deviation(networks: Sequence[RACE], frames: MoleculeFrames) -> Tensor:
    """Standard deviations of energies, in eV, by the total variance."""
    found = ensemble_prediction(networks, frames.positions, SPECIES)
    return predictive_moments(found).energy_variance.sqrt()


firsts = [one[0] for one in ensembles.values()]
later = (firsts, own_frames, *page.length((50, 5), smoke=(4, 3)))
posteriors = {
    "one network": potentials["joint"],
    "ensemble": ensembles,
    "SWAG": dict(zip(SEEDS, swag_draws(*later), strict=True)),
    "IVON": dict(zip(SEEDS, ivon_draws(*later), strict=True)),
}
is_hot = np.repeat([False, True], NUM_TEST)
areas: dict[str, dict[int, float]] = {}
deviations: dict[str, dict[float, Tensor]] = {}
for name, of in posteriors.items():
    scale = {t: [deviation(of[s], tests[s][t]) for s in SEEDS] for t in TEMPERATURES}
    pairs = zip(SEEDS, scale[300.0], scale[1200.0], strict=True)
    areas[name] = {s: float(roc_auc_score(is_hot, torch.cat([a, b]))) for s, a, b in pairs}
    deviations[name] = {t: 1e3 * torch.cat(x) for t, x in scale.items()}
    cold, hot = (float(deviations[name][t].mean()) for t in (300.0, 1200.0))
    area = fmean(areas[name].values())
    print(f"{name}: AUROC {area:.3f}, deviations {cold:.1f} meV at 300 K, {hot:.1f} meV at 1200 K")
page.claim(
    "An ensemble of three tells frames at 1200 K from those at 300 K by its total uncertainty of "
    "the energy (AUROC).",
    areas["ensemble"],
    ">",
    0.8,
    source="Willow et al. (2025), figures of oBN25: 1.00; bound preregistered",
)
page.claim(
    "It does so better than the variance that one network predicts (difference of AUROC).",
    {s: areas["ensemble"][s] - areas["one network"][s] for s in SEEDS},
    ">",
    0.0,
    source="Willow et al. (2025), figures of oBN25: 1.00 and 0.54",
    reason="it does not on every seed. The standard deviation of one network hardly grows from "
    "300 K to 1200 K, but nearly all hot frames are a little above the cold ones, and the area "
    "asks for the order alone",
)
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for axes, name in zip(panels, ("one network", "ensemble"), strict=True):
    for t, x in deviations[name].items():
        axes.hist(x.numpy(), np.geomspace(10, 200, 40), alpha=0.6, label=f"{t:g} K")
    axes.set(xscale="log", xlabel="standard deviation of the energy, meV", title=name)
panels[0].legend()
page.figure("uncertainty", figure, despine=True)

# %% [markdown]
# ## Active learning
#
# Ten frames of the pool at 1200 K are labeled and added to the 250, and the members go on for 120
# minibatches. BALD is the information that members' disagreement holds; in BALD-EF energies and
# forces choose by turns. Its rivals choose at random, by the largest total variance of the energy,
# or by distance from the training frames and from what was chosen, in sorted distances of atoms.

# %%
NUM_CHOSEN, AGAIN_STEPS = page.length((10, 120), smoke=(4, 3))


def choices(seed: int) -> dict[str, Tensor]:
    """Numbers of frames of the pool, by strategy."""
    own, pool = train[seed], pools[seed]
    found = ensemble_prediction(ensembles[seed], pool.positions, SPECIES)
    of_energy = bald(found.energy, found.log_variance.exp())
    of_force = bald(found.forces, ForceNormal(found.forces, found.l6).covariance_matrix, 1).mean(-1)
    generator = torch.Generator().manual_seed(seed)
    variance = predictive_moments(found).energy_variance
    far, near = (torch.stack([pdist(x).sort().values for x in of.positions]) for of in (pool, own))
    return {
        "random": torch.randperm(len(far), generator=generator)[:NUM_CHOSEN],
        "farthest": farthest_points(far, NUM_CHOSEN, near),
        "variance": variance.argsort(descending=True)[:NUM_CHOSEN],
        "BALD-EF": best_by_turns([of_energy, of_force], NUM_CHOSEN),
    }


def with_chosen(seed: int, chosen: Tensor) -> MoleculeFrames:
    """Training frames with the chosen ones among them."""
    pairs = zip(train[seed][1:], pools[seed][1:], strict=True)
    return MoleculeFrames(SPECIES, *(torch.cat([a, b[chosen]]) for a, b in pairs))


learned: dict[str, list[tuple[float, float]]] = {}
for seed in SEEDS:
    chosen = choices(seed)
    more = [with_chosen(seed, one) for one in chosen.values() for _ in range(NUM_MEMBERS)]
    networks = fit(ensembles[seed] * len(chosen), more, "joint", AGAIN_STEPS, seed, lr=3e-3)
    for k, name in enumerate(chosen):
        part = networks[k * NUM_MEMBERS :][:NUM_MEMBERS]
        learned.setdefault(name, []).append(errors(part, tests[seed][1200.0]))
against = {name: np.divide(learned["BALD-EF"], row) for name, row in learned.items()}
mean_errors = {name: dict(zip("EF", np.mean(row, 0), strict=True)) for name, row in learned.items()}
page.table(mean_errors, title="RMSE at 1200 K", number_format=".1f")
page.claim(
    "With frames chosen by BALD-EF the error of energies at 1200 K ends lower than with frames "
    "chosen at random (ratio of RMSE).",
    dict(zip(SEEDS, against["random"][:, 0], strict=True)),
    "<",
    1.0,
    source="Willow et al. (2025), active learning on 3BPA: 36.3 and 40.8",
    across="mean",
)
page.claim(
    "So does that of forces (ratio of RMSE).",
    dict(zip(SEEDS, against["random"][:, 1], strict=True)),
    "<",
    1.0,
    source="Willow et al. (2025), active learning on 3BPA: 85.2 and 102.4",
    across="mean",
)
page.claim(
    "They are no worse than the farthest points or the largest variances (ratio of RMSE of forces "
    "to the better of the two).",
    dict(zip(SEEDS, np.maximum(against["farthest"], against["variance"])[:, 1], strict=True)),
    "<",
    1.05,
    source="Willow et al. (2025), active learning against these rivals; bound preregistered",
    reason="ten frames in 260 and 120 minibatches move the error of forces too little for telling "
    "strategies apart",
    across="mean",
)

# %% [markdown]
# ## In use
#
# Observe forces along with energies, and give the weights of a few networks to `Predictive`. For
# dynamics `RACECalculator` takes an ensemble, and says where it leaves the region of its training.

# %%
page.finish({"train": NUM_TRAIN, "test": NUM_TEST, "steps": NUM_STEPS, "members": NUM_MEMBERS})
