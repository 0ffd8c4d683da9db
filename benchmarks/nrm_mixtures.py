"""Mixtures with any number of clusters: time, held-out density, and mixing of our kernels.

Iris, 120 rows to learn from and 30 held out: a Dirichlet process mixture of Gaussians by 1,000
sweeps of each kernel, the first 200 of which are thrown away, beside the variational mixtures of
scikit-learn and bnpy and stochastic variational inference in Pyro, whose covariances are diagonal.
All have the same prior, but for two of ours, which sample the four scales of the clusters' prior
covariance too. Quality is the held-out log density for each row; the number of clusters; and its
effective sample size, of all rounds together and for each CPU second. Then the time of a sweep of
Gibbs sampling over points in two dimensions around 50 centers. One thread, CPU seconds. bnpy runs
where ``make .venv-bnpy/.bench`` was.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _bnpy import fit_bnpy
from _common import OURS, Array, Case, Options, cpu_seconds, in_turn, main
from _mixture_peers import (
    DOF_EXCESS,
    LOC_PRECISION,
    MASS,
    SCALE,
    StickBreaking,
    variational_mixture,
)
from sklearn.datasets import load_iris
from torch import Tensor

from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import MCMC
from pyro_ext.inference.partitions import ConjugateKernel, MarginalGibbs, SplitMerge, TreeGuided
from pyro_ext.models.nonparametric import NRMMixture
from pyro_ext.random_measures import DirichletProcess

WARMUP_STEPS, NUM_SAMPLES = 200, 800
NUM_STEPS = 1_500  # of Pyro's optimizer
NUM_CENTERS = 50
NUM_POINTS = (1_000, 10_000, 100_000)
LAW = DirichletProcess(torch.tensor(MASS, dtype=torch.float64))


def iris() -> tuple[Tensor, Tensor]:
    """Standardised rows to learn from, and every fifth of a fixed permutation."""
    rows, _ = load_iris(return_X_y=True)
    rows = torch.from_numpy((rows - rows.mean(0)) / rows.std(0))
    order = np.random.RandomState(0).permutation(len(rows))
    return rows[np.setdiff1d(order, order[::5])], rows[order[::5]]


class Fit(NamedTuple):
    """Result of one fit.

    :param Array num_clusters: at each draw, empty for a peer.
    :param Callable log_density: returns that of the held-out rows.
    :param seconds: CPU time, where it was spent in another process.
    """

    num_clusters: Array
    log_density: Callable[[], Array]
    seconds: float | None = None


@dataclass
class Side:
    """A sampler or a fit: each call is one with another seed.

    :param Callable fit: from a seed.
    """

    fit: Callable[[int], Fit]
    log_densities: list[float] = field(default_factory=list)
    num_clusters: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> float:
        """CPU seconds of the next fit; what is known of its quality is kept."""
        results: list[Fit] = []
        seed = len(self.seconds)
        spent = cpu_seconds(lambda: results.append(self.fit(seed)))
        (fit,) = results
        self.seconds.append(spent if fit.seconds is None else fit.seconds)
        self.num_clusters.append(fit.num_clusters)
        self.log_densities.append(float(fit.log_density().mean()))
        return self.seconds[-1]

    def quality(self) -> dict[str, float]:
        """Over all calls."""
        found = {
            "held-out log density": float(np.mean(self.log_densities)),
            "least": min(self.log_densities),
        }
        numbers = [draws for draws in self.num_clusters if draws.size]
        if numbers:
            size = sum(float(arviz.ess(draws[None])) for draws in numbers)
            found |= {
                "clusters": float(np.mean(numbers)),
                "ESS of clusters": size,
                "ESS/s": size / sum(self.seconds),
            }
        return found


def our_side(kernel: Callable[[], ConjugateKernel], x: Tensor, x_new: Tensor, sweeps: int) -> Side:
    """One of our kernels, for a number of sweeps of which a fifth is thrown away."""
    warmup = sweeps // 5

    def fit(seed: int) -> Fit:
        made = kernel()
        chain = MCMC(
            made, num_samples=sweeps - warmup, warmup_steps=warmup, seed=seed, progress=False
        ).run(x)
        mixture = NRMMixture(made.prior, made.cluster)

        def log_density() -> Array:
            draws = {name: values[::4] for name, values in chain.get_samples().items()}
            return mixture.predictive_log_prob(x_new, x, draws).numpy()

        return Fit(chain.sample_statistics()["num_clusters"][0].numpy(), log_density)

    return Side(fit)


def iris_case(options: Options) -> Case:
    """All kernels and peers on iris; in the table the first kernel alone."""
    smoke = options.smoke
    x, x_new = iris()
    size = x.shape[-1]
    eye = torch.eye(size, dtype=x.dtype)
    cluster = GaussianCluster(x.new_zeros(size), LOC_PRECISION, size + DOF_EXCESS, SCALE * eye)
    sweeps = 20 if smoke else WARMUP_STEPS + NUM_SAMPLES
    num_steps, max_iter = (5, 200) if smoke else (NUM_STEPS, 2_000)
    none = np.empty(0)

    def scaled_cluster() -> GaussianCluster:
        law = dist.LogNormal(torch.full((size,), SCALE, dtype=x.dtype).log(), 1.0)
        scale = pyro.sample("scale", law.to_event(1))
        return GaussianCluster(
            x.new_zeros(size), LOC_PRECISION, size + DOF_EXCESS, scale.diag_embed()
        )

    def by_scikit_learn(seed: int) -> Fit:
        fitted = variational_mixture(x.numpy(), seed, max_iter)
        return Fit(none, lambda: fitted.score_samples(x_new.numpy()))

    def by_pyro(seed: int) -> Fit:
        fitted = StickBreaking(x.float(), seed, num_steps)
        return Fit(none, lambda: fitted.log_density(x_new.float()).numpy())

    def by_bnpy(seed: int) -> Fit:
        fitted = fit_bnpy(x.numpy(), x_new.numpy(), seed, 3 if smoke else 300)
        return Fit(none, lambda: fitted.log_density, fitted.seconds)

    kernels: dict[str, Callable[[], ConjugateKernel]] = {
        OURS: lambda: MarginalGibbs(LAW, cluster),
        f"{OURS}, split-merge": lambda: SplitMerge(LAW, cluster),
        f"{OURS}, tree-guided": lambda: TreeGuided(LAW, cluster),
        f"{OURS}, Gibbs, scales sampled": lambda: MarginalGibbs(LAW, scaled_cluster),
        f"{OURS}, tree-guided, scales sampled": lambda: TreeGuided(LAW, scaled_cluster),
    }
    if not (options.full or smoke):
        kernels = {OURS: kernels[OURS]}
    sides = {name: our_side(make, x, x_new, sweeps) for name, make in kernels.items()}
    first_call = {
        name: cpu_seconds(lambda make=make: our_side(make, x, x_new, 5).measure())  # type: ignore[misc]
        for name, make in kernels.items()
    }
    sides |= {
        "scikit-learn, variational": Side(by_scikit_learn),
        "bnpy, variational": Side(by_bnpy),
        "Pyro, SVI": Side(by_pyro),
    }
    timings = in_turn({name: side.measure for name, side in sides.items()}, options.rounds)
    quality = {name: sides[name].quality() for name in timings.rounds}
    return Case(f"mixture of iris, {sweeps:,} Gibbs sweeps", timings, first_call, quality)


def sweep_case(number: int, rounds: int) -> Case:
    """A sweep of Gibbs sampling from the centers' own clusters."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    centers = 8.0 * torch.randn(NUM_CENTERS, 2, **options)  # type: ignore[call-overload]
    labels = torch.randint(NUM_CENTERS, (number,), generator=generator)
    noise = torch.randn(number, 2, **options)  # type: ignore[call-overload]
    points = centers[labels] + 0.3 * noise
    kernel = MarginalGibbs(LAW, GaussianCluster.from_data(points, determinant=0.1))
    kernel.initial_params = {"assignment": labels}
    kernel.setup(0, points)
    torch.manual_seed(0)
    state = kernel.sample(kernel.initial_params)
    numbers = []

    def measure() -> float:
        nonlocal state
        results: list[dict[str, Tensor]] = []
        seconds = cpu_seconds(lambda: results.append(kernel.sample(state)))
        (state,) = results
        numbers.append(kernel.statistics()["num_clusters"])
        return seconds

    timings = in_turn({OURS: measure}, rounds)
    quality = {OURS: {"clusters": float(np.mean(numbers))}}
    return Case(f"one Gibbs sweep, {number:,} points in 2-D", timings, quality=quality)


def cases(options: Options) -> Iterator[Case]:
    """Mixtures of iris; and sweeps over more and more points, which have no peer."""
    yield iris_case(options)
    if options.full or options.smoke:
        for number in NUM_POINTS if options.full else NUM_POINTS[:1]:
            yield sweep_case(number, options.rounds)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("scikit-learn", "numba", "numpy"))
