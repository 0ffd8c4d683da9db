"""Chains on MPI, run by ``mpiexec -n 3 python mpi_run.py``: they are those of one process."""

import pyro
import pyro.distributions as dist
import torch
from mpi4py import MPI
from mpi4py.futures import MPICommExecutor

from pyro_ext.inference import MCMC, SGHMC


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x), subsample_size=20) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def draws(chain_method):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0))
    kernel = SGHMC(model, step_size=0.02, friction=5.0)
    options = {"num_samples": 50, "warmup_steps": 20, "num_chains": 4, "seed": 0}
    mcmc = MCMC(kernel, chain_method=chain_method, progress=False, **options).run(x)
    return mcmc.get_samples(group_by_chain=True)["loc"]


if __name__ == "__main__":
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        if executor is not None:  # in one of the processes, for which the others work
            assert executor.num_workers == 2
            assert torch.equal(draws(executor), draws("vectorized"))
            print("the same draws")
