"""Posteriors of the comparisons: that their models are those that the references come from."""

from pathlib import Path

import arviz
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ext.inference import MCMC, NUTS
from pyro_ext.potential import Potential

pytestmark = pytest.mark.usefixtures("float64")

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(FOLDER))
    from _posteriors import POSTERIORS

WITH_REFERENCE = [name for name, posterior in POSTERIORS.items() if posterior.reference]
# One posterior of each model, and those whose model is a loop, or a parallel scan, over times.
OF_MODELS = {posterior.model.__name__: name for name, posterior in POSTERIORS.items()}
CHEAP = (
    "earnings-logearn_height",
    "kidiq-kidscore_momhs",
    "kidiq-kidscore_momiq",
    "mesquite-logmesquite_logvolume",
    "mesquite-mesquite",
    "sblri-blr",
)
"""Some that take less than a minute each."""
LOOPS = {
    "arma",
    "garch",
    "hmm_drive_0",
    "hmm_drive_1",
    "hmm_example",
    "lotka_volterra",
    "one_compartment",
    "stochastic_volatility",
}


def test_there_are_44_with_a_reference_and_5_wider_ones() -> None:
    assert len(WITH_REFERENCE) == 44
    wider = set(POSTERIORS) - set(WITH_REFERENCE)
    assert len(wider) == 5
    for name in wider:
        posterior = POSTERIORS[name]
        assert Potential(posterior.model, *posterior.arguments).layout.size > 50


@pytest.mark.parametrize("name", POSTERIORS)
def test_parameters_are_those_of_the_reference(name: str) -> None:
    posterior = POSTERIORS[name]
    potential = Potential(posterior.model, *posterior.arguments, backend="eager")
    params = potential.init(num_chains=2, seed=0)
    assert potential(params).isfinite().all()
    parameters = posterior.parameters(potential.constrain(params))
    assert set(parameters) == set(posterior.reference)
    for value in parameters.values():
        assert value.shape == (2,) and value.dtype == torch.float64 and value.isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name in WITH_REFERENCE if POSTERIORS[name].model.__name__ == "regression"]
)
def test_reference_of_a_flat_regression_is_least_squares(name: str) -> None:
    posterior = POSTERIORS[name]
    design, outcome = posterior.arguments
    beta, squares, *_ = np.linalg.lstsq(design, outcome)
    num_rows, num_columns = design.shape
    exact = {f"beta[{1 + column}]": value for column, value in enumerate(beta)}
    for parameter, mean in exact.items():
        reference = posterior.reference[parameter]
        assert abs(reference["mean"] - mean) < 5.0 * reference["sd"] / 10_000**0.5
    # The variance is inverse gamma with (num_rows - num_columns - 1) / 2 and half of the squares.
    reference = posterior.reference["sigma"]
    mean = squares.item() / (num_rows - num_columns - 3)
    assert abs(reference["mean_sq"] - mean) < 5.0 * reference["sd_sq"] / 10_000**0.5


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if m in LOOPS else ()) for m, n in OF_MODELS.items()],
)
def test_records(name: str) -> None:
    """The model runs as a graph over chains, without the warning of one that cannot."""
    posterior = POSTERIORS[name]
    potential = Potential(posterior.model, *posterior.arguments)
    params = potential.init(num_chains=2, seed=0)
    recorded = potential(params)
    eager = Potential(posterior.model, *posterior.arguments, backend="eager")(params)
    torch.testing.assert_close(recorded, eager)


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_numpyro_has_the_same_density(name: str) -> None:
    jax = pytest.importorskip("jax")
    infer = pytest.importorskip("numpyro.infer.util")
    jax.config.update("jax_enable_x64", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        from _numpyro_posteriors import arguments_of, model_of
    posterior = POSTERIORS[name]
    potential = Potential(posterior.model, *posterior.arguments, backend="eager")
    params = potential.init(num_chains=3, seed=0)
    model, arguments = model_of(posterior), arguments_of(posterior)
    for chain, ours in enumerate(potential(params)):
        point = {site: jax.numpy.asarray(value[chain].numpy()) for site, value in params.items()}
        theirs = infer.potential_energy(model, arguments, {}, point)
        assert float(theirs) == pytest.approx(float(ours), rel=1e-8)


def standard_error(values: Tensor) -> float:
    """Of the mean of draws by chain."""
    return float(values.std() / arviz.ess(values.numpy(), method="mean") ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_nuts_agrees_with_the_reference(name: str) -> None:
    posterior = POSTERIORS[name]
    mcmc = MCMC(NUTS(posterior.model), num_samples=1000, num_chains=4, seed=0, progress=False)
    mcmc.run(*posterior.arguments)
    parameters = posterior.parameters(mcmc.get_samples(group_by_chain=True))
    for parameter, draws in parameters.items():
        assert arviz.rhat(draws.numpy()) < 1.05
        reference = posterior.reference[parameter]
        for values, suffix in ((draws, ""), (draws**2, "_sq")):
            mean, scale = reference[f"mean{suffix}"], reference[f"sd{suffix}"]
            error = np.hypot(standard_error(values), scale / 10_000**0.5)
            assert abs(float(values.mean()) - mean) < 5.0 * error, (parameter, suffix)
