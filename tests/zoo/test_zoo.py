"""The models of Pyro's examples and tutorials run through all of the package, or say why not.

Each goes through the stages in ``STAGES``; the tables below have what is refused with an error and
what warns. ``docs/coming_from.md`` shows the outcome, and a test compares it with these tables.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import NUTS as PyroNUTS
from pyro.infer import Predictive, RandomWalkKernel, config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator, initialize_model
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS, SGHMC
from pyro_ext.potential import Potential, sum_out
from tests.diagnostics.arviz_models import arviz, groups_of, values
from tests.zoo import discrete_examples
from tests.zoo.examples import EXAMPLES, Example

DISCRETE = r"site '\w+' is a discrete latent variable .*sum it out .*pyro_ext\.inference\.NUTS"
NO_GRADIENT = r"'observed' depends on the latent site 'friction', .*no gradient .*\.item\(\)"
NO_GRAPH = r"cannot be recorded as a graph; .*backend='eager'"
ONE_POINT = "point-wise LOO is the same with the sum LOO"
NO_POINTS = r"log_likelihood lacks sites.* 'y_4'\] have no likelihood of single points"
RESIDUAL = (
    r"observed_data lacks the sites \[('residual'|'is_real', 'is_spurious')\]: .* from latent"
)

REFUSED: dict[str, dict[str, str]] = {
    name: {"Potential": DISCRETE, "SGHMC": DISCRETE}
    for name in discrete_examples.NAMES
    if name != "hmm_model_7"  # whose states are summed out in its distribution
}
REFUSED["inclined_plane_in_steps"] = dict.fromkeys(("Potential", "SGHMC", "NUTS"), NO_GRADIENT)
REFUSED["switching_autoregression"] |= {"LOO": "log.likelihood"}

ALL_IN_ONE = (
    "sparse_regression",
    "gp_regression",
    "gp_with_three_hyperparameters",
    "gpytorch_sampled_from_prior",
    "gaussian_hmm",
    "linear_hmm_of_student_noise",
    "forecasting_local_level",
)
WARNED: dict[str, dict[str, str]] = {name: {"LOO": ONE_POINT} for name in ALL_IN_ONE}
WARNED["forecasting_local_level"]["to_arviz"] = RESIDUAL
WARNED["tracking_1d"] = {"to_arviz": RESIDUAL}
WARNED["inclined_plane_with_a_derivative"] = dict.fromkeys(("Potential", "SGHMC", "NUTS"), NO_GRAPH)
WARNED["switching_autoregression"] = {"to_arviz": NO_POINTS}

OTHER_DENSITY = {"tracking_1d", *(f"cormack_jolly_seber_{number}" for number in range(1, 6))}
"""Their likelihoods are no difference of Pyro's densities: the masks of some hide discrete sites on
which others depend, and that of one depends on a discrete site."""

NUM_DRAWS, NUM_PLATES = 40, 2
NAMES = "LKJ GP GPyTorch HMM Gaussian Poisson Student Dirichlet Cormack Jolly Seber".split()


class Run:
    """An example on its way through the stages."""

    def __init__(self, name: str) -> None:
        if "gpytorch" in name:
            pytest.importorskip("gpytorch")
        self.name = name

    @cached_property
    def example(self) -> Example:
        return EXAMPLES[self.name]()

    def sampled(self, kernel: Any) -> MCMC:
        mcmc = MCMC(kernel, NUM_DRAWS, warmup_steps=40, seed=0, progress=False)
        return mcmc.run(*self.example.args)

    @cached_property
    def nuts(self) -> MCMC:
        return self.sampled(NUTS(self.example.model, max_tree_depth=3))

    @cached_property
    def nuts_of_pyro(self) -> MCMC:
        return self.sampled(PyroNUTS(self.example.model, max_tree_depth=3))

    @cached_property
    def posterior(self) -> MCMC:
        """Our draws, or Pyro's where the model has no gradient."""
        return self.nuts_of_pyro if "NUTS" in REFUSED.get(self.name, {}) else self.nuts

    @cached_property
    def data(self) -> Any:
        return to_arviz(self.posterior, posterior_predictive=True, seed=0)


def potential(run: Run) -> None:
    """Density and gradient are Pyro's, with a graph and without, in double precision."""
    torch.set_default_dtype(torch.float64)
    try:
        model, args, *_ = EXAMPLES[run.name]()
        with pyro.validation_enabled(False):
            _, density, *_ = initialize_model(model, args)
        graph, eager = (Potential(model, *args, backend=kind) for kind in ("trace", "eager"))
        points = graph.init(3, seed=0)
        points = {name: value + 0.3 * torch.randn_like(value) for name, value in points.items()}
        found = [each.value_and_grad(points) for each in (graph, eager)]
        for chain in range(3):
            row = {name: value[chain].requires_grad_() for name, value in points.items()}
            expected = density(row)
            gradients = torch.autograd.grad(expected, list(row.values()))
            for value, gradient in found:
                torch.testing.assert_close(value[chain], expected.detach(), rtol=1e-9, atol=1e-9)
                own = [gradient[name][chain] for name in row]
                torch.testing.assert_close(own, list(gradients), rtol=1e-7, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


def check_draws(mcmc: MCMC, example: Example, num_chains: int, num_draws: int) -> None:
    """Draws are finite, move, and have the shapes of Pyro's sites."""
    with pyro.validation_enabled(False):
        params, _, transforms, _ = initialize_model(example.model, example.args)
    draws = mcmc.get_samples(group_by_chain=True)
    for name, param in params.items():
        shape = transforms[name].inv(param).shape
        assert draws[name].shape == (num_chains, num_draws, *shape), name
        assert draws[name].isfinite().all(), name
        assert (draws[name][:, 0] != draws[name][:, -1]).any(), f"{name} does not move"


def sghmc(run: Run) -> None:
    """A few steps of a stochastic-gradient kernel."""
    model, args, *_ = run.example
    kernel = SGHMC(model, step_size=1e-3, momentum_decay=0.1)
    mcmc = MCMC(kernel, 5, warmup_steps=5, num_chains=2, seed=0, progress=False).run(*args)
    check_draws(mcmc, run.example, 2, 5)


def nuts(run: Run) -> None:
    check_draws(run.nuts, run.example, 1, NUM_DRAWS)


def nuts_of_pyro(run: Run) -> None:
    check_draws(run.nuts_of_pyro, run.example, 1, NUM_DRAWS)


def conversion(run: Run) -> None:
    """Likelihoods of the points add up to Pyro's, and what was observed is what was given."""
    example, data = run.example, run.data
    draws = run.posterior.get_samples()
    groups = [values(data, "posterior", name)[0] for name in draws]
    for value, expected in zip(groups, draws.values(), strict=True):
        np.testing.assert_array_equal(value, expected)
    if NO_POINTS in WARNED.get(run.name, {}).values() or run.name in OTHER_DENSITY:
        return
    parts = [values(data, "log_likelihood", name)[0] for name in data["log_likelihood"].data_vars]
    total = sum(part.reshape(NUM_DRAWS, -1).sum(1) for part in parts)
    for draw in range(0, NUM_DRAWS, 13):
        row = {name: value[draw] for name, value in draws.items()}
        np.testing.assert_allclose(total[draw], _log_likelihood(example, row), rtol=1e-3, atol=1e-3)
    names = set(example.likelihoods)
    assert names <= set(data["log_likelihood"].data_vars)
    is_given = run.name != "mixed_hmm"  # which observes, of each step, whether it is zero
    if is_given and RESIDUAL not in WARNED.get(run.name, {}).values():
        observed = np.concatenate(
            [values(data, "observed_data", n).ravel() for n in data["observed_data"].data_vars]
        )
        assert set(np.round(observed, 5)) <= set(np.round(np.ravel(example.args[-1]), 5))


def _log_likelihood(example: Example, row: Mapping[str, Tensor]) -> float:
    """Log likelihood of all data: Pyro's joint density less that of the latent sites."""
    given = poutine.condition(example.model, dict(row))
    with pyro.validation_enabled(False), torch.no_grad():
        enumerated = poutine.enum(config_enumerate(given), first_available_dim=-1 - NUM_PLATES)
        trace = poutine.trace(enumerated).get_trace(*example.args)
        is_discrete = any(
            "_enumerate_dim" in node["infer"] for _, node in trace.iter_stochastic_nodes()
        )
        joint = TraceEinsumEvaluator(trace, is_discrete, NUM_PLATES).log_prob(trace)
        prior = sum(trace.nodes[name]["fn"].log_prob(row[name]).sum() for name in row)
    return float(joint - prior) - math.log(example.num_masked)


def loo(run: Run) -> None:
    """Each likelihood of single points has a finite expected log density."""
    has_points = "log_likelihood" in groups_of(run.data)
    for name in run.data["log_likelihood"].data_vars if has_points else (None,):
        result = arviz().loo(run.data, var_name=name)
        assert np.isfinite(result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd)


def predictive(run: Run) -> None:
    """Pyro's own predictions from the draws are finite and draw what was observed.

    In double precision, since a short run can have extreme draws.
    """
    draws = run.posterior.get_samples()
    torch.set_default_dtype(torch.float64)
    try:
        example = EXAMPLES[run.name]()
        draws = {k: v.double() if v.is_floating_point() else v for k, v in draws.items()}
        drawn = Predictive(example.model, draws)(*example.unobserved)
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn
    for name, value in drawn.items():
        assert len(value) == NUM_DRAWS and value.isfinite().all(), name


STAGES: dict[str, Callable[[Run], None]] = {
    "Potential": potential,
    "SGHMC": sghmc,
    "NUTS": nuts,
    "Pyro's NUTS": nuts_of_pyro,
    "to_arviz": conversion,
    "LOO": loo,
    "Predictive": predictive,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("ignore:Estimated shape parameter", "ignore:A not p.d.")
def test_example(name: str, subtests: pytest.Subtests) -> None:
    run = Run(name)
    for stage, go in STAGES.items():
        refused, warned = (table.get(name, {}).get(stage) for table in (REFUSED, WARNED))
        with subtests.test(stage):
            if refused is not None:
                with pytest.raises((ValueError, TypeError), match=refused):
                    go(run)
                continue
            with nullcontext() if warned is None else pytest.warns(UserWarning, match=warned):
                go(run)


COMPILED = (
    "eight_schools_noncentered",
    "linear_regression_of_a_module",
    "robust_regression",
    "forecasting_local_level",
    "tracking_1d",
    *(f"hmm_model_{number}" for number in range(8)),
    *(f"cormack_jolly_seber_{number}" for number in range(1, 6)),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str) -> None:
    model, args, *_ = EXAMPLES[name]()
    model = sum_out(model, *args)
    graph, compiled = (Potential(model, *args, backend=kind) for kind in ("trace", "compile"))
    points = graph.init(3, seed=0)
    expected = graph.value_and_grad(points)
    torch.testing.assert_close(compiled.value_and_grad(points), expected, rtol=1e-4, atol=1e-4)
    assert compiled.gradient.backend == "compile"


def test_a_simulator_without_gradients_has_a_kernel() -> None:
    """What the error of ``inclined_plane_in_steps`` recommends."""
    example = EXAMPLES["inclined_plane_in_steps"]()
    kernel = RandomWalkKernel(example.model)
    mcmc = MCMC(kernel, 50, warmup_steps=20, seed=0, progress=False).run(*example.args)
    assert mcmc.get_samples()["friction"].unique().numel() > 5


def test_the_page_shows_the_outcome() -> None:
    page = Path(__file__).parents[2] / "docs" / "coming_from.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text("utf-8").splitlines()]
    shown = {row[0]: row[1:] for row in rows if row[0] in {title(name) for name in EXAMPLES}}
    assert shown == {title(name): outcomes(name) for name in EXAMPLES}


def title(name: str) -> str:
    words = {word.lower(): word for word in NAMES}
    return " ".join(words.get(word, word) for word in name.split("_"))


def outcomes(name: str) -> list[str]:
    return [
        "error"
        if stage in REFUSED.get(name, {})
        else "warning"
        if stage in WARNED.get(name, {})
        else "yes"
        for stage in STAGES
    ]
