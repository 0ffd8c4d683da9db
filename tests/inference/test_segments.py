"""Every kernel, stopped after each of its steps and continued from what a file holds."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

import pyro_ext.inference as inference
from pyro_ext.checkpoint.files import read_tensors, write_tensors
from pyro_ext.distributions import DirichletOU, KnownVarianceGaussianCluster
from pyro_ext.inference.adjoint import DoubleWell1D, OnsagerMachlup
from pyro_ext.random_measures import DirichletProcess, GeneralizedGammaProcess
from pyro_ext.testing.kernels import check_segments
from tests.inference.models import data, normal, subsampled_normal

pytestmark = pytest.mark.filterwarnings("ignore:only .* of trial proposals:UserWarning")

CLUSTER = KnownVarianceGaussianCluster(torch.zeros(2), 1.0, 1.0)
PATHS = DirichletOU(2.0, num_modes=4, dim=1, start=-1.0, end=1.0), OnsagerMachlup(DoubleWell1D())


def mass() -> Any:
    return DirichletProcess(pyro.sample("concentration", dist.Gamma(1.0, 1.0)))


def normalized() -> Any:
    return GeneralizedGammaProcess(1.0, 0.0, 1.0).normalize()


def kinds(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(kind[:, None] * loc, 1.0).to_event(1), obs=x)


def cluster(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("points", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def blocks() -> MCMCKernel:
    return inference.Gibbs(
        [
            (inference.NUTS(kinds, max_tree_depth=3), ["loc"]),
            (inference.EnumeratedSites(), ["kind"]),
        ]
    )


# A kernel, its data, and other arguments of the run.
RUNS: dict[str, tuple[Callable[[], MCMCKernel], Any, dict[str, Any]]] = {
    "NUTS": (lambda: inference.NUTS(normal, max_tree_depth=3), data(), {}),
    "NUTS without warm-up": (
        lambda: inference.NUTS(normal, step_size=0.1, adapt_step_size=False, max_tree_depth=3),
        data(),
        {"warmup_steps": 0},
    ),
    "NUTS with windows": (
        lambda: inference.NUTS(normal, full_mass=True, max_tree_depth=3, backend="eager"),
        data(),
        {"warmup_steps": 21},
    ),
    "HMC": (lambda: inference.HMC(normal), data(), {}),
    "LaplaceHMC": (lambda: inference.LaplaceHMC(normal), data(), {}),
    "MAMS": (lambda: inference.MAMS(normal), data(), {}),
    "MCLMC": (lambda: inference.MCLMC(normal), data(), {}),
    "MEADS": (lambda: inference.MEADS(normal), data(), {"num_chains": 16}),
    "ChEES": (lambda: inference.ChEES(normal), data(), {"num_chains": 8}),
    "IndependenceMetropolis": (lambda: inference.IndependenceMetropolis(normal), data(), {}),
    "PathPCN": (lambda: inference.PathPCN(*PATHS), None, {}),
    **{
        name: (lambda name=name: getattr(inference, name)(subsampled_normal), data(), {})
        for name in ("SGLD", "PSGLD", "SGHMC", "SGNHT", "L2E", "MetaSGMCMC")
    },
    "SGHMC at an anchor": (
        lambda: inference.SGHMC(subsampled_normal, mass="laplace", control_variate="map"),
        data(),
        {},
    ),
    "AuxiliaryGibbs": (lambda: inference.AuxiliaryGibbs(mass, cluster), data(), {"num_chains": 1}),
    "Gibbs": (blocks, data(), {"num_chains": 1}),
    **{
        name: (lambda name=name: getattr(inference, name)(mass, CLUSTER), data(), {"num_chains": 1})
        for name in ("MarginalGibbs", "SplitMerge", "TreeGuided")
    },
    "SliceSampler": (
        lambda: inference.SliceSampler(normalized, CLUSTER),
        data(),
        {"num_chains": 1},
    ),
    "Pyro's NUTS": (lambda: pyro.infer.NUTS(normal, max_tree_depth=2), data(), {"num_chains": 1}),
    "Pyro's HMC": (lambda: pyro.infer.HMC(normal, num_steps=2), data(), {"num_chains": 1}),
}


QUICK = ("NUTS", "SGLD")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_run_goes_on_after_any_step(name: str) -> None:
    make, x, options = RUNS[name]
    check_segments(make(), *(() if x is None else (x,)), **options)


def test_every_kernel_is_here() -> None:
    """But for bases."""
    found = {type(make()).__name__ for make, _, _ in RUNS.values()}
    for name in inference.__all__:
        value = getattr(inference, name)
        if isinstance(value, type) and issubclass(value, MCMCKernel) and name not in found:
            assert name in {"VectorizedKernel", "SGMCMCKernel"}, name


def test_tensors_that_share_memory_are_written(tmp_path: Any) -> None:
    """Safetensors refuses them; parts of one tensor, views and the same one twice."""
    whole = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "whole": whole,
        "again": whole,
        "row": whole[1],
        "column": whole[:, 0],
        "flat": whole.view(-1),
        "spread": whole[:, :1].expand(2, 3),
        "empty": whole[:0],
        "none": torch.zeros(0),
    }
    write_tensors(tmp_path / "file", tensors, {})
    found = read_tensors(tmp_path / "file")[0]
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
