"""Bayesian E(3)-equivariant potential: forces, their uncertainty, and where it ends."""

# %% [markdown]
# # Bayesian E(3)-equivariant potential
#
# A network that predicts the energy of a molecule gives the forces as its gradient. With a variance
# of the energy as a second output it can be trained by the likelihood, but the likelihood of the
# energies alone lets them drown the forces. S. Y. Willow and others (2025), Bayesian
# E(3)-equivariant interatomic potential with iterative restratification of many-body message
# passing, add a covariance of each force, and train by the joint likelihood, which is to keep the
# accuracy. The spread of an ensemble of such networks is to say where it has no data.
#
# Everything here is methanol, with energies and forces of GFN2-xTB: 250 frames at 300 K to learn
# from, and frames at 300, 600 and 1200 K for tests. Networks have 16 channels and three layers with
# vectors at most, and 350 minibatches of 25 frames.
#
# Some of it is not as first planned. In trials with one seed the loss with a weight of one on the
# mean over the forces, as the paper writes it, gave forces 1.8 times worse than squares do. So each
# force weighs one, as in a likelihood: the weight is the number of atoms, and scales the whole log
# density, with its determinant. Outputs for variances start at zero, and the learning rate is 0.01,
# as in the paper, and not 0.002. Draws of the weights from the Laplace approximation gave energies
# of 1e19 eV, so that it predicts by its linearization. IVON with as many effective data as there
# are frames, and a curvature of 50 at the start, had errors of energies of 83 meV and an AUROC of
# 0.63: its draws were too wide long before it knew the curvature. Now it has the paper's 48,000, so
# that its posterior is much narrower than the one by Bayes' rule; its second rate is 0.98 and not
# 0.999995, with which the curvature would not move in so few steps.
#
# A first full run of 250 minibatches, with gradients clipped for all networks at once, failed
# claims 1 to 3, 5 and 12 (the first: 0.38, 0.81 and 0.78). Since then there are 350, and each
# network's gradients are clipped by themselves, as if it were alone.
#
# `pyro-ext reproduce bayesian-e3-potential` runs it.

# %%
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from torch import Tensor
from torch.func import functional_call

from pyro_ext.diagnostics import IsotonicRecalibrator
from pyro_ext.diagnostics.metrics import interval_calibration_error
from pyro_ext.distributions import ForceNormal
from pyro_ext.inference import bald, best_by_turns, diagonal_laplace, farthest_points
from pyro_ext.models.molecules import (
    RACE,
    LeftTrainingRegion,
    MoleculeFrames,
    RACECalculator,
    ensemble_prediction,
    molecule_frames,
    predictive_moments,
    training_region,
)
from pyro_ext.reproduction import Page
from pyro_ext.tutorials.papers._potential_training import fit, ivon_draws, started, swag_draws

page = Page(
    "bayesian-e3-potential",
    paper="S. Y. Willow and others (2025), Bayesian E(3)-equivariant interatomic potential with "
    "iterative restratification of many-body message passing, arXiv 2510.03046",
)
SEEDS = page.seeds
BLUE, RED, GRAY, YELLOW = "#2a6f97", "#d1495b", "#8d99ae", "#e09f3e"
TEMPERATURES = (300.0, 600.0, 1200.0)
NUM_MEMBERS = 3

# %% [markdown]
# ## The frames
#
# They are made once on a machine, some 20 seconds for each seed. The pool at 1200 K is what active
# learning chooses from; its labels count only where they are asked for.

# %%
NUM_TRAIN, NUM_TEST = page.length((250, 120), smoke=(30, 12))


class Data(NamedTuple):
    """Frames of a seed."""

    train: MoleculeFrames
    tests: dict[float, MoleculeFrames]
    pool: MoleculeFrames


data = {
    seed: Data(
        molecule_frames("CH3OH", NUM_TRAIN, 300.0, seed=seed),
        {t: molecule_frames("CH3OH", NUM_TEST, t, seed=100 + seed) for t in TEMPERATURES},
        molecule_frames("CH3OH", NUM_TRAIN, 1200.0, seed=200 + seed),
    )
    for seed in SEEDS
}
SPECIES = data[SEEDS[0]].train.species
NUM_ATOMS, KEY = len(SPECIES), SPECIES.tolist()

# %% [markdown]
# ## Training by three losses
#
# All networks of a loss are trained at a time, as one function of stacked weights, each with frames
# in an order of its own. The loss of energies and forces as squares is "mse", that of the
# likelihood of the energy "energy", and "joint" is the paper's. Three networks by the last are an
# ensemble, and its first member is the network that others are compared with.

# %%
NUM_STEPS = page.length(350, smoke=4)
members = [started(data[s].train, 10 * s + k) for s in SEEDS for k in range(NUM_MEMBERS)]
frames_of_members = [data[s].train for s in SEEDS for _ in range(NUM_MEMBERS)]


def by_seed_of(networks: Sequence[RACE]) -> dict[int, list[RACE]]:
    """As many networks for each seed, in their order."""
    size = len(networks) // len(SEEDS)
    return {s: list(networks[size * k : size * (k + 1)]) for k, s in enumerate(SEEDS)}


firsts, own_frames = members[::NUM_MEMBERS], [data[s].train for s in SEEDS]
by_loss = {
    kind: dict(zip(SEEDS, fit(firsts, own_frames, kind, NUM_STEPS), strict=True))
    for kind in ("mse", "energy")
}
ensembles = by_seed_of(fit(members, frames_of_members, "joint", NUM_STEPS))
by_loss["joint"] = {seed: members[0] for seed, members in ensembles.items()}


# %%
def errors(networks: Sequence[RACE], frames: MoleculeFrames) -> tuple[float, float]:
    """Root mean square errors of the mean of networks: meV of energies, meV/A of forces."""
    found = ensemble_prediction(networks, frames.positions, SPECIES)
    energies = found.energy.mean(0) - networks[0].relative(SPECIES, frames.energies)
    forces = found.forces.mean(0) - frames.forces
    of_energy, of_force = (x.double().square().mean().sqrt() for x in (energies, forces))
    return 1e3 * float(of_energy), 1e3 * float(of_force)


results = {
    name: {
        seed: {t: errors(networks[seed], data[seed].tests[t]) for t in TEMPERATURES}
        for seed in SEEDS
    }
    for name, networks in {
        **{kind: {s: [one] for s, one in of.items()} for kind, of in by_loss.items()},
        "joint, 3 members": ensembles,
    }.items()
}


def mean(values: Any) -> float:
    """Mean of numbers."""
    return float(np.mean(list(values)))


page.table(
    {
        name: {
            f"{what} {t:g} K": mean(one[t][k] for one in by_seed.values())
            for t in TEMPERATURES
            for k, what in enumerate(("E", "F"))
        }
        for name, by_seed in results.items()
    },
    title="RMSE, meV and meV/A",
    number_format=".1f",
)


def ratio(kind: str, other: str, which: int) -> dict[int, float]:
    """Error by one loss over that by another one, at 300 K; energies are 0, forces are 1."""
    return {s: results[kind][s][300.0][which] / results[other][s][300.0][which] for s in SEEDS}


page.claim(
    "Trained by the joint likelihood, forces are better than by the likelihood of the energies "
    "(ratio of RMSE at 300 K).",
    ratio("joint", "energy", 1),
    "<",
    0.65,
    source="Willow et al. (2025), tables of rMD17 and 3BPA; bound preregistered",
    reason="two seeds have 0.41 and 0.50. With the other the network of the joint likelihood is "
    "behind: its forces are 1.55 times worse than by squares. The bound was set at 600 minibatches "
    "and 32 channels, where the ratio was 0.44; from 250 to 350 minibatches, with gradients "
    "clipped network by network, the worst fell from 0.81 to 0.73",
)
page.claim(
    "So are energies (ratio of RMSE at 300 K).",
    ratio("joint", "energy", 0),
    "<",
    1.0,
    source="Willow et al. (2025), tables of rMD17 and 3BPA; bound preregistered",
    reason="it is the same seed, with 1.01; the others have 0.51 and 0.95, and the worst of 250 "
    "minibatches was 1.22",
)
page.claim(
    "Forces are nearly as good as without uncertainty (ratio of RMSE at 300 K to that of squares).",
    ratio("joint", "mse", 1),
    "<",
    1.6,
    source="Willow et al. (2025), tables of rMD17 and 3BPA; bound preregistered",
)

# %% [markdown]
# ## Posteriors, and what lies outside of the data
#
# The standard deviation of the energy is to be larger at 1200 K than at 300 K; the area under the
# ROC curve (AUROC) says for how many pairs of frames it is. A single network's own variance is one
# way, the total of an ensemble another. From the first member of each ensemble go on SWAG, with a
# constant learning rate, and IVON, with five draws each. The Laplace approximation is that of the
# energies of the network of squares, linearized, with its noise.
#
# That noise comes out as several eV, since the marginal likelihood with a diagonal curvature takes
# each of the 21,600 weights as determined by itself: it sees many more determined weights than the
# 250 energies can determine, and each of them pulls the noise up. So there is a row in which the
# noise is given, as the root mean square error of the training energies.

# %%
NUM_DRAWS = page.length(5, smoke=3)
LATER_STEPS = page.length(50, smoke=4)


def laplace_scales(seed: int, noise: float | None) -> dict[float, Tensor]:
    """Total standard deviations of energies by the Laplace approximation of a seed."""
    network, own = by_loss["mse"][seed], data[seed]

    def energy(weights: Any, x: Tensor) -> Tensor:
        state = {**weights, **dict(network.named_buffers())}
        value: Tensor = functional_call(network, state, (x, tuple(KEY))).energy
        return value

    targets = network.relative(SPECIES, own.train.energies)
    weights = dict(network.named_parameters())
    found = diagonal_laplace(energy, weights, own.train.positions.float(), targets, noise=noise)
    return {
        t: (found.predict(energy, frames.positions.float())[1] + found.noise**2).sqrt()
        for t, frames in own.tests.items()
    }


def energy_scale(networks: Sequence[RACE], frames: MoleculeFrames) -> Tensor:
    """Total standard deviation of the energy, in eV."""
    found = ensemble_prediction(networks, frames.positions, SPECIES)
    return predictive_moments(found).energy_variance.sqrt()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Fraction of pairs in which the score outside is larger."""
    return float((outside[:, None] > inside).double().mean())


LAPLACE = "Laplace"
squares = {s: [one] for s, one in by_loss["mse"].items()}
later = (list(by_loss["joint"].values()), own_frames, LATER_STEPS, NUM_DRAWS)
posteriors = {
    "one network": {s: [one] for s, one in by_loss["joint"].items()},
    "ensemble": ensembles,
    "SWAG": dict(zip(SEEDS, swag_draws(*later), strict=True)),
    "IVON": dict(zip(SEEDS, ivon_draws(*later), strict=True)),
    LAPLACE: squares,
    f"{LAPLACE}, given noise": squares,
}
noises = {s: 1e-3 * errors(squares[s], data[s].train)[0] for s in SEEDS}
scales = {
    name: {
        s: laplace_scales(s, None if name == LAPLACE else noises[s])
        if name.startswith(LAPLACE)
        else {t: energy_scale(networks[s], frames) for t, frames in data[s].tests.items()}
        for s in SEEDS
    }
    for name, networks in posteriors.items()
}
areas = {
    name: {s: auroc(one[300.0], one[1200.0]) for s, one in by_seed.items()}
    for name, by_seed in scales.items()
}
posterior_errors = {
    name: {s: errors(networks[s], data[s].tests[300.0]) for s in SEEDS}
    for name, networks in posteriors.items()
}
page.table(
    {
        name: {
            "AUROC": mean(areas[name].values()),
            "sd 300 K": 1e3 * mean(float(one[300.0].mean()) for one in scales[name].values()),
            "sd 1200 K": 1e3 * mean(float(one[1200.0].mean()) for one in scales[name].values()),
            "E": mean(one[0] for one in posterior_errors[name].values()),
            "F": mean(one[1] for one in posterior_errors[name].values()),
        }
        for name in posteriors
    },
    title="300 K, meV",
    number_format=".2f",
)
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
    reason="by 0.004 with one seed of three. The standard deviation of one network is larger at "
    "1200 K than at 300 K by a twentieth only, but in nearly the same order of frames, and the "
    "area asks for the order alone",
)

# %% [markdown]
# ## Calibration
#
# Half of the test frames at 300 K are held out for isotonic recalibration of the components of
# forces; the other half says what it does. The error is that of central intervals.


# %%
def force_probabilities(networks: Sequence[RACE], frames: MoleculeFrames) -> Tensor:
    """Predictive distribution function at the components of forces, ``(n, num_atoms, 3)``."""
    found = predictive_moments(ensemble_prediction(networks, frames.positions, SPECIES))
    scale = found.force_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    values: Tensor = torch.distributions.Normal(found.forces, scale).cdf(frames.forces.float())
    return values


calibration = {}
for seed in SEEDS:
    values = force_probabilities(ensembles[seed], data[seed].tests[300.0])
    held_out, rest = values[::2].flatten(), values[1::2].flatten()
    after = IsotonicRecalibrator(held_out)(rest)
    calibration[seed] = [interval_calibration_error(one) for one in (rest, after)]
    print(f"seed {seed}: calibration error {calibration[seed][0]:.5f}, {calibration[seed][1]:.5f}")
page.claim(
    "Recalibration lowers the calibration error of forces (ratio).",
    {s: after / before for s, (before, after) in calibration.items()},
    "<",
    1.0,
    source="Willow et al. (2025), recalibration after Kuleshov et al. (2018)",
)

# %% [markdown]
# ## Active learning
#
# Ten frames of the pool at 1200 K are labeled and added to the 250, and the members of the
# ensemble go on for 30 minibatches. BALD-EF lets energies and forces choose by turns. Its rivals
# choose at random, by the largest total variance of the energy, or by distance: farthest from the
# training frames, and from what was chosen, in the sorted distances between atoms.
#
# Going on costs something by itself: after it the error of energies at 1200 K is larger than before
# with all strategies, that of forces with two, BALD-EF among them. What wins here harms least.

# %%
NUM_CHOSEN, AGAIN_STEPS = page.length((10, 30), smoke=(4, 3))


def distances(frames: MoleculeFrames) -> Tensor:
    """Sorted distances between atoms, ``(n, pairs)``."""
    rows, columns = torch.triu_indices(NUM_ATOMS, NUM_ATOMS, 1)
    vectors = frames.positions[:, rows] - frames.positions[:, columns]
    values: Tensor = vectors.norm(dim=-1).sort(-1).values
    return values


def choices(seed: int) -> dict[str, Tensor]:
    """Numbers of frames of the pool, by strategy."""
    pool = data[seed].pool
    found = ensemble_prediction(ensembles[seed], pool.positions, SPECIES)
    of_energy = bald(found.energy, found.log_variance.exp())
    covariances = ForceNormal(found.forces, found.l6).covariance_matrix
    of_force = bald(found.forces, covariances, 1).mean(-1)
    generator = torch.Generator().manual_seed(seed)
    variance = predictive_moments(found).energy_variance
    return {
        "random": torch.randperm(len(pool.energies), generator=generator)[:NUM_CHOSEN],
        "farthest": farthest_points(distances(pool), NUM_CHOSEN, distances(data[seed].train)),
        "variance": variance.argsort(descending=True)[:NUM_CHOSEN],
        "BALD-EF": best_by_turns([of_energy, of_force], NUM_CHOSEN),
    }


def with_chosen(seed: int, chosen: Tensor) -> MoleculeFrames:
    """Training frames with the chosen ones among them."""
    own, pool = data[seed].train, data[seed].pool
    pairs = zip(own[1:], pool[1:], strict=True)
    return MoleculeFrames(own.species, *(torch.cat([a, b[chosen]]) for a, b in pairs))


def after_choices(seed: int) -> dict[str, tuple[float, float]]:
    """Errors at 1200 K after the members have gone on with what each strategy chose."""
    chosen = choices(seed)
    more = [with_chosen(seed, one) for one in chosen.values() for _ in range(NUM_MEMBERS)]
    networks = fit(ensembles[seed] * len(chosen), more, "joint", AGAIN_STEPS, seed, lr=3e-3)
    return {
        name: errors(networks[k * NUM_MEMBERS :][:NUM_MEMBERS], data[seed].tests[1200.0])
        for k, name in enumerate(chosen)
    }


learned = {seed: after_choices(seed) for seed in SEEDS}
page.table(
    {
        "before": {
            k: mean(results["joint, 3 members"][s][1200.0][i] for s in SEEDS)
            for i, k in enumerate(("E", "F"))
        }
    }
    | {
        name: {k: mean(learned[s][name][i] for s in SEEDS) for i, k in enumerate(("E", "F"))}
        for name in learned[SEEDS[0]]
    },
    title="RMSE at 1200 K, meV",
    number_format=".1f",
)


def against(rival: str, which: int) -> dict[int, float]:
    """Error after BALD-EF over that after another strategy; energies are 0, forces are 1."""
    return {s: learned[s]["BALD-EF"][which] / learned[s][rival][which] for s in SEEDS}


page.claim(
    "With frames chosen by BALD-EF the error of energies at 1200 K ends lower than with frames "
    "chosen at random (ratio of RMSE).",
    against("random", 0),
    "<",
    1.0,
    source="Willow et al. (2025), active learning on 3BPA: 36.3 and 40.8",
    across="mean",
)
page.claim(
    "So does that of forces (ratio of RMSE).",
    against("random", 1),
    "<",
    1.0,
    source="Willow et al. (2025), active learning on 3BPA: 85.2 and 102.4",
    across="mean",
)
page.claim(
    "They are no worse than the farthest points or the largest variances (ratio of RMSE of forces "
    "to the better of the two).",
    {s: max(against("farthest", 1)[s], against("variance", 1)[s]) for s in SEEDS},
    "<",
    1.05,
    source="Willow et al. (2025), active learning against these rivals; bound preregistered",
    reason="with one seed of three a rival is better by a fifth, with the others by a hundredth at "
    "most. Ten frames in 260 and 30 minibatches move the error of forces by few in a hundred, from "
    "300 meV/A to 294 at best, which is too little for telling strategies apart",
    across="mean",
)

# %% [markdown]
# ## Dynamics
#
# The ensemble runs 1,000 steps of half a femtosecond at constant energy, from a test frame with
# momenta of 300 K. The energy has to stay. A second run has momenta of 3,000 K, and the calculator
# has to say that it leaves the training region: that the uncertainty is half as large again as the
# largest of the training frames, or that an atom comes nearer to, or goes farther from the others
# than there.
#
# Momenta are scaled so that the kinetic energy is that of the temperature. In the first two runs
# they were not, and claim 12 failed: with the second seed those of 3,000 K were by chance of
# 1,002 K, and nothing left the region.

# %%
NVE_STEPS, HOT_STEPS = page.length((1000, 200), smoke=(5, 5))


class Run(NamedTuple):
    """A trajectory: energies, forces on an atom with their scales, and who has left when."""

    total: np.ndarray
    forces: np.ndarray
    force_scales: np.ndarray
    outside: list[int]


def dynamics(seed: int, temperature: float, num_steps: int) -> Run:
    """Constant energy from a test frame."""
    frames = data[seed].tests[300.0]
    atoms: Any = Atoms(numbers=SPECIES.numpy(), positions=frames.positions[0].numpy())
    atoms.calc = RACECalculator(ensembles[seed], regions[seed])
    noise = np.random.default_rng(seed).standard_normal((NUM_ATOMS, 3))
    noise /= np.sqrt(np.square(noise).mean())
    atoms.set_momenta(noise * np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None])
    total, forces, spread = [], [], []

    def record() -> None:
        total.append(atoms.get_total_energy())
        forces.append(atoms.get_forces()[1])
        spread.append(atoms.calc.results["force_uncertainty"][1])

    verlet: Any = VelocityVerlet(atoms, 0.5 * units.fs)
    verlet.attach(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftTrainingRegion)
        verlet.run(num_steps)
    outside = [number for number, _ in atoms.calc.departures]
    return Run(np.array(total), np.array(forces), np.array(spread), outside)


regions = {s: training_region(ensembles[s], data[s].train.positions, SPECIES) for s in SEEDS}
runs = {seed: dynamics(seed, 300.0, NVE_STEPS) for seed in SEEDS}
hot = {seed: dynamics(seed, 3000.0, HOT_STEPS) for seed in SEEDS}
for seed in SEEDS:
    print(
        f"seed {seed}: energy within {1e3 * np.ptp(runs[seed].total) / NUM_ATOMS:.3f} meV an atom, "
        f"{len(runs[seed].outside)} of {NVE_STEPS} steps outside; hot: {len(hot[seed].outside)} of "
        f"{HOT_STEPS}, the first is {hot[seed].outside[:1]}"
    )
page.claim(
    "In 1,000 steps at constant energy the energy stays (largest difference, meV an atom).",
    {s: 1e3 * float(np.ptp(run.total)) / NUM_ATOMS for s, run in runs.items()},
    "<",
    5.0,
    source="forces are minus the gradient of the energy; bound preregistered",
)
page.claim(
    "Dynamics at 300 K stays in the training region (fraction of steps outside).",
    {s: len(run.outside) / (NVE_STEPS + 1) for s, run in runs.items()},
    "<",
    0.1,
    source="control: a region that everything leaves says nothing",
)
page.claim(
    "Dynamics from 3,000 K is said to leave it (number of the first step outside).",
    {s: float(run.outside[0]) if run.outside else float("inf") for s, run in hot.items()},
    "<=",
    200.0,
    source="the calculator has to say where it has not learned; bound preregistered",
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for place, (kind, color) in enumerate(
    zip(("mse", "joint", "energy"), (GRAY, BLUE, RED), strict=True)
):
    for which, axis in enumerate(axes):
        heights = [mean(results[kind][s][t][which] for s in SEEDS) for t in TEMPERATURES]
        axis.bar(np.arange(3) + 0.25 * place, heights, 0.25, color=color, label=kind)
for axis, label in zip(axes, ("energy, meV", "force, meV/Å"), strict=True):
    axis.set_xticks(np.arange(3) + 0.25, [f"{t:g} K" for t in TEMPERATURES])
    axis.set_ylabel(f"RMSE of {label}")
axes[0].legend(frameon=False)
figure.tight_layout()
page.figure("losses", figure, despine=True)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, name in zip(axes, ("one network", "ensemble"), strict=True):
    for t, color in zip(TEMPERATURES, (BLUE, YELLOW, RED), strict=True):
        deviations = 1e3 * torch.cat([scales[name][s][t] for s in SEEDS]).numpy()
        axis.hist(deviations, np.geomspace(20, 1000, 40), color=color, alpha=0.6, label=f"{t:g} K")
    axis.set(xscale="log", xlabel="standard deviation of the energy, meV", title=name)
axes[0].legend(frameon=False)
figure.tight_layout()
page.figure("uncertainty", figure, despine=True)

# %%
figure, axes = plt.subplots(2, 2, figsize=(10, 5), sharex="col")
for column, (title, run) in enumerate((("300 K", runs[SEEDS[0]]), ("3,000 K", hot[SEEDS[0]]))):
    time = 0.5 * np.arange(len(run.total))
    shown = slice(0, 401)
    force, spread = run.forces[shown, 0], run.force_scales[shown, 0]
    axes[0, column].plot(time[shown], force, color=BLUE, lw=1)
    axes[0, column].fill_between(
        time[shown], force - 2 * spread, force + 2 * spread, color=BLUE, alpha=0.3, lw=0
    )
    steps = np.array(run.outside, dtype=int) - 1
    steps = steps[steps < len(time[shown])]
    low = np.full(len(steps), axes[0, column].get_ylim()[0])
    axes[0, column].plot(time[steps], low, "|", color=RED, ms=8, label="left training region")
    axes[0, column].set_title(f"methanol from {title}")
    axes[1, column].plot(time[shown], 1e3 * (run.total - run.total[0])[shown], color=GRAY, lw=1)
    axes[1, column].set_xlabel("time, fs")
axes[0, 0].set_ylabel("force on oxygen, eV/Å")
axes[1, 0].set_ylabel("change of the energy, meV")
axes[0, 1].legend(frameon=False, loc="upper right")
figure.tight_layout()
page.figure("trajectory", figure, despine=True)

# %%
page.finish(
    {
        "train": NUM_TRAIN,
        "test": NUM_TEST,
        "steps": NUM_STEPS,
        "members": NUM_MEMBERS,
        "draws": NUM_DRAWS,
        "later_steps": LATER_STEPS,
        "chosen": NUM_CHOSEN,
        "nve_steps": NVE_STEPS,
    }
)
