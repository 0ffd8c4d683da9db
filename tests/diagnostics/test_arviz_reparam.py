"""Conversion to ArviZ of reparametrized models: sites of every kind that Pyro has."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Permute
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoMultivariateNormal, AutoStructured
from pyro.infer.reparam import (
    ConjugateReparam,
    DiscreteCosineReparam,
    GumbelSoftmaxReparam,
    HaarReparam,
    LatentStableReparam,
    LinearHMMReparam,
    LocScaleReparam,
    NeuTraReparam,
    ProjectedNormalReparam,
    SplitReparam,
    StableReparam,
    StructuredReparam,
    StudentTReparam,
    SymmetricStableReparam,
    TransformReparam,
    UnitJacobianReparam,
)
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ExpTransform

from pyro_ext.diagnostics import to_arviz
from pyro_ext.potential import Potential
from pyro_ext.reparam import ExpansionReparam
from tests.diagnostics.arviz_models import arviz, values

NUM_POINTS = 4
NUM_DRAWS = 60


def _normal() -> Any:
    return dist.Normal(torch.zeros(NUM_POINTS), 1.0)


def _beta() -> Any:
    return dist.Beta(torch.full((NUM_POINTS,), 2.0), 3.0)


def _lognormal() -> Any:
    transforms = [AffineTransform(0.0, 1.0), ExpTransform()]
    return dist.TransformedDistribution(_normal(), transforms)


def _stable() -> Any:
    return dist.Stable(torch.full((NUM_POINTS,), 1.6), torch.zeros(()), torch.tensor(0.2))


def _relaxed() -> Any:
    return dist.RelaxedOneHotCategorical(torch.tensor(0.5), torch.ones(NUM_POINTS))


def _chain(noise: Callable[[int], Any]) -> Any:
    one = torch.eye(1).expand(NUM_POINTS, 1, 1)
    return dist.LinearHMM(noise(1), one, noise(1), one, noise(1), duration=NUM_POINTS)


def _students(size: int) -> Any:
    return dist.StudentT(5.0, torch.zeros(size), 1.0).to_event(1)


def _guide(kind: Callable[[Any], Any]) -> Callable[[Any, Tensor], Any]:
    def trained(model: Any, y: Tensor) -> Any:
        guide = kind(model)
        guide(y)
        return guide

    return trained


_neutra = _guide(AutoMultivariateNormal)
_structured = _guide(lambda model: AutoStructured(model, conditionals="normal"))

# By name: the prior of the site, and the reparametrization given the model and the data.
REPARAMS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any]]] = {
    "LocScale": (_normal, lambda model, y: LocScaleReparam(0.3)),
    "Transform": (_lognormal, lambda model, y: TransformReparam()),
    "DiscreteCosine": (lambda: _normal().to_event(1), lambda model, y: DiscreteCosineReparam()),
    "DiscreteCosine of a batch": (
        _normal,
        lambda model, y: DiscreteCosineReparam(dim=-1, experimental_allow_batch=True),
    ),
    "Haar": (lambda: _normal().to_event(1), lambda model, y: HaarReparam()),
    "UnitJacobian": (
        lambda: _normal().to_event(1),
        lambda model, y: UnitJacobianReparam(Permute(torch.tensor([2, 0, 3, 1]))),
    ),
    "Split": (lambda: _normal().to_event(1), lambda model, y: SplitReparam([1, 3], dim=-1)),
    "Conjugate": (_beta, lambda model, y: ConjugateReparam(dist.Beta(1.5, 2.0))),
    "NeuTra": (lambda: _normal().to_event(1), lambda model, y: NeuTraReparam(_neutra(model, y))),
    "Structured": (
        lambda: _normal().to_event(1),
        lambda model, y: StructuredReparam(_structured(model, y)),
    ),
    "LatentStable": (_stable, lambda model, y: LatentStableReparam()),
    "SymmetricStable": (_stable, lambda model, y: SymmetricStableReparam()),
    "Stable": (_stable, lambda model, y: StableReparam()),
    "StudentT": (lambda: dist.StudentT(5.0, torch.zeros(4), 1.0), lambda m, y: StudentTReparam()),
    "LinearHMM": (
        lambda: _chain(_students),
        lambda m, y: LinearHMMReparam(StudentTReparam(), StudentTReparam(), StudentTReparam()),
    ),
    "ProjectedNormal": (
        lambda: dist.ProjectedNormal(torch.ones(NUM_POINTS)),
        lambda model, y: ProjectedNormalReparam(),
    ),
    "GumbelSoftmax": (_relaxed, lambda model, y: GumbelSoftmaxReparam()),
    "Expansion": (
        lambda: dist.Normal(torch.zeros(NUM_POINTS, 1), 1.0).to_event(2),
        lambda model, y: ExpansionReparam(),
    ),
}


# Those whose density follows from that of the site. Pyro counts that of AutoStructured otherwise.
BIJECTIONS = [
    *("LocScale", "Transform", "DiscreteCosine", "DiscreteCosine of a batch", "Haar"),
    *("UnitJacobian", "Split", "Conjugate", "NeuTra"),
]


def _reparametrized(name: str, y: Tensor) -> Any:
    prior, reparam = REPARAMS[name]

    def model(y: Tensor) -> None:
        effect = pyro.sample("effect", prior())
        with pyro.plate("data", NUM_POINTS):
            pyro.sample("y", dist.Normal(effect.reshape(NUM_POINTS), 1.0), obs=y)

    return pyro.poutine.reparam(model, config={"effect": reparam(model, y)})


def _draws_near_a_start(potential: Potential) -> dict[str, Tensor]:
    """Unconstrained values."""
    start = potential.init(1, seed=0)
    return {
        name: value + 0.1 * torch.randn(NUM_DRAWS, *value.shape[1:])
        for name, value in start.items()
    }


def _effect(potential: Potential, flat: Tensor) -> Tensor:
    draws = potential.constrain(potential.layout.unflatten(flat))
    return (draws | potential.deterministic(draws))["effect"]


def _check_density(potential: Potential, flat: Tensor, prior: Any, y: Tensor) -> None:
    """Compare the log joint with that of the model as it was, at one point."""
    effect = _effect(potential, flat)
    step = 1e-5 * torch.eye(NUM_POINTS)
    jacobian = (_effect(potential, flat + step) - _effect(potential, flat - step)) / 2e-5
    log_joint = prior.log_prob(effect).sum() + dist.Normal(effect, 1.0).log_prob(y).sum()
    log_joint = log_joint + torch.linalg.slogdet(jacobian.reshape(NUM_POINTS, NUM_POINTS))[1]
    ours = -potential(potential.layout.unflatten(flat))
    torch.testing.assert_close(ours, log_joint.reshape(1), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # few draws
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", REPARAMS)
def test_groups_of_reparametrized_models(name: str) -> None:
    y = torch.randn(NUM_POINTS)
    potential = Potential(_reparametrized(name, y), y, backend="eager")
    z = _draws_near_a_start(potential)
    data = to_arviz(potential.constrain(z), model=potential)
    assert set(data["observed_data"].data_vars) == {"y"}
    assert set(data["log_likelihood"].data_vars) == {"y"}
    assert set(data["posterior"].data_vars) == {"effect", *potential.sites}
    effect = torch.tensor(values(data, "posterior", "effect")).reshape(NUM_DRAWS, -1)
    expected = dist.Normal(effect, 1.0).log_prob(y)
    np.testing.assert_allclose(values(data, "log_likelihood", "y")[0], expected, rtol=1e-8)
    arviz().loo(data)
    if name in BIJECTIONS:
        prior, _ = REPARAMS[name]
        _check_density(potential, potential.layout.flatten(z)[:1], prior(), y)


@pytest.mark.usefixtures("float64")
def test_reparametrized_observations_are_data(subtests: pytest.Subtests) -> None:
    y = torch.randn(NUM_POINTS).exp()

    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.LogNormal(loc * torch.ones(NUM_POINTS), 1.0).to_event(1), obs=y)

    for name, reparam, likelihood in [
        ("DiscreteCosine", DiscreteCosineReparam(), "y_dct"),
        ("Transform", TransformReparam(), "y_base"),
    ]:
        with subtests.test(name):
            changed = pyro.poutine.reparam(model, config={"y": reparam})
            data = to_arviz({"loc": torch.randn(5)}, y, model=changed)
            assert set(data["posterior"].data_vars) == {"loc"}
            assert set(data["log_likelihood"].data_vars) == {likelihood}
            np.testing.assert_array_equal(values(data, "observed_data", "y"), y)


def test_a_density_written_as_a_point_mass_stays_a_likelihood() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Delta(y, log_density=-((y - loc) ** 2)), obs=y)

    y = torch.randn(3)
    loc = torch.randn(5)
    config = {"loc": LocScaleReparam(0.5)}
    for each, names in (
        (model, ["loc"]),
        (pyro.poutine.reparam(model, config), ["loc_decentered"]),
    ):
        draws = {name: loc for name in names}
        data = to_arviz(draws, y, model=each)
        np.testing.assert_allclose(
            values(data, "log_likelihood", "y")[0], -((y - loc[:, None]) ** 2), rtol=1e-5
        )


def test_draws_of_pyro_without_the_site_that_it_does_not_trace() -> None:
    def model(count: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Beta(1.0, 1.0).expand([3]).to_event(0))
        with pyro.plate("data", 3):
            pyro.sample("count", dist.Binomial(10, share), obs=count)
        pyro.sample("wait", dist.Exponential(rate), obs=torch.tensor(0.5))

    count = torch.tensor([0.0, 5.0, 10.0])
    config = {"share": ConjugateReparam(dist.Beta(1.0 + count, 11.0 - count))}
    mcmc = MCMC(NUTS(pyro.poutine.reparam(model, config)), 300, 20, disable_progbar=True)
    mcmc.run(count)
    assert set(mcmc.get_samples()) == {"rate"}
    data = to_arviz(mcmc, seed=0)
    assert set(data["posterior"].data_vars) == {"rate", "share", "share_updated"}
    # Draws from Beta(1 + count, 11 - count), whose standard deviation is at most 0.14.
    means = values(data, "posterior", "share").mean((0, 1))
    np.testing.assert_allclose(means, (1.0 + count) / 12.0, atol=5 * 0.14 / 300**0.5)
    assert set(data["log_likelihood"].data_vars) == {"count", "wait"}
