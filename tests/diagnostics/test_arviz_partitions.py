"""Label vectors in a posterior become numbers that ArviZ can judge, under both lines of it."""

from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.diagnostics.partitions import partition_quantities
from tests.diagnostics.arviz_models import FakeSampler, arviz, groups_of, values

QUANTITIES = ("num_clusters", "largest_cluster_size", "entropy", "num_singletons")


def draws() -> dict[str, Tensor]:
    return {"assignment": torch.randint(4, (3, 10, 8)), "scale": torch.rand(3, 10)}


def test_quantities_are_in_the_posterior_and_labels_beside_the_statistics() -> None:
    own = draws()
    sampler = FakeSampler(own, statistics={"energy": torch.rand(3, 10)})
    dims = {"assignment": ["point"]}
    sampler.partitions = ("assignment",)
    data = to_arviz(sampler, dims=dims, coords={"point": list("abcdefgh")})
    names = {f"assignment_{name}" for name in QUANTITIES}
    assert set(data["posterior"].data_vars) == names | {"scale"}
    for name, value in partition_quantities(own["assignment"]).items():
        np.testing.assert_array_equal(values(data, "posterior", f"assignment_{name}"), value)
        assert data["posterior"][f"assignment_{name}"].dims == ("chain", "draw")
    assert data["sample_stats"]["assignment"].dims == ("chain", "draw", "point")
    assert list(data["sample_stats"]["point"].values) == list("abcdefgh")
    np.testing.assert_array_equal(values(data, "sample_stats", "assignment"), own["assignment"])
    assert "energy" in data["sample_stats"].data_vars
    assert len(arviz().summary(data)) == 5


def test_a_sampler_over_partitions_says_which_variables_are_labels(tmp_path: Path) -> None:
    from pyro_ext.distributions import GaussianCluster
    from pyro_ext.inference import MCMC, MarginalGibbs
    from pyro_ext.random_measures import DirichletProcess

    x = torch.randn(30, 2)
    kernel = MarginalGibbs(DirichletProcess(1.0), GaussianCluster.from_data(x))
    mcmc = MCMC(kernel, 8, num_chains=2, seed=0, progress=False, checkpoint=tmp_path).run(x)
    assert mcmc.get_samples()["assignment"].shape == (16, 30)
    for posterior in (mcmc, tmp_path):
        data = to_arviz(posterior)
        assert set(data["posterior"].data_vars) == {f"assignment_{name}" for name in QUANTITIES}
        assert data["sample_stats"]["assignment"].shape == (2, 8, 30)
        assert len(arviz().summary(data)) == 4


def test_other_variables_stay_as_they_are() -> None:
    data = to_arviz(draws(), group_by_chain=True)
    assert set(data["posterior"].data_vars) == {"assignment", "scale"}
    assert groups_of(data) == {"posterior"}


@pytest.mark.parametrize("plate", ["points", "assignment"])
def test_plates_name_the_dimension_of_the_labels(plate: str) -> None:
    def model() -> None:
        with pyro.plate(plate, 8):
            point = pyro.sample("place", dist.Normal(0.0, 1.0))
            pyro.deterministic("assignment", (point > 0.0).long())

    own = FakeSampler({"place": torch.randn(3, 10, 8)}, model)
    own.partitions = ("assignment",)
    data = to_arviz(own)
    np.testing.assert_array_equal(
        values(data, "sample_stats", "assignment"), own.draws["place"] > 0
    )
    wanted = "assignment_dim" if plate == "assignment" else plate
    assert data["sample_stats"]["assignment"].dims == ("chain", "draw", wanted)
    assert data["posterior"]["place"].dims == ("chain", "draw", wanted)


def test_a_variable_that_has_the_name_of_a_quantity() -> None:
    sampler = FakeSampler(draws() | {"assignment_entropy": torch.rand(3, 10)})
    sampler.partitions = ("assignment",)
    with pytest.raises(ValueError, match=r"clash with the variables \['assignment_entropy'\]"):
        to_arviz(sampler)
