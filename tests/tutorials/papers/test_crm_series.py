"""The page on series and finite approximations: its parts, a short run, and in full its claims."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincc

from tests.pages import check_short_report

PAGE = "crm-series"
pytestmark = pytest.mark.short_page


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 8, {"lost-mass", "finite-approximations", "digits"})


def levy_density(kind):
    """Lévy densities of the measures of the page, in the logarithm of the size, and their ends."""
    if kind == "generalized gamma":
        scale = 2.0 / math.gamma(0.6)
        return lambda x: scale * math.exp(-0.4 * x - 1.5 * math.exp(x)), 6.0
    scale = 2.0 * math.gamma(2.5) / (math.gamma(0.6) * math.gamma(1.9))
    return lambda x: scale * math.exp(-0.4 * x) * (1.0 - math.exp(x)) ** 0.9, 0.0


@pytest.mark.parametrize("kind", ["generalized gamma", "stable beta"])
@pytest.mark.parametrize("name", ["inverse Lévy", "gamma(3)", "gamma(10)", "exponential"])
def test_lost_mass_is_that_of_quadrature(short_run, kind, name):
    """Integrals of the Lévy density over logarithms of sizes, and a root for the time."""
    names, _ = short_run
    density, end = levy_density(kind)
    point = names["POINTS"][3:4]  # a place of the table, between which there is a spline

    def integral(factor, time, low, high):
        middle = min(max(-math.log(time), low), high)
        parts = [(low, middle), (middle, high)]
        return sum(
            quad(lambda x: factor(x) * density(x), *part, limit=200, epsabs=1e-13)[0]
            for part in parts
            if part[0] < part[1]
        )

    if name == "inverse Lévy":
        log_time = brentq(
            lambda t: integral(lambda x: 1.0, math.exp(t), -t, end) - float(point), -end + 1e-9, 20
        )
        expected = integral(math.exp, math.exp(log_time), -60.0, -log_time)
    else:
        shape = {"gamma(3)": 3.0, "gamma(10)": 10.0, "exponential": 1.0}[name]
        log_time = brentq(
            lambda t: (
                integral(lambda x: gammainc(shape, math.exp(t + x)), math.exp(t), -60.0, end)
                - float(point)
            ),
            -5,
            20,
        )
        expected = integral(
            lambda x: math.exp(x) * gammaincc(shape, math.exp(log_time + x)),
            math.exp(log_time),
            -60.0,
            end,
        )
    found = names["lost"](names["curves"][kind][name], point)
    assert float(found) == pytest.approx(expected, rel=1e-7)


def test_finite_errors_are_those_that_are_known(short_run):
    """The Laplace transforms at 1 with 1,000 atoms are 0.26361 and 0.26154, of 0.26366."""
    names, _ = short_run
    transform = math.exp(-float(names["exponent"]))
    assert transform == pytest.approx(0.26366, abs=5e-6)
    for rule, expected in (("exact", 0.26361), ("group", 0.26154)):
        error = names["finite_errors"](1000, rule)[1]
        assert transform + error == pytest.approx(expected, abs=1e-5)


def test_principal_components_have_variance_one(short_run):
    names, _ = short_run
    train, test = names["train"].double(), names["test"].double()
    assert train.shape == (1200, 10) and test.shape == (597, 10)
    torch.testing.assert_close(train.T.cov(), torch.eye(10).double(), atol=1e-4, rtol=0)
    assert 0.7 < float(test.T.cov().diagonal().mean()) < 1.4


def test_mixture_is_that_of_its_components(short_run):
    names, _ = short_run
    law, truncation = names["LAWS"]["NGGP, σ = 0.5"]
    images = names["train"][:7]
    atoms, jumps = 0.3 * torch.randn(50, 20), torch.rand(50)
    conditioned = poutine.condition(names["mixture"], {"G_atoms": atoms, "G_jumps": jumps})
    trace = poutine.trace(conditioned).get_trace(images, law, truncation)
    trace.compute_log_prob()
    places, scales = atoms[:, :10], atoms[:, 10:].exp()
    each = dist.Normal(places, scales).log_prob(images[:, None]).sum(-1)
    expected = (each + (jumps / jumps.sum()).log()).logsumexp(-1)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)


def test_without_discount_the_process_is_that_of_the_sticks(short_run):
    names, _ = short_run
    laws = [names["LAWS"][name][0] for name in ("NGGP, σ = 0", "stick-breaking")]
    first, second = (law.log_eppf([5, 3, 1, 1]) for law in laws)
    torch.testing.assert_close(first, second)


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims_but_one(full_run):
    """One claim fails, as the page says; and one on digits comes too near to its bound to be asked.

    The errors of Laplace transforms are 21 numbers for each seed, each beyond four standard errors
    with a probability of 6e-5, so at most four sets of three seeds in a thousand would fail.
    """
    claims = full_run.report.claims
    near, failing = claims[5], claims[6]
    for claim in claims:
        assert claim.holds or claim in (near, failing), claim
    assert sum(near.values.values()) / 3 > near.bound
    assert not failing.holds and failing.reason and full_run.returncode == 1
