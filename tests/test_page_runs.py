"""The runner of pages keeps what a run in full left, for tests that read it."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyro_ext._pages import Outcome, Script, find_pages
from pyro_ext.reproduction import Claim, Report
from tests import durations, pages
from tests.pages import last_outcome, part_of_commit, run

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


def test_a_run_is_kept_until_the_page_changes(tmp_path, monkeypatch):
    monkeypatch.delenv("PYRO_EXT_SMOKE", raising=False)
    page, reports = write(tmp_path, PAGE), tmp_path / "reports"
    assert last_outcome(page, reports) is None
    outcome, seconds = run(page, reports)
    assert outcome.returncode == 1 and seconds > 0.01
    assert (reports / "a-page" / "printed.txt").read_text().startswith("It begins.\n")
    kept = last_outcome(page, reports)
    assert kept.returncode == 1 and list(kept.report.claims[0].values) == [0, 1, 2]
    page = write(tmp_path, "'A page.'\nprint('It begins.')\n1 / 0\n")
    assert last_outcome(page, reports) is None
    (reports / "a-page" / "old.png").touch()
    run(page, reports)
    assert not (reports / "a-page" / "old.png").exists()
    kept = last_outcome(page, reports)
    assert kept.verdict == "stopped with status 1" and not kept.passed
    printed = (reports / "a-page" / "printed.txt").read_text()
    assert printed.startswith("It begins.\n") and "ZeroDivisionError" in printed


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Slugs of the pages that were run, of five that take 10 to 50 seconds and one unknown."""
    found = tuple(Script(tmp_path / f"page_{n}.py", "A page", ()) for n in (1, 2, 3, 4, 5, 6))
    monkeypatch.setattr(pages, "pages", lambda: found)
    monkeypatch.setattr(durations, "FILE", tmp_path / "durations.json")
    durations.save("pages", {f"page-{n}": 10.0 * n for n in (1, 2, 3, 4, 5)})
    durations.save("tests", {"tests/test_it.py::test_it": 1500.0})
    claim = Claim("One is one.", {0: 1, 1: 1, 2: 1}, "<=", 1.0, "here")
    slugs = []

    def run(page):
        assert "PYRO_EXT_SMOKE" not in os.environ and os.environ["OMP_NUM_THREADS"] == "1"
        slugs.append(page.slug)
        report = Report(page.slug, [claim]) if page.slug == "page-1" else None
        return Outcome(page, int(page.slug == "page-2"), 2.0, report), 7.0

    monkeypatch.setattr(pages, "run", run)
    monkeypatch.setattr(pages, "ProcessPoolExecutor", ThreadPoolExecutor)
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
    main(monkeypatch, capsys, "page-3", "page_6", "--record-durations")
    assert ran == ["page-3", "page-6"]
    assert durations.load()["pages"] == {
        **{f"page-{n}": 10.0 * n for n in (1, 2, 4, 5)},
        **{"page-3": 7.0, "page-6": 7.0},
    }


def test_commits_take_turns(ran, monkeypatch, capsys):
    """1,890 seconds are two parts of at most 1,200, and no test or page more makes three."""
    assert [part_of_commit(number) for number in range(3)] == ["1/2", "2/2", "1/2"]
    assert main(monkeypatch, capsys, "--part-of-commit", "7") == "2/2\n"
    durations.save("tests", {"tests/test_it.py::test_more": 511.0})
    assert part_of_commit(5) == "3/3"
