"""The runner of pages keeps what a run in full left, for tests that read it."""

import os

import pytest

from pyro_ext.reproduction import Claim, Report
from pyro_ext.reproduction import pages as page_runs
from pyro_ext.reproduction.pages import (
    Outcome,
    Script,
    find_pages,
    kept_outcome,
    last_outcome,
    run_page,
    run_pages,
)
from tests import durations, pages
from tests.pages import part_of_commit

OLDER_RUNS: set[str] = set()  # of pages that changed and have not been run in full since

PAGE = '''"""A page."""
import os
from pyro_ext.reproduction import Claim, Report, seeds

print("It begins.")
claim = Claim("One is two.", dict.fromkeys(seeds(), 1.0), comparison=">=", bound=2, source="here")
report = Report("a-page", [claim])
report.save(os.environ["PYRO_EXT_FIGURES"])
report.exit()
'''


def write(folder, text):
    (folder / "a_page.py").write_text(text)
    return find_pages(folder)[0]


def test_a_run_is_kept_until_the_page_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_EXT_SMOKE", raising=False)
    page, reports = write(tmp_path, PAGE), tmp_path / "reports"
    assert last_outcome(page, reports) is None
    outcome = run_page(page, reports, range(3), quiet=True)
    assert outcome.returncode == 1 and outcome.cpu_seconds > 0
    assert (reports / "a-page" / "printed.txt").read_text().startswith("It begins.\n")
    assert capsys.readouterr().out == ""
    kept = last_outcome(page, reports)
    assert kept == outcome and list(kept.report.claims[0].values) == [0, 1, 2]
    assert kept.is_whole and kept.is_current and not kept.smoke and "CPUs" in kept.machine
    text = PAGE.replace("A page.", "The page.\n\nSee below.").replace("print", "# # First\nprint")
    assert last_outcome(write(tmp_path, text), reports).report == kept.report  # words alone
    page = write(tmp_path, "'A page.'\nprint('It begins.')\n1 / 0\n")
    assert last_outcome(page, reports) is None
    old = kept_outcome(page, reports)
    assert old.verdict == outcome.verdict and old.is_whole and not old.is_current
    (reports / "a-page" / "old.png").touch()
    (reports / "a-page" / "notes.txt").touch()
    run_page(page, reports, range(3))
    assert not (reports / "a-page" / "old.png").exists()
    assert (reports / "a-page" / "notes.txt").exists()
    kept = last_outcome(page, reports)
    assert kept.verdict == "stopped with status 1" and not kept.passed
    printed = (reports / "a-page" / "printed.txt").read_text()
    assert printed.startswith("It begins.\n") and "ZeroDivisionError" in printed
    assert capsys.readouterr().out == f"a-page: A page.\n{printed}"


def test_what_ran_to_its_end_with_this_package_need_not_run_again(tmp_path, monkeypatch):
    page, reports = write(tmp_path, PAGE), tmp_path / "reports"
    outcome = run_page(page, reports, range(3), quiet=True)
    assert last_outcome(page, reports, range(3)) == outcome  # its claim fails, which is a result
    assert last_outcome(page, reports, range(4)) is None
    monkeypatch.setattr(page_runs, "_package_digest", lambda: "another")
    assert last_outcome(page, reports, range(3)) is None and last_outcome(page, reports)
    crashing = write(tmp_path, "'A page.'\n1 / 0\n")
    run_page(crashing, reports, range(3), quiet=True)
    assert last_outcome(crashing, reports, range(3)) is None and last_outcome(crashing, reports)


def test_pages_run_at_once_and_one_that_crashes_stops_no_other(tmp_path, capsys):
    for name, text in (("a_page", "1 / 0\n"), ("b_page", "print('It begins.')\n")):
        (tmp_path / f"{name}.py").write_text(text)
    found = run_pages(find_pages(tmp_path), tmp_path / "reports", range(3), 2)
    assert {outcome.page.slug: outcome.returncode for outcome in found} == {
        "a-page": 1,
        "b-page": 0,
    }
    assert capsys.readouterr().out == ""


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Slugs of the pages that were run, of five that take 10 to 50 seconds and one unknown."""
    found = tuple(Script(tmp_path / f"page_{n}.py", "A page", ()) for n in (1, 2, 3, 4, 5, 6))
    for page in found:
        page.path.touch()
    monkeypatch.setattr(pages, "pages", lambda: found)
    monkeypatch.setattr(pages, "REPORTS", tmp_path)
    monkeypatch.setattr(durations, "FILE", tmp_path / "durations.json")
    durations.save("pages", {f"page-{n}": 10.0 * n for n in (1, 2, 3, 4, 5)})
    durations.save("tests", {"tests/test_it.py::test_it": 1500.0})
    claim = Claim("One is one.", {0: 1, 1: 1, 2: 1}, "<=", 1.0, "here")
    slugs = []

    def run(page, output, seeds, quiet):
        assert "PYRO_EXT_SMOKE" not in os.environ and os.environ["OMP_NUM_THREADS"] == "1"
        slugs.append(page.slug)
        report = Report(page.slug, [claim]) if page.slug == "page-1" else None
        return Outcome(page, int(page.slug == "page-2"), 2.0, report, 7.0)

    monkeypatch.setattr(page_runs, "run_page", run)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(os, "environ", os.environ | {"PYRO_EXT_SMOKE": "1"})
    return slugs


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["tests.pages", *arguments])
    pages.main()
    return capsys.readouterr().out


def test_all_pages_run_the_longest_first(ran, monkeypatch, capsys):
    printed = main(monkeypatch, capsys)
    assert ran == [f"page-{n}" for n in (6, 5, 4, 3, 2, 1)]
    lines = sorted(printed.splitlines())
    assert lines[:3] == [
        "page-1: 1 of 1 claims hold, 7 CPU s, 2 s",
        "page-2: stopped with status 1, 7 CPU s, 2 s",
        "page-3: ran to its end, 7 CPU s, 2 s",
    ]
    assert durations.load()["pages"]["page-1"] == 10.0


def test_a_part_or_named_pages_run(ran, monkeypatch, capsys):
    main(monkeypatch, capsys, "--part", "2/2")
    assert ran == ["page-5", "page-4", "page-3", "page-2", "page-1"]
    ran.clear()
    durations.save("pages", {"page-5": 601.0})  # too long for a part
    main(monkeypatch, capsys, "--part", "2/2")
    assert ran == ["page-4", "page-3", "page-2", "page-1"]
    durations.save("pages", {"page-5": 50.0})
    ran.clear()
    main(monkeypatch, capsys, "page-3", "page_6", "--record-durations")
    assert ran == ["page-3", "page-6"]
    assert durations.load()["pages"] == {
        **{f"page-{n}": 10.0 * n for n in (1, 2, 4, 5)},
        **{"page-3": 7.0, "page-6": 7.0},
    }


def test_commits_take_turns(ran, monkeypatch, capsys):
    """1,890 seconds are five parts of at most 400, and a test more makes seven."""
    found = [part_of_commit(number) for number in range(6)]
    assert found == ["1/5", "2/5", "3/5", "4/5", "5/5", "1/5"]
    assert main(monkeypatch, capsys, "--part-of-commit", "7") == "3/5\n"
    durations.save("tests", {"tests/test_it.py::test_more": 511.0})
    assert part_of_commit(5) == "6/7"


CELLS = '''"""A page."""

from __future__ import annotations

# %% [markdown]
# # Words

# %%
import pickle
import sys


class Thing: ...


print("first", end="")

# %%

# %%
assert isinstance(pickle.loads(pickle.dumps(Thing())), Thing)
print("second")
print(sys.argv, __file__, file=sys.stderr)
print("third")
'''


def test_a_run_knows_which_cell_printed_what(tmp_path):
    page = write(tmp_path, CELLS)
    outcome = run_page(page, tmp_path / "reports", range(3), quiet=True)
    printed = (tmp_path / "reports" / "a-page" / "printed.txt").read_text()
    assert printed == f"firstsecond\n['{page.path}'] {page.path}\nthird\n"
    assert outcome.returncode == 0 and outcome.lines_before == {0: 0, 2: 0}
    assert last_outcome(page, tmp_path / "reports") == outcome
    page = write(tmp_path, CELLS.replace('"first", end=""', '"first"') + "print(1 / 0)\n")
    outcome = run_page(page, tmp_path / "reports", range(3), quiet=True)
    assert outcome.returncode == 1 and outcome.lines_before == {0: 0, 2: 1}
    printed = (tmp_path / "reports" / "a-page" / "printed.txt").read_text()
    assert f'a_page.py", line {CELLS.count(chr(10)) + 1}, in' in printed
    record = tmp_path / "reports" / "a-page" / "run.json"
    record.write_text(record.read_text().replace('"lines_before": {', '"lines_before": {"x": 1, '))
    assert last_outcome(page, tmp_path / "reports") is None


def test_saved_runs_are_of_the_pages_as_they_are():
    """The site shows no numbers of another script; what only words have changed in is the same."""
    saved = {page.slug: kept_outcome(page, pages.SAVED) for page in pages.pages()}
    assert [slug for slug, run in saved.items() if run is None or not run.is_whole] == []
    for slug, run in saved.items():
        if run.report is not None:
            pictures = {path.stem for path in (pages.SAVED / slug).glob("*.png")}
            assert pictures == set(run.report.figures), slug
    older = {slug for slug, run in saved.items() if not run.is_current}
    assert older == OLDER_RUNS, "python -m tests.pages --again SLUG, then --save SLUG"
