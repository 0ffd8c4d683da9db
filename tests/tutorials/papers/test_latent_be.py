"""The page on latent batch ensembles: its parts, and in full its claims."""

import pytest
import torch

from pyro_ext.diagnostics.metrics import nll
from tests.pages import check_short_report

PAGE = "latent-be"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 8, {"students", "factors", "shift", "perturbations"})


def test_students_are_of_one_size(short_run):
    names, _ = short_run
    plain, latent, teacher = (
        sum(p.numel() for p in network.parameters())
        for network in (
            names["plain"][0],
            names["latent"]["LatentBE"][0].merge(),
            names["tasks"][0].teachers[0],
        )
    )
    assert plain == latent == teacher == 89_610


def test_rotation(short_run):
    names, _ = short_run
    images = torch.rand(2, 1, 7, 7)
    torch.testing.assert_close(names["rotated"](images, 0), images)
    turned = names["rotated"](images, 90)
    assert torch.allclose(turned, images.rot90(1, (-2, -1)), atol=1e-5) or torch.allclose(
        turned, images.rot90(-1, (-2, -1)), atol=1e-5
    )


def test_calibrated_metrics(short_run):
    """Halves whose best temperatures are known."""
    names, _ = short_run
    confident = torch.tensor([[0.9, 0.1]]).repeat(16, 1)
    labels = (torch.arange(16) // 2 % 4 == 3).long()  # three of four right in each half
    expected = nll(torch.tensor([[0.75, 0.25]]).repeat(16, 1), labels)
    assert names["calibrated"](nll, confident[None], labels) == pytest.approx(expected, abs=1e-6)


def test_equivalents_of_ensembles(short_run):
    names, _ = short_run
    for by_size in names["sizes"].values():
        assert sorted(by_size, reverse=True) == by_size
    assert list(names["scores"]["four teachers"]["equivalent"].values()) == pytest.approx([4.0] * 3)
