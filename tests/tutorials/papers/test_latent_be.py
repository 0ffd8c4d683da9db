"""The page on latent batch ensembles: a short run."""

import pytest

from tests.pages import check_short_report

PAGE = "latent-be"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 6, {"students"})


def test_students_are_of_one_size(short_run):
    names, _ = short_run
    task = names["tasks"][0]
    sizes = [
        sum(p.numel() for p in network.parameters())
        for network in (task.plain(0), task.latent(0).merge(), task.teachers[0])
    ]
    assert sizes == [89_610] * 3
