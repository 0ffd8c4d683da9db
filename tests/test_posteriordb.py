"""Posteriors of the comparisons: that their models are those that the references come from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    from posteriordb import SIDES, distance, page, ratios

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


# The page -----------------------------------------------------------------------------------------


def a_run(**other: Any) -> dict[str, Any]:
    """What a side gives on a posterior."""
    found = {"size": 3, "bulk": 1000.0, "tail": 500.0, "rhat": 1.001, "warmup": 4000}
    times = {"sampling": 8000, "first": 20.0, "second": 10.0, "again": 1.0, "diverging": 0}
    return found | times | other


def test_distance_from_a_reference() -> None:
    """Of exact draws it is small; of others it says what is off."""
    torch.manual_seed(0)
    known = {"mean": 0.0, "sd": 1.0, "mean_sq": 1.0, "sd_sq": 2.0**0.5}
    quantile = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.95)))
    reference = {"x": known | {"q05": -quantile, "q50": 0.0, "q95": quantile}}
    draws = torch.randn(4, 1000)
    assert distance({"x": draws.numpy()}, reference)[0] < 4.0
    errors, what = distance({"x": (draws + 0.3).numpy()}, reference)
    assert errors > 10.0 and what.endswith("of x")
    narrow = distance({"x": (0.8 * draws).numpy()}, reference)
    assert narrow[0] > 5.0 and narrow[1].startswith(("mean square", "quantile"))


def test_page_has_medians_and_each_posterior() -> None:
    ours = a_run(errors=2.0, worst="mean of x", warnings=[])
    slow = a_run(sampling=16_000, again=3.0)
    runs = {
        "one": {side: (ours if side == "pyro_ext" else slow) for side in SIDES},
        "two": {"pyro_ext": ours | {"errors": 9.0}, "NumPyro": slow | {"rhat": 1.2}},
        "three": {"pyro_ext": {"error": "it took longer than 3 s"}},
    }
    assert ratios(runs, "gradients, bulk", "pyro_ext", "NumPyro") == [2.0]  # not where R-hat is 1.2
    about = {"machine": {"processor": "p", "system": "s"}, "date": "d", "versions": {"jax": "1"}}
    before = "# Title\n<!-- what follows is written by make -->\nold\n<!-- end -->\nafter\n"
    text = page(before, {"runs": runs, **about})
    assert "old" not in text and text.startswith("# Title") and text.endswith("after\n")
    assert "1 of 2 posteriors agree" in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert rows["gradients, bulk"].count("2 (0 of 1 lost)") == 3  # diagonal has the same as nutpie
    assert rows["CPU s, bulk, warm-up counted"].count("3 (0 of 1 lost)") == 2  # not of nutpie
    assert "**9 standard errors off at mean of x**; the run is silent" in rows["two"]
    assert "NumPyro R-hat 1.200" in rows["two"] and "longer than 3 s" in rows["three"]


@pytest.mark.slow
def test_smoke_run(tmp_path: Path) -> None:
    """Ours, in two processes, of which the second finds the machine code."""
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / "posteriordb.py"), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((found,),) = (run.values() for run in json.loads(out.read_text())["runs"].values())
    assert found["errors"] < 5.0 and found["rhat"] < 1.01 and found["bulk"] > 2000
    assert found["sampling"] > 4000 and found["warmup"] > 1600
