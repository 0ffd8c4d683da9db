"""What is asked of the page of every paper."""

from pathlib import Path

from pyro_ext._pages import find_pages, run_page
from pyro_ext.reproduction import Report

PAPERS = Path(__file__).parents[3] / "tutorials" / "papers"


def check_short_report(folder, slug, num_claims, figures):
    """A short run says so, and saves all claims and figures."""
    report = Report.load(folder)
    assert report.smoke and report.slug == slug and len(report.claims) == num_claims
    for path in report.figures.values():
        assert path.stat().st_size > 10_000
    assert set(report.figures) == figures


def full_run(name, folder, monkeypatch):
    """Outcome of a run in full with three seeds, whose claims are those that the page lists."""
    monkeypatch.delenv("PYRO_EXT_SMOKE", raising=False)
    (page,) = [page for page in find_pages(PAPERS) if page.path == PAPERS / name]
    outcome = run_page(page, folder, range(3))
    assert outcome.report is not None and not outcome.report.smoke
    assert [claim.statement for claim in outcome.report.claims] == list(page.statements)
    return outcome
