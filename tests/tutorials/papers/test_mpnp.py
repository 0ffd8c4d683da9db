"""The page on martingale posterior neural processes: its parts, and in full its claims."""

import pytest
import torch

from pyro_ext.models.neural_processes import log_likelihoods
from tests.pages import check_short_report

pytest.importorskip("gpytorch")
datasets = pytest.importorskip("sklearn.datasets")

PAGE = "mpnp"
pytestmark = pytest.mark.short_page
FIGURES = {"functions", "digits", "optimization", "hares-and-lynxes"}


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 5, FIGURES)


def test_processes_of_a_seed_see_the_same_tasks_and_no_others_are_compared_on(short_run):
    names, _ = short_run
    tasks = names["gp_tasks"][0]
    assert tasks.cache_info().hits >= 2 * tasks.cache_info().misses > 0
    training = {tuple(image.flatten().tolist()) for image in names["image_tasks"][0].images}
    held_out = {tuple(image.flatten().tolist()) for image in names["test_images"].images}
    assert len(names["image_tasks"][0].images) == 1200 and len(held_out) > 500
    assert len(training & held_out) < 5  # images that the collection has twice


def test_scores_are_log_likelihoods_of_targets(short_run):
    names, _ = short_run
    for kind, batches in names["EVALUATION"].items():
        for name, by_seed in names["processes"].items():
            expected = log_likelihoods(by_seed[0], batches).target
            assert names["gp_scores"][kind][name][0] == pytest.approx(expected, rel=1e-5)


def test_differences_have_the_sign_that_the_claims_say(short_run):
    names, _ = short_run
    score = {"A": {0: 1.0, 1: 2.0, 2: 3.0}, "B": {0: 0.5, 1: 3.0, 2: 3.0}}
    assert names["difference"](score, "A", "B") == {0: 0.5, 1: -1.0, 2: 0.0}


def test_pictures_are_those_of_the_source(short_run):
    names, _ = short_run
    digits = names["digits"]
    images = names["pictures"](digits.train_inputs)
    source = datasets.load_digits().images[digits.train_indices.numpy()] / 16 - 0.5
    torch.testing.assert_close(images, torch.tensor(source).float(), atol=1e-6, rtol=0)


def test_hares_and_lynxes_have_the_mean_of_the_simulated(short_run):
    names, _ = short_run
    torch.testing.assert_close(names["scaled"].mean(0), names["unit"])
    observed = names["observed"]
    assert observed.context_inputs.shape == (1, 11, 1) and observed.target_inputs.shape == (
        1,
        10,
        1,
    )
    assert names["counts"][3].tolist() == pytest.approx([35.2, 77.4])  # lynxes and hares in 1903


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims_but_one(full_run):
    """Both claims on periodic functions come too near to their bounds to be asked exactly.

    The draws are the same with each run, but for rounding, which other machines do otherwise: the
    difference to NP is then 0.02 to 0.03, of which only the sign is asked, and that to CNP, 0.015,
    may lose 0.01 as well.
    """
    *_, of_cnp, of_np, _ = claims = full_run.report.claims
    for claim in claims:
        assert claim.holds or claim in (of_cnp, of_np), claim
    assert of_cnp.measured > -0.01
    assert of_np.reason and of_np.measured > 0
