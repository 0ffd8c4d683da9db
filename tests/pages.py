"""Run pages in full and keep what they leave in `reports/`, where their tests read it.

``python -m tests.pages`` runs all, two at a time on two cores; ``--part 2/5`` a part of them. Pages
that ran to their end with the package as it is are left out, so that a run that was stopped goes
on; ``--again`` runs them too. The scoreboard there is of all pages of papers that have been run.
"""

import argparse
import math
import os
from functools import cache
from pathlib import Path

from pyro_ext._pages import Script, choose, find_pages, last_outcome, run_pages
from pyro_ext._scoreboard import write_scoreboard
from pyro_ext.reproduction import MIN_SEEDS, Report
from tests import durations

TUTORIALS = Path(__file__).parents[1] / "tutorials"
PAPERS = TUTORIALS / "papers"
REPORTS = Path(__file__).parents[1] / "reports"
PART = 1200.0  # CPU seconds of slow tests and pages that CI has time for


@cache
def pages() -> tuple[Script, ...]:
    """Workflows and papers; what the demonstration shows has tests of its own."""
    found = [*find_pages(TUTORIALS), *find_pages(PAPERS)]
    return tuple(page for page in found if page.path.stem != "demo")


def page_named(slug: str) -> Script:
    """The page of that name."""
    (page,) = choose(pages(), [slug])
    return page


def check_short_report(folder: Path, slug: str, num_claims: int, figures: set[str]) -> None:
    """A short run says so, and saves all claims and figures."""
    report = Report.load(folder)
    assert report.smoke and report.slug == slug and len(report.claims) == num_claims
    assert [claim.statement for claim in report.claims] == list(page_named(slug).statements)
    saved = {path.stem: path for path in folder.glob("*.png")}
    assert set(report.figures or saved) == figures  # workflows save their figures themselves
    assert all(path.stat().st_size > 10_000 for path in saved.values())
    assert "nan" not in (folder / "printed.txt").read_text("utf-8").lower().split()


def expected_seconds() -> dict[Script, float]:
    record = durations.load()["pages"]
    return {page: record.get(page.slug, durations.UNKNOWN_PAGE) for page in pages()}


def part_of_commit(number: int) -> str:
    """K/N, such that N parts of slow tests and pages fit in CI, and commits take turns."""
    total = sum(durations.load()["tests"].values()) + sum(expected_seconds().values())
    num_parts = math.ceil(total / PART)
    return f"{number % num_parts + 1}/{num_parts}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pages", description=__doc__)
    parser.add_argument("slugs", nargs="*", help="pages to run (default: all)")
    parser.add_argument("--part", type=durations.part, default=(1, 1), metavar="K/N")
    parser.add_argument("--again", action="store_true", help="also what has run")
    parser.add_argument("--record-durations", action="store_true", help="into durations.json")
    parser.add_argument(
        "--part-of-commit", type=int, metavar="NUMBER", help="only print K/N for the NUMBER-th"
    )
    options = parser.parse_args()
    if options.part_of_commit is not None:
        print(part_of_commit(options.part_of_commit))
        return
    number, num_parts = options.part
    chosen = durations.divide(expected_seconds(), num_parts)[number - 1]
    if options.slugs:
        chosen = choose(pages(), options.slugs)
    # A page gets one thread, since as many run at once as there are cores.
    libraries = ("MKL", "OMP", "OPENBLAS")
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in libraries}
    os.environ.pop("PYRO_EXT_SMOKE", None)
    seeds = range(MIN_SEEDS)
    if not options.again:
        chosen = [page for page in chosen if not last_outcome(page, REPORTS, seeds)]
    taken = {}
    for outcome in run_pages(chosen, REPORTS, seeds, os.cpu_count() or 1):
        slug, cpu_seconds = outcome.page.slug, outcome.cpu_seconds or outcome.seconds
        taken[slug] = cpu_seconds
        verdict = outcome.verdict if outcome.report or outcome.returncode else "ran to its end"
        print(f"{slug}: {verdict}, {cpu_seconds:.0f} CPU s, {outcome.seconds:.0f} s", flush=True)
    papers = [page for page in pages() if page.path.parent == PAPERS]
    kept = [outcome for page in papers if (outcome := last_outcome(page, REPORTS))]
    write_scoreboard(kept, REPORTS)
    if options.record_durations:
        durations.save("pages", taken)


if __name__ == "__main__":
    main()
