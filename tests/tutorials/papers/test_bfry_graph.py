"""The page on graphs with power laws: its parts, a short run, and in full its claims."""

import numpy as np
import pytest
import torch

from pyro_ext.models.nonparametric import log_link_probabilities, simulate_graphs

PAGE = "bfry-graph"
pytestmark = pytest.mark.short_page


@pytest.mark.statistical
@pytest.mark.parametrize("index", [0.3, 0.8])
def test_index_of_degrees_is_found(names, index):
    """Within four standard errors, one seed in 16,000 fails; the error is that of many samples."""
    positions = np.arange(1, 5_001)
    log_shares = np.cumsum(np.log((positions[:-1] - index) / (positions[:-1] + 1.0)))
    fractions = np.exp(np.concatenate([[0.0], log_shares]))
    random = np.random.RandomState(0)
    found = [
        names["degree_index"](
            torch.from_numpy(random.choice(positions, 20_000, p=fractions / fractions.sum()))
        )
        for _ in range(60)
    ]
    estimates, errors = np.array(found).T
    assert abs(estimates[0] - index) < 4.0 * errors[0]
    assert estimates.std() == pytest.approx(errors.mean(), rel=0.35)
    assert abs(estimates.mean() - index) < 4.5 * errors.mean() / 60**0.5


def test_predictions_are_of_pairs_that_were_held_out(names):
    graph = names["GRAPHS"]["new_testament_names"]
    train, test = graph.hold_out(0.2, seed=names["SEEDS"][0], max_non_edges=50_000)
    scores, guides = names["outcomes"]["new_testament_names"][names["SEEDS"][0]]
    guide = guides["BFRY"]
    assert torch.equal(guide.graph.edges, train.edges)
    present, absent = log_link_probabilities(
        guide.odds(names["NUM_DRAWS"], seed=names["SEEDS"][0]), test.first, test.second
    )
    expected = float(torch.where(test.is_edge, present, absent).sum())
    assert scores["BFRY"] == pytest.approx(expected, rel=1e-5)
    assert float(test.weight.max()) == 1.0  # all pairs are there
    seed = names["SEEDS"][0]
    scores = [names["outcomes"][name][seed][0] for name in names["GRAPHS"]]
    gain = min(of["BFRY"] - of["gamma"] for of in scores)
    assert names["gain"]("gamma")[seed] == pytest.approx(gain)


def test_fractions_of_new_graphs_are_medians(names):
    seed = names["SEEDS"][0]
    guide = names["outcomes"]["us_airports"][seed][1]["BFRY"]
    found = list(simulate_graphs(guide, names["NUM_NEW"], seed=5))
    numbers = sorted(int((graph.degrees >= 20).sum()) for graph in found)
    assert names["fraction_of_many"](*found) == pytest.approx(numbers[1] / 305)
    row = names["many"]["us_airports", seed]
    assert row["data"] == pytest.approx(79 / 305)
    ratio = (row["BFRY"] + 1e-3) / (row["data"] + 1e-3)
    assert names["factor"]("us_airports", "BFRY")[seed] == pytest.approx(max(ratio, 1.0 / ratio))


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims_but_three(full_run):
    """Three claims have a reason to fail, two of which surely do, and one with some seeds.

    Errors of indices are nine numbers, each beyond four standard errors with a probability of 6e-5,
    so five runs in ten thousand would fail.
    """
    claims = full_run.report.claims
    for claim in claims:
        assert claim.holds or claim.reason, claim
    (central,) = (claim for claim in claims if claim.central)
    assert central.holds and max(central.values.values()) < 1.6 and full_run.returncode == 1
    for words in ("as names have", "of any mean"):
        assert [claim.holds for claim in claims if words in claim.statement] == [False]
    (degrees,) = (claim for claim in claims if "better than degrees" in claim.statement)
    assert min(degrees.values.values()) > -20.0
