"""Valid calls of what floor 2 offers, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import NUTS
from torch.utils.data import DataLoader, TensorDataset

from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import (
    L2E,
    MCMC,
    NPTL,
    SGLD,
    AutoPseudocoreset,
    AuxiliaryGibbs,
    BatchLBFGS,
    BatchOptimizer,
    CopulaClassifier,
    CopulaDensity,
    CopulaRegression,
    EarlyStopping,
    ExpertBuffer,
    ForwardKL,
    GaussianSurrogate,
    MarginalGibbs,
    MartingalePosterior,
    MetaTrainer,
    PolyaUrn,
    PosteriorBootstrap,
    PosteriorPredictive,
    RandomWalk,
    StreamingMCMC,
    Task,
)
from pyro_ext.inference.averaging import FineTunedEnsemble
from pyro_ext.inference.martingale import Mean, WeightedSample
from pyro_ext.inference.partitions import Dendrogram
from pyro_ext.inference.sgmcmc import LearnedDiffusion, Minibatches, ResidualKinetics
from pyro_ext.inference.training import Trainer
from pyro_ext.nn import BayesianModule
from pyro_ext.potential import Potential
from pyro_ext.random_measures import DirichletProcess
from tests.bad_input.walk import Call, call, of

X = torch.linspace(-1.0, 1.0, 8)
Y = (X > 0.0).float()
POINTS = torch.stack([X, X.cos()], -1)


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


def double():
    pyro.sample("loc", dist.Normal(torch.tensor(1.0).double(), 2.0))


def loss_fn(params, x):
    return (x - params["loc"]).square()


def potential_fn(z):
    return z["loc"].square().sum()


def log_likelihood(samples):
    return dist.Normal(samples["loc"][..., None], 1.0).log_prob(X)


EAGER: dict[str, Any] = dict(backend="eager", steps_per_sample=1)
KERNEL: dict[str, Any] = dict(model=model, step_size=0.01, temperature=1.0, **EAGER)
DRIVER: dict[str, Any] = dict(
    num_samples=2,
    warmup_steps=1,
    num_chains=2,
    thinning=1,
    seed=0,
    progress=False,
    group_size=1,
    chain_method="sequential",
)
TRANSFER: dict[str, Any] = dict(
    backbone=torch.nn.Linear(4, 3),
    head=torch.nn.Linear(3, 2),
    num_samples=2,
    optimizer=BatchOptimizer(torch.optim.SGD, 2),
    weight_decay=0.001,
    head_scale=0.05,
    subsample_size=4,
    backend="eager",
    seed=0,
)


HAMILTONIAN: dict[str, Any] = dict(
    model=model,
    step_size=0.1,
    adapt_step_size=True,
    adapt_mass_matrix=True,
    full_mass=False,
    target_accept_prob=0.8,
    **EAGER,
)


def kernels() -> dict[str, Call]:
    x_start = {"loc": torch.zeros(2)}
    return {
        "SGLD": call(**KERNEL, minibatches=Minibatches),
        "SGHMC": call(**KERNEL, momentum_decay=0.1),
        "SGNHT": call(**KERNEL, friction=1.0),
        "PSGLD": call(**KERNEL),
        "L2E": call(**KERNEL, kinetics=ResidualKinetics(hidden_sizes=(4,))),
        "L2E.pretrained": call(model=model, step_size=0.01),
        "MetaSGMCMC": call(**KERNEL, diffusion=LearnedDiffusion()),
        "LaplaceHMC": call(model=model, num_steps=2, **EAGER),
        "HMC": call(**HAMILTONIAN, trajectory_length=1.5),
        "ChEES": call(model=model, trajectory_length=1.5, **EAGER),
        "MAMS": call(model=model, **EAGER),
        "MCLMC": call(model=model, **EAGER),
        "MEADS": call(model=model, **EAGER),
        "NUTS": call(**HAMILTONIAN),
        "IndependenceMetropolis": call(model=model, **EAGER),
        "RandomWalk": call(scale=1.0),
        "Gibbs": call(blocks=[(RandomWalk(1.0), ["loc"])], model=model),
        "LogJoint": call(model=model, args=(X,), kwargs={}),
        "ConstantSchedule": call(step_size=0.1),
        "CyclicalSchedule": call(step_size=0.1, num_cycles=2, num_steps=10),
        "PolynomialSchedule": call(step_size=0.1),
        "EllipticalSlice": call(),
        "EnumeratedSites": call(),
        "PriorProposals": call(),
        "EarlyStopping": call(names=["loc"]),
        "MCMC": call(
            kernel=SGLD(model), initial_params=x_start, early_stopping=EarlyStopping(), **DRIVER
        ),
        "MCMC.run": of(MCMC(SGLD(model, backend="eager"), 1, progress=False, seed=0), {"x": X}),
        "MCMC.get_samples": of(MCMC(SGLD(model), 1, progress=False).run(X)),
        "MCMC.summary": of(MCMC(SGLD(model), 9, progress=False).run(X)),
        "StreamingMCMC": call(kernel=SGLD(model), initial_params=x_start, **DRIVER),
        "StreamingMCMC.run": of(
            StreamingMCMC(SGLD(model, backend="eager"), 1, progress=False, seed=0), {"x": X}
        ),
        "tune": call(
            {"x": X},
            kernel=SGLD(model, backend="eager"),
            grid={"step_size": [0.01]},
            num_steps=4,
            num_chains=2,
            num_samples=2,
        ),
    }


def optimization() -> dict[str, Call]:
    tasks = [Task(model, (X,), log_likelihood)]
    logs = torch.randn(2, 3, 4)
    trainer: dict[str, Any] = dict(
        module=ResidualKinetics(hidden_sizes=(4,)),
        tasks=tasks,
        kernel=lambda model, module: L2E(model, kinetics=module),
        num_steps=4,
        num_samples=2,
        thinning=2,
        num_pairs=1,
        scale=0.1,
        learning_rate=0.1,
        seed=0,
    )

    def objective(position, rows):
        return position.square().sum(-1), 2.0 * position

    return {
        "BatchLBFGS": call(max_steps=5, tolerance=1e-5),
        "BatchLBFGS.minimize": of(BatchLBFGS(3), objective=objective, start=torch.ones(2, 1)),
        "BatchOptimizer": call(optimizer=torch.optim.SGD),
        "laplace_posterior": call({"x": X}, model=model, num_samples=200, num_starts=1, seed=0),
        "AutoLaplaceGGN": call(
            network=BayesianModule(torch.nn.Linear(2, 1)),
            loader=DataLoader(TensorDataset(torch.ones(3, 2), torch.ones(3, 1))),
            likelihood="regression",
            hessian_structure="diag",
        ),
        "antithetic_gradient": call(
            function=lambda points: points.square().sum(-1),
            parameters=torch.tensor([1.0, 2.0]),
            scale=0.1,
            num_pairs=2,
            generator=torch.Generator(),
        ),
        "Task": call(model=model, args=(X,), log_likelihood=log_likelihood, kwargs={}),
        "MetaTrainer": call(**trainer),
        "MetaTrainer.fit": of(MetaTrainer(**trainer), num_iterations=1),
        "ensemble_loss": call(log_likelihood=logs),
        "single_draw_loss": call(log_likelihood=logs),
    }


def clustering() -> dict[str, Call]:
    cluster = GaussianCluster.from_data(POINTS)
    prior = DirichletProcess(1.0)

    def latent(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.StudentT(5.0, loc, 1.0), obs=x)

    both: dict[str, Any] = dict(prior=prior, cluster=cluster)
    marginal = MCMC(MarginalGibbs(prior, cluster), 1, progress=False)
    auxiliary = MCMC(AuxiliaryGibbs(prior, latent, backend="eager"), 1, progress=False)
    return {
        "MarginalGibbs": call(**both),
        "AuxiliaryGibbs": call(prior=prior, cluster=latent, shared=()),
        "SliceSampler": call(prior=prior, cluster=cluster),
        "SplitMerge": call(**both),
        "TreeGuided": call(**both, num_global_moves=1),
        "MCMC.run": of(marginal, {"x": POINTS}),
        "MCMC.run of a model": of(auxiliary, {"x": X}),
        "bhc": call(x=POINTS, cluster=cluster),
        "ibhc": call(x=POINTS, cluster=cluster, prior=prior),
        "rbhc": call(x=POINTS, num_clusters=2, method="greedy"),
    }


def published() -> dict[str, Call]:
    return {
        "PublishedTreeGuided": call(
            prior=DirichletProcess(1.0),
            cluster=GaussianCluster.from_data(POINTS),
            num_global_moves=1,
            local_fraction=0.5,
            init="one",
        )
    }


def predictions() -> dict[str, Call]:
    rule = PolyaUrn()
    options: dict[str, Any] = dict(num_samples=3, horizon=20, seed=0, progress=False)
    posterior: dict[str, Any] = dict(**options)
    bootstrap: dict[str, Any] = dict(
        num_samples=2,
        backend="eager",
        batch_size=2,
        num_restarts=0,
        optimizer=BatchOptimizer(torch.optim.SGD, 2),
        seed=0,
        progress=False,
    )
    bandwidths: dict[str, Any] = dict(bandwidth=0.9, covariate_bandwidth=0.9, num_permutations=1)
    draws = {"loc": torch.randn(10)}
    nptl = NPTL(**{**TRANSFER, "num_samples": 1, "backend": "eager"}, concentration=1.0)
    return {
        "MartingalePosterior": call(predictive=rule, functional=Mean(), **posterior),
        "MartingalePosterior.run": of(MartingalePosterior(rule, Mean(), **options), {"data": X}),
        "MartingalePosterior.run of a model": of(
            MartingalePosterior(PosteriorPredictive(model, draws), Mean(), **options), {"data": X}
        ),
        "PosteriorBootstrap": call(model=model, plate="data", **bootstrap),
        "PosteriorBootstrap of a loss": call(
            loss_fn=loss_fn,
            initial_params={"loc": torch.tensor(0.0)},
            subsample_size=4,
            **bootstrap,
        ),
        "PosteriorBootstrap.run": of(PosteriorBootstrap(model, **bootstrap), {"x": X}),
        "PosteriorPredictive": call(model=model, posterior=draws),
        "PolyaUrn": call(base_measure=dist.Normal(0.0, 1.0)),
        "CopulaDensity": call(bandwidth=0.9),
        "CopulaDensity.fit": of(CopulaDensity(0.9, 1), data=X),
        "CopulaRegression": call(**bandwidths, queries=X),
        "CopulaRegression.fit": of(CopulaRegression(**bandwidths), x=X, y=X.sin()),
        "CopulaClassifier": call(**bandwidths, queries=X),
        "CopulaClassifier.fit": of(CopulaClassifier(**bandwidths), x=X, y=X > 0.0),
        "NPTL": call(**TRANSFER, concentration=1.0, num_blocks=2),
        "NPTL.run": of(nptl, inputs=torch.randn(8, 4), labels=torch.arange(8) % 2),
    }


def coresets() -> dict[str, Call]:
    buffer = ExpertBuffer.collect(
        model, X, num_experts=2, num_epochs=3, batch_size=4, seed=0, progress=False
    )
    guide: Any = partial(AutoPseudocoreset, model, X, size=2, backend="eager", seed=0)
    return {
        "AutoPseudocoreset": call(
            {"x": X},
            model=model,
            size=2,
            learnable=["x"],
            weights="scaled",
            plate="data",
            num_samples=2,
            warmup_steps=1,
            backend="eager",
        ),
        "AutoPseudocoreset.fit": of(guide(), divergence=ForwardKL(), num_steps=1),
        "AutoPseudocoreset.condition": of(guide(), model=model),
        "AutoPseudocoreset.sample_posterior": of(guide(), num_samples=1, warmup_steps=1),
        "ExpertBuffer": call(
            trajectories=torch.randn(2, 3, 1), shapes={"loc": []}, losses=torch.rand(2, 2)
        ),
        "ExpertBuffer.collect": call(
            {"x": X},
            model=model,
            num_experts=2,
            num_epochs=2,
            learning_rate=0.05,
            batch_size=4,
            plate="data",
            backend="eager",
        ),
        "ForwardKL": call(surrogate=GaussianSurrogate()),
        "ReverseKL": call(surrogate=GaussianSurrogate()),
        "Wasserstein": call(surrogate=GaussianSurrogate()),
        "FunctionSpaceKL": call(surrogate=None),
        "FunctionSpaceSurrogate": call(
            posteriors=GaussianSurrogate(),
            model=model,
            function="loc",
            likelihood=lambda loc: dist.Normal(loc, 1.0),
            covariance="jacobian",
            mean=None,
            num_particles=2,
        ),
        "GaussianSurrogate": call(),
        "MCMCSurrogate": call(
            kernel=NUTS, num_samples=2, warmup_steps=1, batch_size=4, data_samples=None
        ),
        "TrajectorySnapshots": call(
            buffer=buffer, num_snapshots=2, thinning=1, num_steps=3, max_start=1
        ),
        "TrajectorySurrogate": call(
            buffer=buffer,
            num_steps=2,
            learning_rate=0.05,
            num_particles=2,
            max_start=1,
            batch_size=4,
        ),
    }


def transfer_ensembles() -> dict[str, Call]:
    path = [{"weight": torch.randn(2, 2)} for _ in range(3)]
    ensemble = FineTunedEnsemble(**{**TRANSFER, "num_samples": 1, "backend": "eager"})
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 2
    return {
        "L2SP": call(backbone=torch.nn.Linear(2, 2), scale=0.1),
        "FineTunedEnsemble": call(**TRANSFER),
        "FineTunedEnsemble.run": of(ensemble, inputs=inputs, labels=labels),
        "FineTunedEnsemble.probabilities": of(
            FineTunedEnsemble(**{**TRANSFER, "num_samples": 1}).run(inputs, labels), inputs=inputs
        ),
        "SWAGPrior": call(snapshots=path),
        "soft_cross_entropy": call(logits=torch.zeros(3), targets=torch.tensor([0.5, 0.5, 0.0])),
    }


def martingale() -> dict[str, Call]:
    values = torch.tensor([0.0, 1.0, 4.0])
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    population = WeightedSample((values,), weights)
    posterior = MartingalePosterior(PolyaUrn(), Mean(), 9, 20, progress=False, seed=0).run(X)
    wide = dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))
    return {
        "BootstrapWeights": call(base_measure=None, num_blocks=2),
        "DirichletWeights": call(num_observed=4, num_atoms=2, concentration=1.0, num_blocks=2),
        "EmpiricalBase": call({"atoms": X}),
        "Expectation": call(function=lambda y: y),
        "MEstimator": call(loss_fn=loss_fn, initial_params={"loc": torch.tensor(0.0)}),
        "Mean": call(),
        "Variance": call(),
        "NormalPredictive": call(),
        "PlugInNormal": call(),
        "Quantile": call(probability=0.5),
        "StudentTPredictive": call(),
        "WeightedMLE": call(model=model, plate="data"),
        "WeightedSample": call(values=(values,), weights=weights),
        "WeightedSample.icdf": of(population, value=torch.tensor(0.6)),
        "density_drift": call(
            population=wide, distribution=dist.Normal(0.0, 1.0), points=torch.zeros(1)
        ),
        "linear_probe": call(
            features=torch.randn(8, 3),
            targets=torch.eye(2)[torch.arange(8) % 2],
            head=torch.nn.Linear(3, 2),
            penalty=0.1,
        ),
        "plot_drift": call(posterior=posterior, ax=plt.figure().subplots()),
    }


def trees() -> dict[str, Call]:
    tree = Dendrogram(torch.tensor([[0, 1], [2, 3]]), torch.tensor([1.0, 4.0]))
    pair = Dendrogram(torch.tensor([[0, 1]]), torch.tensor([-2.0]), labels=("0", "2"))
    single = Dendrogram(torch.empty(0, 2).long(), torch.empty(0), labels=("1",))
    return {
        "ClusterForest": call(
            labels=torch.tensor([0, 1, 0]),
            trees=(pair, single),
            points=(torch.tensor([0, 2]), torch.tensor([1])),
            log_joint=-3.5,
        ),
        "Dendrogram": call(
            merges=torch.tensor([[0, 1], [2, 3]]),
            heights=torch.tensor([1.0, 4.0]),
            cut_height=2.0,
            labels=("a", "b", "c"),
        ),
        "Dendrogram.cut": of(tree, num_clusters=2),
        "GaussianCovarianceGenerator": call(),
        "GaussianGenerator": call(),
        "ItakuraSaitoGenerator": call(),
        "MultinomialGenerator": call(),
        "PoissonGenerator": call(),
    }


def pseudocoresets() -> dict[str, Call]:
    inputs = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    snapshots = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    gaussians = dict(
        mean=torch.zeros(2),
        covariance=torch.eye(2),
        other_mean=torch.ones(2),
        other_covariance=2.0 * torch.eye(2),
    )
    guide = AutoPseudocoreset(regression, X, Y, size=2, backend="eager", seed=0)
    draws, other = {"slope": torch.randn(5)}, {"slope": torch.randn(6)}
    data = {"x": X, "y": Y}

    def linear(flat):
        return inputs @ flat

    return {
        "descend": call(
            posterior=guide.posterior,
            coreset=guide.coreset(),
            start=torch.zeros(2, 1),
            num_steps=2,
            learning_rate=0.5,
        ),
        "diagonal_marginal": call(function=linear, snapshots=snapshots, mean="average"),
        "full_marginal": call(function=linear, snapshots=snapshots, mean="average"),
        "linearized_marginal": call(function=linear, mean=torch.ones(2), covariance=torch.ones(2)),
        "evaluate_coreset": call(data, coreset=guide.condition(), num_samples=1, warmup_steps=1),
        "evaluate_draws": call(data, model=regression, samples=draws, reference=other, site="y"),
        "predictive_probabilities": call(data, model=regression, samples=draws, site="y"),
        "forward_kl_loss": call(at_data_draws=X, at_coreset_draws=X),
        "reverse_kl_loss": call(data_log_likelihood=X, coreset_log_likelihood=X),
        "gaussian_kl": call(**gaussians),
        "gaussian_wasserstein": call(**gaussians),
        "herding_subset": call({"rows": X}, size=2),
        "k_means_subset": call({"rows": X}, size=2),
        "random_subset": call({"rows": X}, size=2),
        "standard_deviation_ratios": call(samples=draws, reference=other),
        "standardized_mean_differences": call(samples=draws, reference=other),
    }


def sgmcmc() -> dict[str, Call]:
    options: dict[str, Any] = dict(hidden_sizes=(4,), decays=(0.5,))
    return {
        "LearnedDiffusion": call(num_hidden=3, max_diffusion=5.0, output_scale=0.1, seed=0),
        "LearnedKinetics": call(**options, force_scale=0.1, velocity_scale=0.1),
        "ResidualKinetics": call(**options, force_scale=3.0, velocity_scale=1.0, output_scale=0.1),
        "find_map": call(potential=Potential(model, X), initial_params={"loc": torch.tensor(0.0)}),
    }


def posterior() -> dict[str, Call]:
    return {
        "pathfinder": call({"x": X}, model=model, num_samples=200, num_paths=1, seed=0),
        "smoothed_weights": call(log_weights=X),
    }


# Where a module has several parts, a word says which.
def training() -> dict[str, Call]:
    x = torch.ones(2, requires_grad=True)
    trainer = Trainer([x])

    def loss() -> torch.Tensor:
        return x.square().sum()

    return {
        "Trainer": call(
            parameters=[x],
            optimizer=partial(torch.optim.Adam, lr=0.1),
            scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
            max_norm=1.0,
            ema_decay=0.9,
            stateful=[torch.Generator()],
            identity={"note": 1},
        ),
        "Trainer.step": of(trainer, loss=loss),
        "Trainer.run": of(trainer, loss=loss, num_steps=3),
        "ShuffledBatches": call({"rows": X}, batch_size=4),
    }


TABLES = {
    "pyro_ext.inference (kernels)": kernels,
    "pyro_ext.inference (optimization)": optimization,
    "pyro_ext.inference (predictions)": predictions,
    "pyro_ext.inference (coresets)": coresets,
    "pyro_ext.inference (partitions)": clustering,
    "pyro_ext.inference.martingale": martingale,
    "pyro_ext.inference.averaging (transfer)": transfer_ensembles,
    "pyro_ext.inference.partitions": trees,
    "pyro_ext.tutorials.papers": published,
    "pyro_ext.inference.pseudocoresets": pseudocoresets,
    "pyro_ext.inference.sgmcmc": sgmcmc,
    "pyro_ext.posterior": posterior,
    "pyro_ext.inference.training": training,
}
